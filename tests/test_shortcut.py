"""The short way to an OK says nothing that the long way would not say."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from pbs_policy.address import ClientAddress
from pbs_policy.decision import policy, shortcut
from pbs_policy.decision.case import Case
from pbs_policy.decision.policy import Decision, Rules
from pbs_policy.decision.senders import SenderRules, own_names
from pbs_policy.postfix.protocol import as_request, only
from pbs_policy.store.question import Answer, Question, carry_out
from pbs_policy.table.keys import Keys

KEYS = Keys("pbs:")
CLIENT = "192.0.2.7"
REQUEST = as_request(b"request=smtpd_access_policy\nclient_address=192.0.2.7\nsender=Bob@example.com\n\n")
LOGIN = b"1795453232 imap Alice@example.com"

values = st.sampled_from([None, b"", b"spam", LOGIN, b"1795453232", b"1795453232 imap @example.com", b"4:24 6:48"])
lifetimes = st.sampled_from([-2, -1, 0, 1, 1_800_000])


def long_way(rules: Rules, found: list[bytes | None], table: dict[bytes, bytes | None], left: int) -> Decision:
    """What `policy.decide` says, with `left` as the PTTL of whatever it asks about."""

    def ask(question: Question) -> Answer:
        return Answer([table.get(key) for key in question.keys], [left] * len(question.commands))

    return carry_out(policy.decide(Case(ClientAddress(CLIENT), REQUEST, rules, KEYS), found), ask)


def short_way(
    rules: Rules, found: list[bytes | None], table: dict[bytes, bytes | None], left: int
) -> Decision | None:
    """What the short way says, None where it leaves the question to the long one."""
    login = shortcut.find_login(rules, KEYS, CLIENT, found)
    if login is None:
        return None
    against = shortcut.keys_against(KEYS, login, own_names(only(REQUEST, b"sender"), rules.senders))
    return shortcut.permit(login, [table.get(key) for key in against], left)


DENIES = (
    KEYS.deny(CLIENT), KEYS.deny_everybody, KEYS.deny_networks,
    KEYS.deny_user(b"alice@example.com"), KEYS.deny_user(b"bob@example.com"),
)  # fmt: skip


@given(st.tuples(values, values), st.dictionaries(st.sampled_from(DENIES), values), lifetimes)
@example((None, LOGIN), {}, 1)
@example((None, LOGIN), {KEYS.deny_everybody: b""}, 1)
def test_the_short_way_never_permits_what_the_long_way_does_not(
    found: tuple[bytes | None, bytes | None], table: dict[bytes, bytes | None], left: int
) -> None:
    short = short_way(Rules(), list(found), table, left)
    if short is not None:
        assert short == long_way(Rules(), list(found), table, left)
        assert short.action == policy.OK


def test_a_login_that_nothing_stands_against_is_permitted_on_the_short_way() -> None:
    short = short_way(Rules(), [None, LOGIN], {}, 1_000)
    assert short is not None
    assert short.record is not None
    assert (short.action, short.reason, short.left, short.record.user) == ("OK", "login", 1.0, "Alice@example.com")


def test_each_deny_and_a_missing_end_are_left_to_the_long_way() -> None:
    for key in DENIES:
        assert short_way(Rules(), [None, LOGIN], {key: b"why"}, 1_000) is None
    assert short_way(Rules(), [None, LOGIN], {}, -1) is None


def test_whatever_narrows_a_login_is_left_to_the_long_way() -> None:
    narrowing = (
        Rules(senders=SenderRules(match="address")),
        Rules(services=frozenset({"imap"})),
        Rules(require_tls=True),
    )
    for rules in narrowing:
        assert short_way(rules, [None, LOGIN], {}, 1_000) is None
