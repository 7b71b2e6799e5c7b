"""`permit`, `revoke`, `deny`, `undeny`, `denied`: what each writes, says and refuses, and how it decides."""

from __future__ import annotations

import io
import json
import os
import pwd
import re
import socket
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from redis import Redis

from pbs_policy.address import ClientAddress
from pbs_policy.cap import Cap
from pbs_policy.decision.check import Enquiry, check
from pbs_policy.decision.rules import Rules
from pbs_policy.postfix.protocol import Request, RequestParser
from pbs_policy.postfix.query import serialise_request
from pbs_policy.table.keys import EVERYBODY, Keys
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.networks import parse_lengths
from pbs_policy.table.records import SESSION, Permit, Record, parse_permit
from pbs_policy.table.rows import read_time
from tests.commands import Pbs, Result, is_one_error
from tests.stores import write_login

KEYS = Keys("pbs:")
HOUR = 3600


def login(table: LoginTable, address: str, user: str, ttl: float = HOUR) -> None:
    write_login(table, address, Record(int(table.now()), "imap", user), ttl)


def reason(table: LoginTable, address: str, sender: str = "alice@example.com", to: str = "bob@example.net") -> str:
    """Why the service would permit or refuse this relay attempt."""
    data = serialise_request({"client_address": address, "sender": sender, "recipient": to})
    request = RequestParser().next_request(data)
    assert isinstance(request, Request)
    return check(Enquiry(table, Rules(), ClientAddress(address), request)).reason


# --- permit


def test_a_permit_holds_what_was_asked_and_ends(pbs: Pbs, redis: Redis, table: LoginTable) -> None:
    arguments = ["--user", "scanner@example.com", "--for", "90d", "--note", "second floor", "--cap", "20/1h"]
    arguments += ["--sender", "Scanner@Example.COM", "--sender", "@Example.org", "--sender", "@example.org"]
    arguments += ["--recipient-domain", "EXAMPLE.net"]
    result = pbs("permit", "192.0.2.7", *arguments)
    assert result == Result(0, "192.0.2.7 may relay for 90d\n", "")
    value = redis.get(KEYS.permit("192.0.2.7"))
    assert isinstance(value, bytes)
    permit = parse_permit(value)
    assert permit is not None
    assert abs(permit.given_at - table.now()) < 60
    assert permit == Permit(
        permit.given_at,
        "scanner@example.com",
        ("scanner@example.com", "@example.org"),
        ("example.net",),
        Cap(20, HOUR),
        "second floor",
    )
    assert 89 * 86_400 < int(redis.ttl(KEYS.permit("192.0.2.7"))) <= 90 * 86_400


def test_a_permit_lets_the_printer_relay_under_its_conditions_alone(pbs: Pbs, table: LoginTable) -> None:
    assert reason(table, "192.0.2.7") == "no_login"
    conditions = ["--sender", "@example.com", "--recipient-domain", "example.net"]
    assert pbs("permit", "::ffff:192.0.2.7", "--user", "scanner@example.com", *conditions).status == 0
    assert reason(table, "192.0.2.7", "anybody@EXAMPLE.com") == "permit"
    assert reason(table, "192.0.2.7", "anybody@example.org") == "sender_mismatch"
    assert reason(table, "192.0.2.7", "anybody@example.com", "bob@example.org") == "recipient_mismatch"
    assert reason(table, "192.0.2.8", "anybody@example.com") == "no_login"


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [("192.0.2.0/28", "192.0.2.15", "192.0.2.16"), ("2001:db8:1::/48", "2001:db8:1::7", "2001:db8:2::7"),
     ("198.51.0.0/16", "198.51.100.7", "198.50.0.1"), ("2001:db8::/32", "2001:db8:2::7", "2001:db9::7")],
)  # fmt: skip
def test_a_network_is_permitted_for_every_client_in_it(
    pbs: Pbs, table: LoginTable, network: str, inside: str, outside: str
) -> None:
    result = pbs("permit", network, "--user", "scanners@example.com")
    assert result == Result(0, f"{network} may relay for 8h\n", "")
    assert (reason(table, inside), reason(table, outside)) == ("permit", "no_login")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("192.0.0.0/15", "192.0.0.0/15 is wider than /16"),
        ("0.0.0.0/0", "0.0.0.0/0 is wider than /16"),
        ("2001:db9::/31", "has bits set behind its prefix"),
        ("2001:db0::/28", "2001:db0::/28 is wider than /32"),
        ("::/0", "::/0 is wider than /32"),
        ("127.0.0.0/16", "127.0.0.0/16 is never permitted to relay: loopback"),
        ("fe80::/64", "fe80::/64 is never permitted to relay: link_local"),
        ("127.0.0.1", "127.0.0.1 is never permitted to relay: loopback"),
        ("203.0.113.64/26", "203.0.113.64/26 is never permitted to relay: never_record"),
        ("192.0.2.7/24", "did you mean 192.0.2.0/24?"),
        ("192.0.2.0/33", "not a network: '192.0.2.0/33'"),
        ("::ffff:192.0.2.0/120", "write it as an IPv4 network"),
        ("alice@example.com", "not an IP address: 'alice@example.com'"),
        ("192.0.2.7\x1b[31m", "not an IP address"),
        ("", "not an IP address: ''"),
        ("all", "not an IP address: 'all'"),
    ],
)
def test_what_must_not_be_permitted_is_refused(pbs: Pbs, redis: Redis, target: str, text: str) -> None:
    arguments = ["--set", "never_record=203.0.113.0/24", "permit", target, "--user", "scanner@example.com"]
    assert is_one_error(pbs(*arguments), 64, text)
    assert redis.keys() == []


@pytest.mark.parametrize(
    ("option", "values", "text"),
    [
        ("--user", ["", " ", "a b", "@example.com", "a\nb", "a\x1b[1m", "jos\udce9", "u" * 321, "a/b", "a,b"],
         "expected a user such as"),
        ("--sender", ["", "alice", "alice@", "@", "a b@example.com", "<alice@example.com>", "a@b@example.com",
                      "a@example..com", "a@-example.com", "a@example.com ", "@\x1b"], "'--sender'"),
        ("--recipient-domain", ["", "@example.net", "bob@example.net", "a b", ".example.net", "example.net.", "a\0b"],
         "'--recipient-domain'"),
        ("--cap", ["", "20", "0/1h", "20/", "20/1y", "x/1h", "20 /1h"], "'--cap'"),
        ("--for", ["", "0", "soon", "-1h", "1831d"], "expected a time from 1s to 1830d"),
        ("--note", ["a\nb", "\x1b[31m", "\u202e", "n" * 321], "expected a line of at most 320 printable characters"),
    ],
)  # fmt: skip
def test_a_condition_that_means_nothing_is_refused(
    pbs: Pbs, redis: Redis, option: str, values: list[str], text: str
) -> None:
    for value in values:
        user = [] if option == "--user" else ["--user", "scanner@example.com"]
        result = pbs("permit", "192.0.2.7", *user, option, value)
        if option == "--user":
            assert "'--user'" in result.err
        else:
            assert text in result.err
        assert is_one_error(result, 64, "Invalid value")
    assert redis.keys() == []


def test_a_permit_needs_no_user(pbs: Pbs, table: LoginTable) -> None:
    assert pbs("permit", "192.0.2.7", "--for", "90d") == Result(0, "192.0.2.7 may relay for 90d\n", "")
    (entry,) = table.entries()
    assert (entry.kind, entry.target, entry.record.user) == ("permit", "192.0.2.7", "")
    assert reason(table, "192.0.2.7") == "permit"


@pytest.mark.parametrize(
    ("deny", "what", "ends"),
    [
        (["192.0.2.7"], "192.0.2.7", ["192.0.2.7"]),
        (["192.0.2.0/24"], "192.0.2.0/24", ["192.0.2.0/24"]),
        (["--all"], "everybody", ["--all"]),
        (["scanner@example.com"], "scanner@example.com", ["scanner@example.com"]),
    ],
)
def test_a_permit_of_what_is_denied_says_that_it_has_no_effect_yet(
    pbs: Pbs, table: LoginTable, deny: list[str], what: str, ends: list[str]
) -> None:
    assert pbs("deny", *deny, "--for", "1h").status == 0
    result = pbs("permit", "192.0.2.7", "--user", "scanner@example.com")
    assert result.out == "192.0.2.7 is permitted for 8h, which has no effect now\n"
    assert result.err == f"pbs-policy: {what} is denied: pbs-policy undeny {' '.join(ends)}\n"
    assert result.status == 0
    assert reason(table, "192.0.2.7") in ("denied", "denied_user")
    assert pbs("undeny", *ends).status == 0
    assert reason(table, "192.0.2.7") == "permit"


def test_a_permit_that_observe_only_makes_void_says_so(pbs: Pbs) -> None:
    assert pbs("--set", "observe_only=yes", "permit", "192.0.2.7") == Result(
        0,
        "192.0.2.7 is permitted for 8h, which has no effect now\n",
        "pbs-policy: observe_only = yes: nobody may relay by a login or permit until it is no\n",
    )


def test_a_permit_of_what_the_file_of_denies_has_names_its_line(pbs: Pbs, tmp_path: Path) -> None:
    (tmp_path / "denies").write_text("192.0.2.0/24  spam\nscanner@example.com\n")
    given = ("--set", f"denies={tmp_path / 'denies'}", "permit", "192.0.2.7", "--user", "scanner@example.com")
    assert pbs(*given).err == "".join(
        f"pbs-policy: {what} is denied by {tmp_path / 'denies'}:{line}: take that line out\n"
        for line, what in ((1, "192.0.2.0/24"), (2, "scanner@example.com"))
    )


# --- everybody


def test_what_check_advises_against_a_deny_of_everybody_ends_it(pbs: Pbs, table: LoginTable) -> None:
    assert pbs("deny", "--all", "--for", "10m").out.startswith("denied: everybody for 10m\n")
    login(table, "192.0.2.7", "alice@example.com")
    shown = pbs("check", "192.0.2.7")
    advised = re.search(r"`pbs-policy (undeny [^`]*)`", shown.out)
    assert shown.status == 1
    assert advised
    assert pbs(*advised[1].split()) == Result(0, "no longer denied: everybody\n", "")
    assert pbs("check", "192.0.2.7").status == 0


def test_a_deny_of_everybody_is_listed_as_that_for_people(pbs: Pbs) -> None:
    pbs("deny", "--all", "--for", "10m")
    assert pbs("denied").out.splitlines()[1].split()[0] == "everybody"
    assert json.loads(pbs("denied", "--json").out)[0]["client_address"] == "all"
    pbs("deny", "192.0.2.7", "--for", "10m")
    assert pbs("undeny", "192.0.2.7").err == "pbs-policy: everybody is denied: pbs-policy undeny --all\n"


# --- revoke


def test_logins_that_name_no_user_are_not_passed_over_in_silence(pbs: Pbs, table: LoginTable) -> None:
    login(table, "192.0.2.7", "alice@example.com")
    login(table, "192.0.2.8", "bob@example.com")
    assert pbs("revoke", "alice@example.com").err == ""
    said = "not touched; alice@example.com may be among them: revoke the address, which pbs-policy list shows\n"
    login(table, "198.51.100.8", "")
    assert pbs("revoke", "alice@example.com").err == f"pbs-policy: 1 login names no user and was {said}"
    login(table, "198.51.100.9", "")
    assert pbs("revoke", "alice@example.com").err == f"pbs-policy: 2 logins name no user and were {said}"
    assert {entry.target for entry in table.entries()} >= {"198.51.100.8", "198.51.100.9"}
    assert pbs("revoke", "198.51.100.8").err == ""
    said = said.replace("alice@example.com", "some of these users").replace("2 logins", "1 login")
    result = pbs("revoke", "alice@example.com", "bob@example.com")
    assert result.err == f"pbs-policy: 1 login names no user and was {said}"


def test_what_is_revoked_is_gone_for_the_next_request(pbs: Pbs, table: LoginTable) -> None:
    login(table, "192.0.2.7", "alice@example.com")
    login(table, "192.0.2.8", "alice@example.com")
    assert pbs("revoke", "192.0.2.7") == Result(0, "revoked: 192.0.2.7\n", "")
    assert [reason(table, each) for each in ("192.0.2.7", "192.0.2.8")] == ["no_login", "login"]
    assert pbs("revoke", "Alice@example.com") == Result(0, "revoked: 192.0.2.8 for Alice@example.com\n", "")
    assert reason(table, "192.0.2.8") == "no_login"
    assert pbs("revoke", "192.0.2.7") == Result(1, "nothing to revoke for 192.0.2.7\n", "")
    assert pbs("revoke", "alice@example.com") == Result(1, "nothing to revoke for alice@example.com\n", "")
    login(table, "192.0.2.7", "alice@example.com")
    assert reason(table, "192.0.2.7") == "login"


def test_a_network_is_revoked_with_everything_in_it(pbs: Pbs, table: LoginTable) -> None:
    for address in ("192.0.2.7", "192.0.2.200", "198.51.100.7"):
        login(table, address, "alice@example.com")
    assert pbs("permit", "192.0.2.64/26", "--user", "scanner@example.com").status == 0
    result = pbs("revoke", "192.0.2.0/24")
    assert result == Result(0, "revoked: 192.0.2.200\nrevoked: 192.0.2.64/26\nrevoked: 192.0.2.7\n", "")
    assert [reason(table, each) for each in ("192.0.2.7", "192.0.2.65", "198.51.100.7")] == [
        "no_login", "no_login", "login"
    ]  # fmt: skip


def test_everything_is_revoked(pbs: Pbs, table: LoginTable) -> None:
    login(table, "192.0.2.7", "alice@example.com")
    login(table, "2001:db8::7", "bob@example.com")
    assert pbs("revoke", "--all") == Result(0, "revoked: 192.0.2.7\nrevoked: 2001:db8::7\n", "")
    assert pbs("revoke", "--all") == Result(1, "nothing to revoke for everybody\n", "")


@pytest.mark.parametrize(("answer", "is_revoked"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_everything_is_revoked_if_that_is_meant(
    pbs: Pbs, table: LoginTable, monkeypatch: pytest.MonkeyPatch, answer: str, is_revoked: bool
) -> None:
    login(table, "192.0.2.7", "alice@example.com")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    result = pbs("revoke", "--all")
    assert result.err.startswith("Take away every login and permit? [y/N]: ")
    assert result[:2] == ((0, "revoked: 192.0.2.7\n") if is_revoked else (1, ""))
    assert pbs("revoke", "--all", "--yes").status == is_revoked


@pytest.mark.parametrize("target", ["--all", "192.0.2.7", "192.0.2.0/24", "192.0.0.0/10"])
def test_a_deny_outranks_every_login_and_permit_before_and_after_it(pbs: Pbs, table: LoginTable, target: str) -> None:
    login(table, "192.0.2.7", "alice@example.com")
    name = "everybody" if target == "--all" else target
    assert pbs("deny", target) == Result(0, f"denied: {name} for 1d\n", "")
    assert reason(table, "192.0.2.7") == "denied"
    assert pbs("permit", "192.0.2.7", "--user", "alice@example.com").status == 0
    login(table, "192.0.2.7", "alice@example.com")
    assert reason(table, "192.0.2.7") == "denied"
    assert pbs("undeny", target) == Result(0, f"no longer denied: {name}\n", "")
    assert reason(table, "192.0.2.7") == "permit"


def test_a_denied_user_cannot_log_in_again_from_elsewhere(pbs: Pbs, table: LoginTable) -> None:
    options = ["--set", "user_domain=example.com"]
    assert pbs(*options, "deny", "Alice@Example.com") == Result(0, "denied: Alice@Example.com for 1d\n", "")
    for address in ("192.0.2.7", "198.51.100.7"):
        login(table, address, "alice@example.com")
        assert reason(table, address) == "denied_user"
    login(table, "198.51.100.8", "bob@example.com")
    assert reason(table, "198.51.100.8", "bob@example.com") == "login"
    assert pbs(*options, "undeny", "alice").status == 0
    assert reason(table, "192.0.2.7") == "login"


def test_a_denied_user_who_may_be_logged_in_without_a_domain_is_hinted_at(pbs: Pbs, table: LoginTable) -> None:
    login(table, "192.0.2.7", "Alice")
    login(table, "192.0.2.8", "bob@example.com")
    said = pbs("deny", "alice@example.com", "bob@example.com", "192.0.2.9").err
    assert said == (
        "pbs-policy: a login as alice may relay as before: if that is alice@example.com, set user_domain, or "
        "pbs-policy deny alice\n"
    )
    assert reason(table, "192.0.2.7", "carol@example.com") == "login"
    assert pbs("deny", "alice").err == ""
    assert reason(table, "192.0.2.7", "carol@example.com") == "denied_user"
    assert pbs("--set", "user_domain=example.com", "deny", "alice@example.com").err == ""


def test_a_wider_permit_that_stays_is_said(pbs: Pbs, table: LoginTable) -> None:
    for network in ("192.0.2.0/24", "192.0.0.0/16", "192.0.2.0/30"):
        assert pbs("permit", network, "--user", "scanner@example.com").status == 0
    result = pbs("revoke", "192.0.2.7")
    assert result.out == "nothing to revoke for 192.0.2.7\n"
    assert result.err == (
        "pbs-policy: 192.0.2.7 may still relay by the permit for 192.0.2.0/24: revoke that, or deny 192.0.2.7\n"
        "pbs-policy: 192.0.2.7 may still relay by the permit for 192.0.0.0/16: revoke that, or deny 192.0.2.7\n"
    )
    result = pbs("revoke", "192.0.2.0/24")
    assert "192.0.2.0/24 may still relay by the permit for 192.0.0.0/16" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "who", ["alice", "a/b@example.com", "49301234567", "bob.cafe", "o'brien@example.com", "josé",
          "user:john doe", "user:jos\udce9", "user:a\x1b[31m\nb", "user:192.0.2.8", "user:all"],
)  # fmt: skip
def test_a_user_of_any_name_is_one(pbs: Pbs, table: LoginTable, who: str) -> None:
    login(table, "192.0.2.7", who.removeprefix("user:"))
    result = pbs("revoke", who)
    assert result.status == 0
    assert "revoked: 192.0.2.7 for " in result.out
    assert pbs("deny", who).status == 0
    assert all(letter.isprintable() or letter == "\n" for letter in result.out)
    login(table, "192.0.2.7", who.removeprefix("user:"))
    assert reason(table, "192.0.2.7") == "denied_user"
    assert pbs("undeny", who).status == 0


NOBODY = {
    "192.0.2.7/24": "'192.0.2.7/24' has bits set behind its prefix (did you mean 192.0.2.0/24?)",
    "192.0.2.0/": "not a network: '192.0.2.0/'",
    "alice/24": "not a network: 'alice/24'",
    "192.0.2.300": "not an IP address: '192.0.2.300'",
    "192.0.2": "not an IP address: '192.0.2'",
    "2001:db8:::7": "not an IP address: '2001:db8:::7'",
    "fe80::1%eth0": "without a zone id",
    **dict.fromkeys(["", " "], "expected an address, a network or a user"),
    **dict.fromkeys(["all", "ALL", " all ", "Everybody"], "for everybody it is --all"),
    **dict.fromkeys([
        "192.0.2.7;", "192.0.2.7,192.0.2.8", "192.0.2.7 192.0.2.8", "192.0.2.*", "192.0.2.0-192.0.2.255",
        "192.0.2.7:25", "192.0.2.7\u00a0", "192.0.2.x", "1\uff19\uff12.0.2.7", "[2001:db8::1]", "2001:db8::g",
        "2001:db8::1\u200b", "<alice@example.com>", '"alice"@example.com', "'alice'", "alice@example.com ", "alice@",
        "a@b@c",
        "bob,carol", "alice@example.com\t", "*", "user:", "user: ", "a*@example.com", "everyone", "--all", "-rf",
    ], ""),
}  # fmt: skip
"""What is neither address nor user, and what is said of it. A deny of a user of such a name would hold for nobody,
and the address would still relay."""


@pytest.mark.parametrize("command", ["revoke", "deny", "undeny", "show"])
def test_an_argument_that_is_nobody_is_an_error(pbs: Pbs, redis: Redis, command: str) -> None:
    for who, text in NOBODY.items():
        assert is_one_error(pbs(command, "--", who), 64, text), who
    assert redis.keys() == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["revoke"], "or else --all"),
        (["revoke", "192.0.2.7", "--all"], "or else --all"),
        (["undeny"], "or else --all"),
        (["revoke", "192.0.2.7", "--deny", "24h"], "No such option"),
        (["deny"], "or else --all"),
        (["permit"], "Missing argument"),
        (["deny", "192.0.2.7", "--for", "for ever"], "expected a time from 1s to 1830d"),
        (["deny", "192.0.2.7", "--for", "1h", "--reason", "a\nb"], "expected a line of at most 320"),
        (["deny", "0.0.0.0/0", "--for", "1h"], "0.0.0.0/0 is everybody, which is denied with --all"),
        (["deny", "::/0", "--for", "1h"], "::/0 is everybody"),
        (["deny", "@example.com", "--for", "1h"], "a whole domain cannot be denied"),
    ],
)
def test_wrong_usage_changes_nothing(
    pbs: Pbs, redis: Redis, table: LoginTable, arguments: list[str], text: str
) -> None:
    login(table, "192.0.2.7", "alice@example.com")
    before = sorted(redis.keys())
    assert is_one_error(pbs(*arguments), 64, text)
    assert sorted(redis.keys()) == before


# --- denied and undeny


def test_denies_are_listed_with_reason_and_time_left(pbs: Pbs, redis: Redis) -> None:
    assert pbs("denied") == Result(0, "", "")
    assert pbs("denied", "-o", "json") == Result(0, "[]\n", "")
    reasons = {"192.0.2.7": "spam", "2001:db8::/32": "", "alice@example.com": "stolen", "--all": "x"}
    for target, text in reasons.items():
        assert pbs("deny", target, "--for", "9030", "--reason", text).status == 0
    redis.set(KEYS.deny("198.51.100.7"), "by hand")
    shown = json.loads(pbs("denied", "--json").out)
    expiries = [deny["expires_at"] for deny in shown if deny["client_address"] != "198.51.100.7"]
    assert all(9000 < read_time(each) - time.time() <= 9030 for each in expiries)
    assert sorted((deny["client_address"] or "", deny["user"], deny["reason"]) for deny in shown) == [
        ("", "alice@example.com", "stolen"),
        ("192.0.2.7", None, "spam"),
        ("198.51.100.7", None, "by hand"),
        ("2001:db8::/32", None, None),
        (EVERYBODY, None, "x"),
    ]
    assert {(deny["kind"], deny["by"]) for deny in shown} == {("deny", "administrator")}
    table = re.sub(r"\d\d:\d\d", "HH:MM", pbs("denied").out)
    assert table.startswith("DENIED             LEFT           BY             REASON\n")
    assert "198.51.100.7       no end         administrator  by hand\n" in table
    assert "2001:db8::/32      2h 30m, HH:MM  administrator\n" in table


def test_a_deny_that_somebody_else_wrote_is_shown_safely(pbs: Pbs, redis: Redis) -> None:
    redis.set(b"pbs:deny-user:jos\xe9\x1b[31m", b"\xff\x1b[2J\n", ex=HOUR)
    result = pbs("denied")
    assert all(letter.isprintable() or letter == "\n" for letter in result.out)
    assert len(result.out.splitlines()) == 2
    assert json.loads(pbs("denied", "-o", "jsonl").out)["user"] == "jos\ufffd\x1b[31m"
    assert pbs("denied", "-o", "tsv").out.splitlines()[1].split("\t")[2] == "jos\ufffd\\u001b[31m"


def test_undeny_ends_one_deny_and_says_if_there_was_none(pbs: Pbs, table: LoginTable) -> None:
    assert pbs("undeny", "192.0.2.7") == Result(1, "not denied: 192.0.2.7\n", "")
    assert pbs("deny", "192.0.2.7", "--for", "1h").status == 0
    assert pbs("deny", "192.0.2.0/24", "--for", "1h").status == 0
    result = pbs("undeny", "192.0.2.7")
    assert result[:2] == (0, "no longer denied: 192.0.2.7\n")
    assert result.err == "pbs-policy: 192.0.2.0/24 is denied: pbs-policy undeny 192.0.2.0/24\n"
    login(table, "192.0.2.7", "alice@example.com")
    assert reason(table, "192.0.2.7") == "denied"
    assert pbs("undeny", "192.0.2.0/24").status == 0
    assert reason(table, "192.0.2.7") == "login"
    assert pbs("undeny", "alice@example.com") == Result(1, "not denied: alice@example.com\n", "")
    assert pbs("undeny", "--all").status == 1


def test_the_prefix_length_of_a_network_is_known_longer_than_it_lasts(pbs: Pbs, redis: Redis) -> None:
    assert pbs("permit", "192.0.2.0/24", "--user", "scanner@example.com", "--for", "1h").status == 0
    assert pbs("permit", "192.0.2.0/28", "--user", "scanner@example.com", "--for", "1m").status == 0
    value = redis.get(KEYS.permit_networks)
    assert isinstance(value, bytes)
    assert parse_lengths(value) == {(4, 24), (4, 28)}
    assert int(redis.pttl(KEYS.permit_networks)) > int(redis.pttl(KEYS.permit("192.0.2.0/24")))


# --- several at once, and standard input


def test_several_are_permitted_denied_undenied_and_revoked_at_once(pbs: Pbs, table: LoginTable) -> None:
    assert pbs("permit", "192.0.2.7", "192.0.2.8", "192.0.2.7", "--for", "1h").out.splitlines() == [
        "192.0.2.7 may relay for 1h", "192.0.2.8 may relay for 1h",
    ]  # fmt: skip
    assert pbs("deny", "192.0.2.0/24", "alice@example.com").out.splitlines() == [
        "denied: 192.0.2.0/24 for 1d", "denied: alice@example.com for 1d",
    ]  # fmt: skip
    assert reason(table, "192.0.2.8") == "denied"
    assert pbs("undeny", "192.0.2.0/24", "192.0.2.9", "alice@example.com")[:2] == (
        1, "no longer denied: 192.0.2.0/24\nnot denied: 192.0.2.9\nno longer denied: alice@example.com\n",
    )  # fmt: skip
    assert pbs("revoke", "192.0.2.7", "192.0.2.9") == Result(
        1, "revoked: 192.0.2.7\nnothing to revoke for 192.0.2.9\n", ""
    )
    assert pbs("revoke", "192.0.2.8").status == 0


def test_a_dash_stands_for_the_lines_of_standard_input(pbs: Pbs, table: LoginTable) -> None:
    lines = b"# the second floor\n192.0.2.7\n\n  2001:db8::/64  \r\n192.0.2.7"
    for command, said in (
        ("permit", "{} may relay for 8h\n"), ("deny", "denied: {} for 1d\n"), ("undeny", "no longer denied: {}\n"),
        ("revoke", "revoked: {}\n"),
    ):  # fmt: skip
        result = pbs(command, "192.0.2.8", "-", given=lines)
        assert result == Result(0, "".join(map(said.format, ("192.0.2.8", "192.0.2.7", "2001:db8::/64"))), "")
    assert list(table.entries()) == []


@pytest.mark.parametrize("command", ["permit", "revoke", "deny", "undeny"])
@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ("192.0.2.7\n192.0.2.300\n", "standard input, line 2: not an IP address: '192.0.2.300'"),
        ("\n# nobody\n", "standard input names nobody"),
        ("", "standard input names nobody"),
        ("192.0.2.7\n" * 2_000_000, "standard input has more than 16,777,216 bytes"),
    ],
)
def test_a_fault_in_one_line_leaves_everything_as_it_is(
    pbs: Pbs, redis: Redis, command: str, lines: str, text: str
) -> None:
    assert is_one_error(pbs(command, "192.0.2.9", "-", given=lines.encode()), 64, text)
    assert redis.keys() == []


# --- who did it


def test_each_change_is_one_line_in_syslog_with_the_account_that_made_it(
    pbs: Pbs, table: LoginTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "carol\n\x1b[2J x=y")
    with TemporaryDirectory(prefix="pbs-") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(f"{folder}/log")
        syslog.settimeout(10)
        monkeypatch.setattr("pbs_policy.log.writers.SYSLOG", f"{folder}/log")
        by = f'account={pwd.getpwuid(os.getuid()).pw_name} sudo_user="carol??[2J x=y"'
        login(table, "192.0.2.7", "alice@example.com")
        dump = tmp_path / "table.jsonl"
        assert pbs("export", str(dump)).status == 0
        for arguments, said in (
            (["permit", "192.0.2.8", "--sender", "@example.com", "--for", "90d", "--note", "second floor"],
             'command=permit client_address=192.0.2.8 senders=@example.com for=90d note="second floor"'),
            (["deny", "alice@example.com", "--reason", "spam"],
             "command=deny user=alice@example.com for=1d reason=spam"),
            (["undeny", "--all"], ""),
            (["undeny", "alice@example.com"], "command=undeny user=alice@example.com"),
            (["revoke", "192.0.2.9"], ""),
            (["revoke", "alice@example.com"], "command=revoke user=alice@example.com revoked=1"),
            (["deny", "--all", "--for", "1h"], "command=deny client_address=all for=1h"),
            (["import", "--dry-run", str(dump)], ""),
            (["import", str(dump)],
             f'command=import file={dump} result="written: 1 login, 0 permits, 0 denies"'),
        ):  # fmt: skip
            pbs(*arguments)
            if said:
                line = syslog.recv(4096).decode()
                assert re.fullmatch(r"<22>\w{3} [ \d]\d [\d:]{8} pbs-policy\[\d+\]: info: (.*)", line)
                assert line.partition("info: ")[2] == f"{said} {by}"
        pbs("--set", "log_format=json", "deny", "192.0.2.7")
        assert "command=deny" in json.loads(syslog.recv(4096).partition(b": ")[2])["message"]


def renewed(table: LoginTable, address: str, user: str, seconds_ago: int = 5) -> None:
    """A login that a session has renewed."""
    write_login(table, address, Record(int(table.now()) - seconds_ago, "imap", user, SESSION), HOUR)


CONNECTED = "pbs-policy: {} is still connected to Dovecot, so the login is renewed: deny {} too\n"


@pytest.mark.parametrize("who", ["192.0.2.7", "192.0.2.0/24", "alice@example.com", "--all"])
def test_who_is_revoked_while_still_connected_is_told_of(pbs: Pbs, table: LoginTable, who: str) -> None:
    everybody = who == "--all"
    told = CONNECTED.format("somebody" if everybody else who, "--all" if everybody else who)
    renewed(table, "192.0.2.7", "alice@example.com")
    result = pbs("revoke", who)
    assert (result.status, result.err) == (0, told)
    assert "revoked: 192.0.2.7" in result.out
    login(table, "192.0.2.7", "alice@example.com")
    assert pbs("revoke", who).err == "", "a login that no session has renewed"
    renewed(table, "192.0.2.7", "alice@example.com", seconds_ago=200)
    assert pbs("revoke", who).err == "", "a session that has ended since"


@pytest.mark.parametrize("deny", ["192.0.2.0/24", "alice@example.com", "--all"])
@pytest.mark.parametrize("who", ["192.0.2.7", "alice@example.com", "--all"])
def test_who_is_denied_does_not_come_back_and_nothing_is_told(
    pbs: Pbs, table: LoginTable, who: str, deny: str
) -> None:
    renewed(table, "192.0.2.7", "alice@example.com")
    assert pbs("deny", deny).status == 0
    assert pbs("revoke", who).err == ""


def test_of_several_who_are_connected_one_who_is_not_denied_is_enough(pbs: Pbs, table: LoginTable) -> None:
    for number in range(1, 150):
        renewed(table, f"192.0.2.{number}", f"user{number}@example.com")
    assert pbs("deny", "192.0.2.0/25").status == 0
    assert pbs("revoke", "192.0.2.0/25").err == ""
    assert "is still connected" in pbs("revoke", "192.0.2.0/24").err
