"""The decision: every stand of the login table against every rule and sender, the expectations written by hand."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbs_policy import policy
from pbs_policy.address import ClientAddresses, parse_network
from pbs_policy.policy import Decision, Rules
from pbs_policy.table import GONE, NO_END, Keys, Record, parse_record

ADDRESS = "192.0.2.7"
KEYS = Keys("t:")
LIVE = 60_000  # milliseconds

ALICE = b"1700000000 pop3 alice@example.com"
BOB = b"1700000000 imap bob@example.com"
PERMIT = b"1700000000 manual scanner@example.org"
NO_USER = b"1700000000"
JUNK = b"yes"

Stand = dict[bytes, tuple[bytes, int]]
"""What stands in Redis: a key's value, and the milliseconds it has left when these are asked for."""

MATCHES: tuple[Literal["off", "domain", "address"], ...] = ("off", "domain", "address")
SENDERS = ("alice@example.com", "bob@example.com", "carol@example.net", "", "@example.com", "alice")


def login(value: bytes, user: bytes, left: int = LIVE) -> Stand:
    """The three keys of one login."""
    domain = user[user.index(b"@") :]
    return {KEYS.login(ADDRESS, name): (value, left) for name in (b"", user, domain)}


def permit(left: int = LIVE) -> Stand:
    return {KEYS.permit(ADDRESS): (PERMIT, left)}


DENY: Stand = {KEYS.deny(ADDRESS): (b"spam", LIVE)}


def decide(stand: Stand, rules: Rules, sender: str) -> Decision:
    """The decision in its two rounds, on a table that is a dict."""
    name = policy.name_to_match(sender.encode(), rules) if rules.sender_match != "off" else b""
    keys = KEYS.relay(ADDRESS, name)
    outcome = policy.weigh([stand[key][0] if key in stand else None for key in keys], rules)
    if isinstance(outcome, Decision):
        return outcome
    left = [stand[keys[candidate.which]][1] for candidate in outcome]
    return policy.confirm(outcome, left, stand.get(KEYS.deny(ADDRESS), (None, 0))[0])


REASONS = {
    "L": ("OK", "login"),
    "P": ("OK", "permit"),
    ".": ("DUNNO", "no_login"),
    "s": ("DUNNO", "sender_mismatch"),
    "e": ("DUNNO", "key_without_end"),
    "d": ("DUNNO", "denied"),
}

# One letter for each of SENDERS: matching, of the same domain, foreign, null, "@domain" alone, without a domain.
TABLE: list[tuple[str, Stand, str, str, str]] = [
    # stand                                                                        off       domain    address
    ("nothing", {}, "......", "......", "......"),
    ("a login", login(ALICE, b"alice@example.com"), "LLLLLL", "LLssss", "Lsssss"),
    ("another user's login", login(BOB, b"bob@example.com"), "LLLLLL", "LLssss", "sLssss"),
    ("a login without a user", {KEYS.login(ADDRESS): (NO_USER, LIVE)}, "LLLLLL", "ssssss", "ssssss"),
    ("a permit", permit(), "PPPPPP", "PPPPPP", "PPPPPP"),
    ("both", login(ALICE, b"alice@example.com") | permit(), "PPPPPP", "PPPPPP", "PPPPPP"),
    ("no records", login(JUNK, b"alice@example.com") | {KEYS.permit(ADDRESS): (JUNK, LIVE)},
     "......", "......", "......"),
    ("junk where the permit stands", login(ALICE, b"alice@example.com") | {KEYS.permit(ADDRESS): (b"", LIVE)},
     "LLLLLL", "LLssss", "Lsssss"),
    ("a login without an end", login(ALICE, b"alice@example.com", NO_END), "eeeeee", "eessss", "esssss"),
    ("a permit without an end", permit(NO_END), "eeeeee", "eeeeee", "eeeeee"),
    ("a permit without an end, and a login", login(ALICE, b"alice@example.com") | permit(NO_END),
     "LLLLLL", "LLeeee", "Leeeee"),
    ("a permit, and a login without an end", login(ALICE, b"alice@example.com", NO_END) | permit(),
     "PPPPPP", "PPPPPP", "PPPPPP"),
    ("a login that ended between the rounds", login(ALICE, b"alice@example.com", GONE), "......", "..ssss", ".sssss"),
    ("a login in its last millisecond", login(ALICE, b"alice@example.com", 0), "......", "..ssss", ".sssss"),
    ("a login with one millisecond left", login(ALICE, b"alice@example.com", 1), "LLLLLL", "LLssss", "Lsssss"),
    ("a permit that ended between the rounds", permit(GONE), "......", "......", "......"),
    ("a permit that ended, and a login", login(ALICE, b"alice@example.com") | permit(GONE),
     "LLLLLL", "LL....", "L....."),
    ("a login, denied", login(ALICE, b"alice@example.com") | DENY, "dddddd", "ddssss", "dsssss"),
    ("a permit, denied", permit() | DENY, "dddddd", "dddddd", "dddddd"),
    ("a login without an end, denied", login(ALICE, b"alice@example.com", NO_END) | DENY,
     "dddddd", "ddssss", "dsssss"),
    ("a deny alone", DENY, "......", "......", "......"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("stand", "sender_match", "sender", "action", "reason"),
    [
        pytest.param(stand, match, sender, *REASONS[letter], id=f"{name}, {match}, {sender or 'null sender'}")
        for name, stand, *rows in TABLE
        for match, row in zip(MATCHES, rows, strict=True)
        for sender, letter in zip(SENDERS, row, strict=True)
    ],
)
def test_the_decision(
    stand: Stand, sender_match: Literal["off", "domain", "address"], sender: str, action: str, reason: str
) -> None:
    decision = decide(stand, Rules(sender_match=sender_match), sender)
    assert (decision.action, decision.reason) == (action, reason)
    assert (decision.record is not None) == (action == "OK")


def test_what_permits_is_named_with_its_record() -> None:
    one = decide(login(ALICE, b"alice@example.com"), Rules(), "")
    assert one == Decision("OK", "login", ALICE)
    assert one.record == Record(1_700_000_000, "pop3", "alice@example.com")
    both = decide(login(ALICE, b"alice@example.com") | permit(), Rules(), "")
    assert both == Decision("OK", "permit", PERMIT)
    assert both.record == Record(1_700_000_000, "manual", "scanner@example.org")
    assert policy.NO_LOGIN.record is None


@pytest.mark.parametrize(
    ("sender", "by_domain", "by_address"),
    [
        (b"alice@example.com", b"@example.com", b"alice@example.com"),
        (b"Alice@EXAMPLE.com", b"@example.com", b"alice@example.com"),
        (b"a@b@example.com", b"@example.com", b"a@b@example.com"),
        (b'"a b"@example.com', b"@example.com", b'"a b"@example.com'),
        (b"jos\xe9@example.com", b"@example.com", b"jos\xe9@example.com"),
        (b"prvs=12=alice@example.com", b"@example.com", b"prvs=12=alice@example.com"),
        (b"alice@", b"", b""),
        (b"@", b"", b""),
        (b"@example.com", b"", b""),
        (b"@a@example.com", b"", b""),
        (b"alice", b"", b""),
        (b"", b"", b""),
    ],
)
def test_whom_a_sender_stands_for(sender: bytes, by_domain: bytes, by_address: bytes) -> None:
    """Never an empty domain, which would be the key of everybody whose name ends with "@"."""
    assert policy.name_to_match(sender, Rules(sender_match="domain")) == by_domain
    assert policy.name_to_match(sender, Rules(sender_match="address")) == by_address


@pytest.mark.parametrize(
    ("text", "reason"),
    [("127.0.0.1", "loopback"), ("fe80::1", "link_local"), ("192.0.2.7", "never_record"), ("::", "unspecified")],
)
def test_an_excluded_address_is_answered_without_the_table(text: str, reason: str) -> None:
    addresses = ClientAddresses(never_record=(parse_network("192.0.2.0/24"),))
    assert policy.refuse_excluded(addresses.parse(text)) == Decision("DUNNO", reason)


@pytest.mark.parametrize(
    ("on_unavailable", "action"),
    [
        ("defer", "DEFER_IF_REJECT 4.3.0 relay permission cannot be checked now, please try again"),
        ("dunno", "DUNNO"),
    ],
)
def test_while_redis_is_unavailable_the_client_tries_again_or_is_a_stranger(
    on_unavailable: Literal["defer", "dunno"], action: str
) -> None:
    assert policy.unavailable(Rules(on_unavailable=on_unavailable)) == Decision(action, "unavailable")


@pytest.mark.parametrize(
    "decision",
    [
        Decision("OK", "login", ALICE),
        policy.NO_LOGIN,
        policy.NO_CLIENT_ADDRESS,
        policy.unavailable(Rules()),
    ],
    ids=lambda decision: decision.reason,
)
def test_observed_changes_the_action_alone_and_says_what_it_would_have_been(decision: Decision) -> None:
    seen = policy.observed(decision)
    assert seen == Decision("DUNNO", decision.reason, decision.value, would_be=decision.action)


# --- never OK without a live permission: whatever stands in the table

_values = st.one_of(
    st.none(),
    st.sampled_from([ALICE, BOB, PERMIT, NO_USER, JUNK, b"", b"1 ", b"-1", b"1700000000 pop3", b" 1 pop3 alice"]),
    st.binary(max_size=20),
)
_lefts = st.sampled_from([GONE, NO_END, 0, 1, LIVE])
_rules = st.builds(Rules, st.sampled_from(MATCHES))


@given(st.lists(_values, min_size=2, max_size=3), st.lists(_lefts, min_size=3, max_size=3), _values, _rules)
def test_ok_needs_a_record_a_key_with_time_left_and_no_deny(
    found: list[bytes | None], lefts: list[int], deny: bytes | None, rules: Rules
) -> None:
    outcome = policy.weigh(found, rules)
    if isinstance(outcome, Decision):
        decision = outcome
        assert decision.action == "DUNNO"
    else:
        decision = policy.confirm(outcome, [lefts[candidate.which] for candidate in outcome], deny)
    live = [
        value is not None and parse_record(value) is not None and left > 0
        for value, left in zip(found, lefts, strict=False)
    ]
    asked = live[0] or (live[1] if rules.sender_match == "off" else live[2:] == [True])
    assert (decision.action == "OK") == (asked and deny is None)
    if decision.action == "OK":
        assert decision.record in [parse_record(value) for value in found if value is not None]
    assert decision.action in ("OK", "DUNNO")


@given(_values.filter(lambda value: value is not None), st.lists(_values, min_size=2, max_size=3), _rules)
def test_a_deny_outranks_everything_whatever_its_value(deny: bytes, found: list[bytes | None], rules: Rules) -> None:
    outcome = policy.weigh(found, rules)
    if not isinstance(outcome, Decision):
        assert policy.confirm(outcome, [LIVE] * len(outcome), deny) == Decision("DUNNO", "denied")
