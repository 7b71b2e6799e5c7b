"""A decision's line, as text and as JSON: both say the same, and no text forges a field of either form."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pbs_policy.decision.candidate import Candidate
from pbs_policy.decision.rules import DEFER, NO_LOGIN, OK, Decision, observed
from pbs_policy.log import printable
from pbs_policy.postfix.protocol import Request, as_request
from pbs_policy.service.decision_line import as_json, as_text
from pbs_policy.table.records import Permit, Record, serialise_record
from tests.service import request
from tests.test_log import read_fields

CLIENT = "192.0.2.7"


def asked(sender: str = "alice@example.com", recipient: str = "bob@example.net") -> Request:
    return as_request(request(CLIENT, sender=sender, recipient=recipient))


def by_login(user: str = "alice@example.com", service: str = "pop3") -> Decision:
    value = serialise_record(Record(1_795_453_232, service, user))
    return Decision(OK, "login", Candidate(b"pbs:login:192.0.2.7", CLIENT, value, b""), 60.0)


SCANNERS = Candidate(b"pbs:permit:192.0.2.7", CLIENT, b"{}", b"", permit=Permit(1, "scanner"))
BY_PERMIT = Decision(OK, "permit", SCANNERS)
BARE_LOGIN = Decision(OK, "login", Candidate(b"pbs:login:192.0.2.7", CLIENT, b"1795453232", b""))
END = "sender=alice@example.com recipient=bob@example.net"


@pytest.mark.parametrize(
    ("decision", "line"),
    [
        (by_login(), f"action=OK client_address={CLIENT} reason=login user=alice@example.com service=pop3 {END}"),
        (BARE_LOGIN, f"action=OK client_address={CLIENT} reason=login {END}"),
        (BY_PERMIT, f"action=OK client_address={CLIENT} reason=permit user=scanner service=manual {END}"),
        (NO_LOGIN, f"action=DUNNO client_address={CLIENT} reason=no_login {END}"),
        (Decision(DEFER, "unavailable"), f"action=DEFER_IF_REJECT client_address={CLIENT} reason=unavailable {END}"),
        (
            observed(by_login()),
            f"action=DUNNO client_address={CLIENT} reason=login would_be=OK user=alice@example.com service=pop3 "
            + END,
        ),
    ],
)
def test_a_decision_is_told_in_postfix_names(decision: Decision, line: str) -> None:
    assert as_text(decision, CLIENT, asked()) == line
    assert json.loads("{" + as_json(decision, CLIENT, asked()) + "}") == read_fields(line)


def test_the_null_sender_is_an_empty_value() -> None:
    assert as_text(NO_LOGIN, CLIENT, asked(sender="")).endswith(' sender="" recipient=bob@example.net')


_texts = st.one_of(
    st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"), max_size=30),
    st.text('ab@.=" \\\t', max_size=12),
    st.sampled_from(["alice@example.com", "x sender=y", '" action=OK x="', "x" * 320, "x" * 321]),
)


@given(user=_texts, sender=_texts, recipient=_texts, observes=st.booleans())
@example(user="alice@example.com", sender="alice@example.com", recipient="bob@example.net", observes=False)
@example(user="x sender=mallory@example.com recipient=y", sender="a", recipient="b", observes=False)
def test_both_forms_say_the_same_and_no_text_forges_a_field(
    user: str, sender: str, recipient: str, observes: bool
) -> None:
    decision = observed(by_login(user)) if observes else by_login(user)
    attributes = asked(sender, recipient)
    line = as_text(decision, CLIENT, attributes)
    expected = {"action": "DUNNO" if observes else "OK", "client_address": CLIENT, "reason": "login"}
    expected |= {"would_be": "OK"} if observes else {}
    expected |= {"user": printable(user)} if user else {}
    expected |= {"service": "pop3", "sender": printable(sender), "recipient": printable(recipient)}
    assert read_fields(line) == expected
    assert list(read_fields(line)) == list(expected), "the order is the same for each line"
    assert json.loads("{" + as_json(decision, CLIENT, attributes) + "}") == expected
