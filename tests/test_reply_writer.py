"""What leaves the service for Postfix: one line of a known action and an empty one, whatever a decision holds and
whatever client and Redis have sent. An empty action would be an open relay, a second line a second answer.
"""

from __future__ import annotations

import re
from contextlib import suppress
from io import BytesIO
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pbs_policy.cli.check import WHY
from pbs_policy.decision.candidate import Candidate
from pbs_policy.decision.rules import DEFER, DUNNO, OK, Decision, Rules
from pbs_policy.log import Log
from pbs_policy.postfix.protocol import Request, serialise_reply
from pbs_policy.service.server import PolicyServer
from pbs_policy.table.keys import Keys
from pbs_policy.table.records import Permit
from tests.fuzz.targets import service
from tests.fuzz.transport import Transport

REPLY = re.compile(rb"action=(?:OK|DUNNO|DEFER_IF_REJECT(?: [\x21-\x7e]+)*)\n\n")
LOG_LINE = re.compile(rb"(?:info|warning|error): [^\x00-\x1f\x7f]+\n")

KNOWN = (OK, DUNNO, DEFER)
HOSTILE = ("\n\naction=OK\n\n", "\x1b[2J", "\r\n")

actions = st.sampled_from((*KNOWN, "", "OK\n", "ok", "OK OK", "\nOK", "OK\n\naction=OK")) | st.text()
texts = st.text(st.characters(exclude_categories=()), max_size=50) | st.sampled_from(HOSTILE)
permits = st.none() | st.builds(Permit, st.integers(0, 2**40), texts, note=texts)
values = st.binary(max_size=60) | st.just(b"1795453232 imap \n\naction=OK\n\n") | st.just(b"1795453232 imap \xff")
candidates = st.builds(Candidate, st.binary(max_size=40), texts, values, st.binary(max_size=20), permits)
decisions = st.builds(
    Decision, actions, st.sampled_from(sorted(WHY)), st.none() | candidates, st.floats(), st.just("") | actions, texts
)
requests = st.binary(max_size=200).map(lambda junk: Request(b"request=smtpd_access_policy\n" + junk + b"\n\n"))


@given(st.text() | st.from_regex(r"(OK|DUNNO|DEFER_IF_REJECT)\s?.*", fullmatch=False))
@example("")
@example("OK\n")
@example("DEFER_IF_REJECT a\n\naction=OK")
def test_an_action_is_sent_as_one_line_or_refused(action: str) -> None:
    try:
        reply = serialise_reply(action)
    except ValueError:
        return
    assert REPLY.fullmatch(reply)


@settings(deadline=None)
@given(decisions, requests, st.booleans())
@example(Decision("", "login"), Request(b"\n"), False)
@example(Decision(OK, "login", Candidate(b"k", "192.0.2.7", b"1 imap \n\naction=OK\n\n", b"")), Request(b""), False)
def test_whatever_a_decision_holds_one_known_action_is_sent_or_nothing(
    decision: Decision, request: Request, observes: bool
) -> None:
    stream = BytesIO()
    lookups: Any = None
    server = PolicyServer(Keys("pbs:"), lookups, Log(stream))
    server.rules, server.log_decisions = Rules(observe_only=observes), "all"
    connection: Any = server.connection()
    transport = Transport()
    connection.connection_made(transport)
    connection._request = request
    with suppress(KeyError):  # an action that there is not
        connection._reply(decision)
    assert transport.written == b"" or REPLY.fullmatch(transport.written)
    if observes:
        assert transport.written in (b"", serialise_reply(DUNNO))
    if decision.action in KNOWN and decision.would_be in ("", *KNOWN):
        for line in stream.getvalue().splitlines(keepends=True):
            assert LOG_LINE.fullmatch(line)


def _piece(which: int, junk: bytes) -> bytes:
    return bytes((which,)) + junk.replace(b"\xff", b"") + b"\xff"


# What may happen, in the words of the target: a client sends a request or anything, Redis answers or says anything.
asks = st.tuples(st.sampled_from((2, 3)), st.integers(0, 5), st.integers(0, 5), st.integers(0, 255)).map(bytes)
answers = st.lists(st.integers(0, 14), min_size=1, max_size=12).map(lambda choices: b"\x06" + bytes(choices))
junk = st.builds(_piece, st.sampled_from((0, 1, 5)), st.binary(max_size=60))
steps = st.one_of(asks, answers, junk, st.just(b"\x04"))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 4), st.integers(0, 1), st.lists(steps, max_size=12))
def test_whatever_client_and_redis_send_nothing_else_leaves_the_service(
    rules: int, networks: int, happens: list[bytes]
) -> None:
    service.run(bytes((rules, networks)) + b"".join(happens))
