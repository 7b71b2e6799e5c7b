"""`pbs-policy check`: what it prints, and how it ends, on both worlds of the login table."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.address import ClientAddresses
from pbs_policy.decision.words import ORDER
from pbs_policy.demo.ports import free_port
from pbs_policy.table.keys import Keys
from pbs_policy.table.records import Permit, Record, serialise_permit, serialise_record
from pbs_policy.table.rows import read_time, write_time
from pbs_policy.table.users import names_of_user
from tests.commands import Pbs, Result, is_one_error
from tests.stand_ins import answering

KEYS = Keys("pbs:")
DAYS_AGO = int(time.time()) - 3 * 86_400 - 5 * 3600 - 1800
DAY = time.strftime("%d %b", time.localtime(DAYS_AGO))
LEFT = 5400 + 50  # seconds: shown as 1h 30m, however slow the machine is
ALICE = "alice@example.com"


Check = Callable[..., Result]


@pytest.fixture
def check(pbs: Pbs, settings_file: Path) -> Check:
    """Run `check` in this process on a login table of both worlds, with settings (name=value)."""

    def call(*arguments: str, given: bytes = b"", **settings: str) -> Result:
        settings_file.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        return pbs("check", *arguments, given=given)

    return call


def record_login(redis: Redis, address: str, user: str, service: str = "pop3", left: int = LEFT) -> None:
    value = serialise_record(Record(DAYS_AGO, service, user))
    for name in (b"", *names_of_user(user.encode("utf-8", "surrogateescape"), "")):
        redis.set(KEYS.login(address, name), value, ex=left)


def first_line(result: Result) -> str:
    return result.out.partition("\n")[0]


def test_an_address_that_may_relay_has_every_rule_on_a_line_of_its_own(check: Check, redis: Redis) -> None:
    record_login(redis, "192.0.2.7", ALICE)
    result = check("192.0.2.7", "--sender", ALICE)
    assert (result.status, result.err) == (0, "")
    assert result.out == (
        f"OK  192.0.2.7: may relay, logged in as {ALICE} (pop3, by script) 3d 5h ago, {DAY}, 1h 30m left "
        "(reason=login)\n"
        "  address       pass       192.0.2.7\n"
        "  permits       pass       none for 192.0.2.7\n"
        f"  logins        pass       {ALICE} (pop3, by script) 3d 5h ago, {DAY}, 1h 30m left\n"
        f"  senders       pass       {ALICE} sends, sender_match = off\n"
        "  services      pass       logged in by pop3, any service counts\n"
        "  domains       pass       alice@example.com is logged in, users of any domain count\n"
        "  recipients    pass       any recipient\n"
        "  require_tls   pass       require_tls = no\n"
        "  denies        pass       none against 192.0.2.7, all\n"
        "  end           pass       1h 30m left\n"
        f"  user          pass       {ALICE}\n"
        f"  user denies   pass       none against alice, {ALICE}\n"
        "  caps          pass       none\n"
        "  observe_only  pass       observe_only = no\n"
        "  answer        pass       OK: the service permits it; other restrictions may still refuse it, "
        "and `pbs-policy doctor` names them\n"
    )


def test_a_refusal_says_what_to_change_and_what_was_not_asked(check: Check, redis: Redis) -> None:
    record_login(redis, "192.0.2.7", ALICE)
    result = check("192.0.2.7", "--sender", "bob@example.net", sender_match="address", require_tls="yes")
    assert (result.status, result.err) == (1, "")
    assert result.out == (
        "DUNNO  192.0.2.7: there is a login or permit, but not for the sender (sender_match) "
        "(reason=sender_mismatch)\n"
        "  address       pass       192.0.2.7\n"
        "  permits       pass       none for 192.0.2.7\n"
        f"  logins        pass       {ALICE} (pop3, by script) 3d 5h ago, {DAY}, 1h 30m left\n"
        f"  senders       REFUSE     bob@example.net sends, looked for bob@example.net; logged in: {ALICE} "
        "(sender_match = address)\n"
        f"                           change: set sender_maps to a file with the line `bob@example.net {ALICE}`, "
        "or set sender_match = off\n"
        "  services      not asked\n"
        "  domains       not asked\n"
        "  recipients    not asked\n"
        "  require_tls   not asked\n"
        "  denies        not asked\n"
        "  end           not asked\n"
        "  user          not asked\n"
        "  user denies   not asked\n"
        "  caps          not asked\n"
        "  observe_only  not asked\n"
        "  answer        REFUSE     DUNNO: Postfix goes on to its next restriction, reject_unauth_destination\n"
    )


def test_quiet_prints_the_first_line_alone(check: Check, redis: Redis) -> None:
    record_login(redis, "192.0.2.7", ALICE)
    redis.set(KEYS.permit("192.0.2.8"), f"{DAYS_AGO} manual", ex=LEFT)
    redis.set(KEYS.login("2001:db8::7"), str(DAYS_AGO), ex=LEFT)
    since = f"3d 5h ago, {DAY}, 1h 30m left"
    for address, who in (
        ("192.0.2.7", f"logged in as {ALICE} (pop3, by script) {since} (reason=login)"),
        ("192.0.2.8", f"permitted for no user recorded (manual) {since} (reason=permit)"),
        ("2001:db8::7", f"logged in as no user recorded (by last_login) {since} (reason=login)"),
    ):
        line = f"OK  {address}: may relay, {who}"
        assert check("-q", address) == Result(0, line + "\n", "")
        assert first_line(check(address)) == line


@pytest.mark.parametrize("text", ["::ffff:192.0.2.7", "::FFFF:192.0.2.7"])
def test_an_address_is_shown_in_its_canonical_form(check: Check, text: str) -> None:
    lines = check(text).out.splitlines()
    assert lines[0].startswith("DUNNO  192.0.2.7: ")
    assert lines[1] == "  address       pass       192.0.2.7"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("198.51.100.7", "nobody is logged in from there, or it is too long ago (reason=no_login)"),
        ("127.0.0.1", "a loopback address is never permitted (reason=loopback)"),
        ("::", "an unspecified address is never permitted (reason=unspecified)"),
        ("169.254.1.1", "a link-local address is never permitted (reason=link_local)"),
        ("ff02::1", "a multicast or reserved address is never permitted (reason=multicast)"),
        ("203.0.113.7", "in a network that never_record excludes (reason=never_record)"),
        ("192.0.2.8", "its key in Redis has no end, and is not honoured (reason=key_without_end)"),
        ("192.0.2.9", "192.0.2.9 is denied: spam, 1h 30m left (reason=denied)"),
        ("192.0.2.10", f"{ALICE} is denied: stolen password, 1h 30m left (reason=denied_user)"),
        ("192.0.2.11", "there is a login, but by a service that does not count (services) (reason=service_mismatch)"),
        (
            "192.0.2.12",
            "over the cap, by the login or permit of bob@example.net (pop3, by script) "
            f"3d 5h ago, {DAY} (reason=cap)",
        ),
        ("192.0.2.13", "there is a permit, but not for the recipient (reason=recipient_mismatch)"),
    ],
)
def test_who_may_not_relay_is_told_why(check: Check, redis: Redis, address: str, text: str) -> None:
    for each in ("127.0.0.1", "203.0.113.7", "192.0.2.9"):
        record_login(redis, each, "bob@example.net")
    redis.set(KEYS.login("192.0.2.8"), f"{DAYS_AGO} pop3 bob@example.net")
    redis.set(KEYS.deny("192.0.2.9"), "spam", ex=LEFT)
    record_login(redis, "192.0.2.10", ALICE)
    redis.set(KEYS.deny_user(ALICE.encode()), "stolen password", ex=LEFT)
    record_login(redis, "192.0.2.11", "bob@example.net", "managesieve")
    record_login(redis, "192.0.2.12", "bob@example.net")
    redis.sadd(KEYS.counted(b"address:192.0.2.12")[0], "1")
    permit = Permit(DAYS_AGO, recipient_domains=("example.org",))
    redis.set(KEYS.permit("192.0.2.13"), serialise_permit(permit), ex=LEFT)
    settings = {"never_record": "203.0.113.0/24", "services": "pop3", "max_recipients_per_address": "1/1h"}
    for arguments in (["-q"], []):
        result = check(*arguments, address, **settings)
        assert (result.status, result.err) == (1, "")
        assert first_line(result) == f"DUNNO  {address}: {text}"
        assert result.out.count("\n") == 1 or not arguments


def test_a_session_is_encrypted_where_the_option_says_so(check: Check, redis: Redis) -> None:
    record_login(redis, "192.0.2.7", ALICE)
    assert check("192.0.2.7", "--tls", require_tls="yes").status == 0
    result = check("-q", "192.0.2.7", require_tls="yes")
    assert result == Result(1, "DUNNO  192.0.2.7: the session is not encrypted (require_tls) (reason=no_tls)\n", "")


def test_a_recipient_is_held_against_a_permit(check: Check, redis: Redis) -> None:
    permit = Permit(DAYS_AGO, recipient_domains=("example.org",))
    redis.set(KEYS.permit("192.0.2.0/24"), serialise_permit(permit), ex=LEFT)
    redis.set(KEYS.permit_networks, "4/24", ex=LEFT)
    assert check("192.0.2.7", "--recipient", "x@example.org").status == 0
    assert check("192.0.2.7", "--recipient", "x@example.com").status == 1
    assert check("192.0.2.7").status == 1


def test_sender_maps_count(check: Check, redis: Redis, tmp_path: Path) -> None:
    record_login(redis, "192.0.2.7", ALICE)
    maps = tmp_path / "senders"
    maps.write_text(f"bob@example.net {ALICE}\n")
    for arguments in (["-q"], [], ["--json"]):
        arguments = [*arguments, "192.0.2.7", "--sender", "bob@example.net"]
        assert check(*arguments, sender_match="address").status == 1
        assert check(*arguments, sender_match="address", sender_maps=str(maps)).status == 0
    maps.write_text("bob@example.net\n")
    result = check("192.0.2.7", sender_maps=str(maps))
    assert (result.status, result.out) == (os.EX_CONFIG, "")
    assert f"{maps}:1: " in result.err


def test_what_observe_only_hides_from_postfix_is_shown(check: Check, redis: Redis) -> None:
    record_login(redis, "192.0.2.7", ALICE)
    result = check("192.0.2.7", observe_only="yes")
    assert result.status == 1
    assert first_line(result).startswith(f"DUNNO  192.0.2.7: may relay, logged in as {ALICE}")
    assert "(observe_only: without it, OK)" in first_line(result)
    assert "  observe_only  REFUSE     observe_only = yes: DUNNO always\n" in result.out


@pytest.mark.parametrize("arguments", [["-q"], ["--json"], []])
def test_nothing_is_counted(check: Check, redis: Redis, arguments: list[str]) -> None:
    record_login(redis, "192.0.2.7", ALICE)
    settings = {"max_recipients_per_address": "1/1h", "max_recipients_per_user": "1/1h", "auto_deny": "1h"}
    before = set(redis.scan_iter())
    message = ["--recipient", "x@example.org", "--instance", "a1.1"]
    for _ in range(3):
        assert check(*arguments, "192.0.2.7", *message, **settings).status == 0
    assert set(redis.scan_iter()) == before


def test_json_has_the_answer_and_the_steps(check: Check, redis: Redis) -> None:
    record_login(redis, "192.0.2.7", "bob@example.net", "imap")
    record_login(redis, "192.0.2.7", ALICE)
    shown = json.loads(check("--json", "192.0.2.7").out)
    steps, others = shown.pop("steps"), shown.pop("others")
    assert LEFT - 60 < read_time(shown.pop("expires_at")) - time.time() <= LEFT
    assert shown == {
        "client_address": "192.0.2.7",
        "action": "OK",
        "reason": "login",
        "would_be": None,
        "live_action": None,
        "user": ALICE,
        "service": "pop3",
        "since": write_time(DAYS_AGO),
        "recorded_by": "script",
        "more_others": 0,
    }
    assert [step["rule"] for step in steps] == list(ORDER)
    assert steps[0] == {
        "rule": "address", "verdict": "pass", "saw": "192.0.2.7", "reason": None, "change": None, "details": [],
    }  # fmt: skip
    (other,) = others
    assert (other["user"], other["service"], other["since"]) == ("bob@example.net", "imap", shown["since"])


def test_quiet_json_is_the_answer_alone(check: Check) -> None:
    result = check("--json", "-q", "198.51.100.7")
    assert (result.status, result.err) == (1, "")
    answer = {
        "client_address": "198.51.100.7",
        "action": "DUNNO",
        "reason": "no_login",
        "would_be": None,
        "live_action": None,
        "user": None,
        "service": None,
        "since": None,
        "expires_at": None,
        "recorded_by": None,
    }
    assert json.loads(result.out) == answer
    shown = json.loads(check("--json", "198.51.100.7").out)
    assert {name: shown[name] for name in answer} == answer
    refused = next(step for step in shown["steps"] if step["verdict"] == "refuse")
    assert (refused["rule"], refused["reason"]) == ("logins", "no_login")
    assert refused["change"].startswith("log in to POP3 or IMAP from 198.51.100.7")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nonsense"], "not an IP address: 'nonsense'"),
        (["192.0.2.7", "--sender", "a\nb"], "the value of sender has a line end in it"),
        (["192.0.2.7", "--recipient", "a" * 40_000], "a line of more than 8192 bytes"),
        ([], "Missing argument 'ADDRESS...|-'"),
    ],
)
def test_wrong_usage_is_status_64(check: Check, arguments: list[str], text: str) -> None:
    assert is_one_error(check(*arguments), os.EX_USAGE, text)


def test_each_reason_is_in_words() -> None:
    from pbs_policy.cli.check import WHY
    from pbs_policy.decision.rules import FARTHEST_FIRST

    assert {*(each.reason for each in FARTHEST_FIRST), "login", "permit"} <= set(WHY)
    excluded = {ClientAddresses().parse(text).excluded for text in ("::", "::1", "fe80::1", "ff02::1")}
    assert excluded <= set(WHY)


def test_text_of_a_peer_cannot_write_to_the_terminal(check: Check, redis: Redis) -> None:
    redis.set(KEYS.login("192.0.2.7"), b"1 pop3 a\x1b[2Jb\xff\nc", ex=LEFT)
    for arguments in (["-q"], [], ["--json"]):
        result = check(*arguments, "192.0.2.7", "--sender", "x\x1b[2J@example.com")
        assert result.status == 0
        assert "\x1b" not in result.out
        assert (result.out + "x").isprintable() or all(line.isprintable() for line in result.out.splitlines())


# --- what the question leaves out


@pytest.mark.parametrize("settings", [{"sender_match": "address"}, {"sender_match": "domain"}])
def test_where_no_sender_was_given_the_advice_is_to_give_one(
    check: Check, redis: Redis, settings: dict[str, str]
) -> None:
    record_login(redis, "192.0.2.7", ALICE)
    shown = check("192.0.2.7", **settings)
    assert shown.status == 1
    assert first_line(shown).startswith("DUNNO  192.0.2.7: no sender given (--sender), and not every sender may ")
    assert f"REFUSE     no sender given; logged in: {ALICE} (sender_match = " in shown.out
    assert "change: name the sender, such as --sender alice@example.com\n" in shown.out
    assert "set " not in shown.out
    for null in ("", "<>"):
        assert "null_sender = permit" in check("192.0.2.7", "--sender", null, **settings).out
    assert check("192.0.2.7", "--sender", ALICE, **settings).status == 0
    permitted = check("192.0.2.7", null_sender="permit", **settings)
    assert "no sender given, null_sender = permit (as the null sender's)\n" in permitted.out


def test_what_a_permit_asks_for_is_to_be_given_in_the_question(check: Check, redis: Redis) -> None:
    for address, permit in (
        ("192.0.2.7", Permit(DAYS_AGO, senders=("@example.com",))),
        ("192.0.2.8", Permit(DAYS_AGO, recipient_domains=("example.org",))),
    ):
        redis.set(KEYS.permit(address), serialise_permit(permit), ex=LEFT)
    for address, said in (
        ("192.0.2.7", "name the sender, such as --sender alice@example.com"),
        ("192.0.2.8", "name the recipient, such as --recipient bob@example.net"),
    ):
        shown = check(address)
        assert shown.status == 1
        assert f"change: {said}\n" in shown.out
        assert "anew" not in shown.out


@pytest.mark.parametrize("sender", ['"alice"@example.com', "<alice@example.com>", '<"alice"@example.com>'])
def test_a_sender_is_taken_as_people_and_logs_write_it(check: Check, redis: Redis, sender: str) -> None:
    record_login(redis, "192.0.2.7", ALICE)
    shown = check("192.0.2.7", "--sender", sender, sender_match="address")
    assert shown.status == 0
    assert f"{ALICE} sends, " in shown.out


def test_a_sender_that_is_half_quoted_is_an_error(check: Check) -> None:
    assert is_one_error(check("192.0.2.7", "--sender", '"alice@example.com'), 64, "expected user@domain")


# --- what decides


@pytest.mark.parametrize(
    ("deny", "name"),
    [("deny:198.51.100.9", "198.51.100.9"), ("deny:198.51.100.0/24", "198.51.100.0/24"), ("deny:all", "everybody"),
     ("deny-user:alice@example.com", ALICE)],
)  # fmt: skip
@pytest.mark.parametrize("arguments", [[], ["-q"]])
def test_a_deny_is_in_the_headline_where_nobody_is_logged_in_either(
    check: Check, redis: Redis, deny: str, name: str, arguments: list[str]
) -> None:
    redis.set(f"pbs:{deny}", "spam", ex=LEFT)
    redis.set(KEYS.deny_networks, "4/24", ex=LEFT)
    shown = check("198.51.100.9", "--sender", ALICE, *arguments)
    assert shown.status == 1
    assert first_line(shown) == (
        f"DUNNO  198.51.100.9: {name} is denied: spam, 1h 30m left; and nobody is logged in from there "
        "(reason=no_login)"
    )


# --- several, and the running service


def test_several_addresses_are_checked_at_once(check: Check, redis: Redis) -> None:
    record_login(redis, "192.0.2.7", ALICE)
    result = check("-q", "192.0.2.7", "192.0.2.8")
    assert [line.partition(":")[0] for line in result.out.splitlines()] == ["OK  192.0.2.7", "DUNNO  192.0.2.8"]
    assert result.status == 1
    result = check("-", "--json", given=b"192.0.2.7\n")
    assert (result.status, [each["action"] for each in json.loads(result.out)]) == (0, ["OK"])
    assert [each["action"] for each in json.loads(check("--json", "192.0.2.7", "192.0.2.8").out)] == ["OK", "DUNNO"]
    assert is_one_error(check("-"), 64, "standard input names nobody")


@pytest.mark.parametrize(
    ("reply", "said", "status"),
    [
        ("OK", "answers the same", 0),
        ("DUNNO", "answers DUNNO: it has other settings or another Redis", 1),
        ("DEFER_IF_REJECT 4.3.0 try again", "answers DEFER_IF_REJECT: it cannot ask Redis", 75),
    ],
)
def test_the_running_service_is_asked_the_same_and_its_answer_counts(
    check: Check, redis: Redis, reply: str, said: str, status: int
) -> None:
    record_login(redis, "192.0.2.7", ALICE)
    with answering(f"action={reply}\n\n".encode()) as service:
        settings = {"listen": str(service.listener)}
        shown = check("--live", "-q", "192.0.2.7", "--sender", ALICE, **settings)
        assert shown.status == status
        assert first_line(shown).startswith("OK  192.0.2.7: ")
        assert f"  the running service {said}" in shown.out
        assert f"({service.listener})\n" in shown.out
        assert f"sender={ALICE}\npbs_only_looks=yes\n\n".encode() in service.requests[0]
        assert json.loads(check("--live", "--json", "192.0.2.7", **settings).out)["live_action"] == reply


def test_where_no_service_runs_that_is_said(check: Check, redis: Redis) -> None:
    record_login(redis, "192.0.2.7", ALICE)
    listener = f"inet:127.0.0.1:{free_port()}"
    said = f"no reply from the policy service at {listener}"
    assert is_one_error(check("--live", "192.0.2.7", listen=listener), 69, said)
