"""Denies that hold: none is shortened in silence, auto_deny's are its own, and what Redis may forget is said."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pbs_policy.address import ClientAddresses
from pbs_policy.cli import run
from pbs_policy.decision.check import Enquiry, check
from pbs_policy.decision.denies import Denies
from pbs_policy.decision.rules import DEFER, DUNNO, OK, Rules
from pbs_policy.decision.words import explain
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.postfix.protocol import as_request
from pbs_policy.postfix.query import serialise_request
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import Keys
from pbs_policy.table.listing import ADMINISTRATOR, AUTO_DENY
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.networks import parse_lengths
from pbs_policy.table.records import Permit, Record
from pbs_policy.table.rows import write_time
from tests.commands import Pbs, Result, is_one_error
from tests.manager import Manager
from tests.service import SERVE, Service
from tests.stores import connect, table_on, write_login

KEYS = Keys("pbs:")
DAY = 86_400


def key_of(who: str) -> bytes:
    return KEYS.deny_user(who.encode()) if "@" in who else KEYS.deny(who.replace("--all", "all"))


# --- none is shortened in silence


@pytest.mark.parametrize("who", ["192.0.2.7", "192.0.2.0/24", "2001:db8::7", "alice@example.com", "--all"])
def test_a_shorter_deny_leaves_the_longer_one_and_says_so(pbs: Pbs, redis: Redis, who: str) -> None:
    name = "everybody" if who == "--all" else who
    assert pbs("deny", who, "--for", "30d", "--reason", "spam").status == 0
    result = pbs("deny", who, "--for", "1s", "--reason", "mistake")
    kept = f"denied already: {re.escape(name)} for (29d 23h|30d) still; that stays as it is, --replace would "
    assert (result.status, result.err) == (0, "")
    assert re.match(kept, result.out)
    assert redis.get(key_of(who)) == b"spam"
    assert int(redis.ttl(key_of(who))) > 29 * DAY
    assert pbs("deny", who, "--for", "1h", "--reason", "mistake", "--replace").out.startswith(f"denied: {name}")
    assert redis.get(key_of(who)) == b"mistake"
    assert int(redis.ttl(key_of(who))) <= 3600
    assert pbs("deny", who, "--for", "2h").out.startswith(f"denied: {name} for 2h\n")


def test_a_deny_without_an_end_is_longer_than_any(pbs: Pbs, redis: Redis) -> None:
    redis.set(KEYS.deny("192.0.2.7"), "by hand")
    result = pbs("deny", "192.0.2.7", "--for", "1830d")
    assert "denied already: 192.0.2.7 without an end; that stays as it is" in result.out
    assert redis.ttl(KEYS.deny("192.0.2.7")) == -1


@pytest.mark.parametrize("who", ["192.0.2.7", "192.0.2.0/24", "2001:db8::7", "alice@example.com", "--all"])
def test_a_key_of_another_type_is_no_deny_and_is_overwritten_by_one(pbs: Pbs, redis: Redis, who: str) -> None:
    for key in (key_of(who), KEYS.deny_networks, KEYS.user_denies):
        redis.hset(key, "written", "by hand")
    name = "everybody" if who == "--all" else who
    assert pbs("deny", who, "--for", "1h", "--reason", "spam").out.startswith(f"denied: {name} for 1h\n")
    assert redis.get(key_of(who)) == b"spam"
    assert 0 < int(redis.ttl(key_of(who))) <= 3600
    network = {"192.0.2.0/24": "4/24", "2001:db8::7": "6/128"}.get(who)
    if network:
        assert redis.get(KEYS.deny_networks) == network.encode()
    if "@" in who:
        assert redis.get(KEYS.user_denies) == b"1"


@pytest.mark.parametrize("who", ["192.0.2.0/24", "2001:db8::7"])
def test_a_later_deny_gives_no_expiry_to_what_a_deny_without_one_is_found_by(
    pbs: Pbs, redis: Redis, table: LoginTable, who: str
) -> None:
    redis.set(KEYS.deny("198.51.100.0/25"), "by hand")
    redis.set(KEYS.deny_networks, "4/25")
    assert pbs("deny", who, "--for", "1s").status == 0
    assert redis.ttl(KEYS.deny_networks) == -1
    lengths = table.read([KEYS.deny_networks])[0][0]
    assert lengths is not None
    assert set(lengths.split()) > {b"4/25"}


def test_a_longer_deny_that_comes_in_between_is_not_overwritten(table: LoginTable, redis: Redis) -> None:
    real, came = table.redis.rewrite, list[Any]()

    def rewrite(key: bytes, reads: Any, command: Callable[[Any], Any]) -> bool:
        def late(replies: Any) -> Any:
            if not came:
                came.append(redis.set(KEYS.deny_user(b"alice@example.com"), "of another", ex=30 * DAY))
            return command(replies)

        return real(key, reads, late)

    table.redis.rewrite = rewrite  # type: ignore[method-assign]
    stays = table.deny_user(b"alice@example.com", "late", 60)
    assert stays is not None
    assert stays > 29 * DAY
    assert redis.get(KEYS.deny_user(b"alice@example.com")) == b"of another"


# --- auto_deny's are its own


def test_auto_denies_are_listed_ended_and_carried_on_as_such(
    pbs: Pbs, redis: Redis, table: LoginTable, tmp_path: Path
) -> None:
    redis.set(KEYS.auto_deny("192.0.2.7"), "over twice its cap of 2/1h", ex=3600)
    redis.set(KEYS.auto_deny("2001:db8:1:2::/64"), "over twice its cap of 2/1h", ex=3600)
    redis.set(KEYS.auto_deny_networks, b"6/64", ex=3600)
    assert pbs("deny", "192.0.2.7", "--for", "30d", "--reason", "spam").status == 0
    shown = sorted((each.target, each.by) for each in table.denies())
    expected = [("192.0.2.7", ADMINISTRATOR), ("192.0.2.7", AUTO_DENY), ("2001:db8:1:2::/64", AUTO_DENY)]
    assert shown == expected
    dump = tmp_path / "table.jsonl"
    assert pbs("export", str(dump)).err == ""
    redis.flushall()
    assert pbs("import", str(dump)).out == "written: 0 logins, 0 permits, 3 denies\n"
    assert sorted((each.target, each.by) for each in table.denies()) == expected
    lengths = redis.get(KEYS.auto_deny_networks)
    assert isinstance(lengths, bytes)
    assert parse_lengths(lengths) == {(6, 64)}
    assert pbs("undeny", "192.0.2.7") == Result(0, "no longer denied: 192.0.2.7\n", "")
    assert [each.target for each in table.denies()] == ["2001:db8:1:2::/64"]
    assert pbs("undeny", "2001:db8:1:2::/64").status == 0
    assert list(table.denies()) == []


# --- under another ipv6_prefix


@pytest.mark.parametrize(("before", "after"), [(128, 64), (64, 128)])
def test_a_deny_of_another_ipv6_prefix_is_carried_on_and_ended(
    pbs: Pbs, redis: Redis, table: LoginTable, tmp_path: Path, before: int, after: int
) -> None:
    address = "2001:db8:1:2::7"
    assert pbs("--set", f"ipv6_prefix={before}", "deny", address, "--for", "1h").status == 0
    (deny,) = table.denies()
    dump = tmp_path / "table.jsonl"
    now = ("--set", f"ipv6_prefix={after}")
    assert pbs(*now, "export", str(dump)).err == ""
    redis.flushall()
    assert pbs(*now, "import", str(dump)).out == "written: 0 logins, 0 permits, 1 deny\n"
    assert [each.target for each in table.denies()] == [deny.target]
    if before == 64:
        result = pbs(*now, "undeny", address)
        assert result == Result(
            1, f"not denied: {address}\n", f"pbs-policy: {deny.target} is denied: pbs-policy undeny {deny.target}\n"
        )
        address = deny.target
    assert pbs(*now, "undeny", address).status == 0
    assert list(table.denies()) == []


# --- the file


def test_denied_and_undeny_know_the_file(pbs: Pbs, tmp_path: Path) -> None:
    file = tmp_path / "denies"
    file.write_text("192.0.2.0/24  hosting\nalice@example.com\n")
    with_file = ("--set", f"denies={file}")
    assert pbs("deny", "192.0.2.7", "--for", "1h", "--reason", "spam").status == 0
    shown = json.loads(pbs(*with_file, "denied", "--json").out)
    names = ("client_address", "user", "by", "reason")
    assert [tuple(each[name] for name in names) for each in shown] == [
        ("192.0.2.0/24", None, f"{file}:1", "hosting"),
        (None, "alice@example.com", f"{file}:2", None),
        ("192.0.2.7", None, ADMINISTRATOR, "spam"),
    ]
    assert [each["expires_at"] is None for each in shown] == [True, True, False]
    assert pbs(*with_file, "undeny", "192.0.2.7") == Result(
        0, "no longer denied: 192.0.2.7\n", f"pbs-policy: 192.0.2.0/24 is denied by {file}:1: take that line out\n"
    )
    assert f"is denied by {file}:2" in pbs(*with_file, "undeny", "Alice@Example.com").err
    assert f"is denied by {file}:1" in pbs(*with_file, "undeny", "192.0.2.0/28").err
    assert pbs(*with_file, "undeny", "192.0.0.0/16").err == ""
    file.write_text("all\n")
    assert is_one_error(pbs(*with_file, "denied"), 78, f"denies: {file}:1: 'all'")


# --- what Redis may forget


@pytest.mark.parametrize("durable", [True, False])
def test_where_redis_may_forget_a_deny_or_permit_the_command_says_so(
    own_redis: Callable[..., PrivateRedis], capsys: pytest.CaptureFixture[str], tmp_path: Path, durable: bool
) -> None:
    server = own_redis("--appendonly", "yes" if durable else "no", "--save", "3600 1")
    file = tmp_path / "pbs-policy.conf"
    file.write_text(f"redis_url = {server.url}\n")
    for arguments in (
        ["permit", "192.0.2.7", "--user", "scanner@example.com"], ["deny", "192.0.2.7", "--for", "1h"],
    ):  # fmt: skip
        assert run(["-c", str(file), *arguments]) == os.EX_OK
        said = capsys.readouterr().err
        assert ("forgets what is newer than its last save " in said) is not durable
        assert (". To keep it: redis-cli CONFIG SET appendonly yes, then CONFIG REWRITE\n" in said) is not durable
    assert run(["-c", str(file), "revoke", "192.0.2.7"]) == os.EX_OK
    assert capsys.readouterr().err == ""


def test_who_may_not_ask_whether_redis_forgets_is_told_nothing(
    own_redis: Callable[..., PrivateRedis], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server = own_redis()
    with connect(RedisUrl.parse(server.url)) as redis:
        redis.execute_command("ACL", "SETUSER", "default", "-info")
    file = tmp_path / "pbs-policy.conf"
    file.write_text(f"redis_url = {server.url}\n")
    assert run(["-c", str(file), "deny", "192.0.2.7", "--for", "1h"]) == os.EX_OK
    assert capsys.readouterr().err == ""


# --- what an import leaves out


def test_an_import_names_the_addresses_that_may_never_relay(pbs: Pbs, table: LoginTable, tmp_path: Path) -> None:
    file = tmp_path / "table.jsonl"
    line = {"kind": "login", "user": "alice@example.com", "service": "imap", "since": write_time(table.now())}
    addresses = ["192.0.2.7", *[f"127.0.0.{number}" for number in range(1, 25)]]
    expires_at = write_time(table.now() + 3600)
    lines = [json.dumps({**line, "client_address": each, "expires_at": expires_at}) for each in addresses]
    file.write_text("\n".join(lines))
    result = pbs("import", str(file))
    assert result.out == "written: 1 login, 0 permits, 0 denies; 24 of addresses that may never relay here\n"
    said = result.err.splitlines()
    assert said[0] == "pbs-policy: skipped: 127.0.0.1 may never relay here: loopback"
    assert said[20:] == ["pbs-policy: and more such addresses"]


# --- what the decision makes of them


def reason(
    table: LoginTable,
    address: str,
    sender: str = "alice@example.com",
    *,
    ipv6_prefix: int = 128,
    denies: Denies | None = None,
    rules: Rules | None = None,
) -> str:
    """Why the service would permit or refuse this relay attempt; `check` says the same."""
    request = as_request(serialise_request({"client_address": address, "sender": sender}))
    client = ClientAddresses(ipv6_prefix).parse(address)
    decision = check(Enquiry(table, rules or Rules(), client, request, denies=denies))
    explained = explain(Enquiry(table, rules or Rules(), client, request, denies=denies))
    assert explained.decision.reason == decision.reason
    assert [row.reason for row in explained.rows if row.verdict == "refuse"][:1] == (
        [] if decision.action == OK else [decision.reason]
    )
    return decision.reason


def log_in(table: LoginTable, address: str, user: str = "alice@example.com", *, ipv6_prefix: int = 128) -> None:
    client = ClientAddresses(ipv6_prefix).parse(address).text
    write_login(table, client, Record(int(table.now()), "imap", user), 3600)


def deny(table: LoginTable, text: str, *, ipv6_prefix: int = 128, is_automatic: bool = False) -> None:
    target = ClientAddresses(ipv6_prefix).parse_target(text)
    table.deny(target, "spam", 3600, is_automatic=is_automatic)


@pytest.mark.parametrize("is_automatic", [False, True])
@pytest.mark.parametrize(
    ("denied", "before", "after", "expected"),
    [
        # One address: it, and not the others of the network that is now a client.
        ("2001:db8:1:2::7", 128, 64, {"2001:db8:1:2::7": "denied", "2001:db8:1:2::8": "login"}),
        # A client's network: each address of it.
        ("2001:db8:1:2::7", 64, 128,
         {"2001:db8:1:2::7": "denied", "2001:db8:1:2::8": "denied", "2001:db8:1:3::7": "login"}),
        *[("2001:db8:1::/48", before, after, {"2001:db8:1:2::7": "denied"})
          for before, after in ((128, 64), (64, 128), (64, 56), (56, 64))],
    ],
)  # fmt: skip
def test_a_deny_holds_for_whom_it_was_given_under_another_ipv6_prefix(
    table: LoginTable, denied: str, before: int, after: int, expected: dict[str, str], is_automatic: bool
) -> None:
    deny(table, denied, ipv6_prefix=before, is_automatic=is_automatic)
    for address in expected:
        log_in(table, address, ipv6_prefix=after)
    assert {address: reason(table, address, ipv6_prefix=after) for address in expected} == expected


def test_an_automatic_deny_and_an_administrators_each_hold_by_themselves(table: LoginTable, redis: Redis) -> None:
    log_in(table, "192.0.2.7")
    deny(table, "192.0.2.7", is_automatic=True)
    assert reason(table, "192.0.2.7") == "denied"
    deny(table, "192.0.2.7")
    redis.delete(KEYS.auto_deny("192.0.2.7"))
    assert reason(table, "192.0.2.7") == "denied"
    redis.delete(KEYS.deny("192.0.2.7"))
    assert reason(table, "192.0.2.7") == "login"


def denies_of(tmp_path: Path, text: str, ipv6_prefix: int = 128) -> Denies:
    file = tmp_path / "denies"
    file.write_text(text)
    return Denies.load(file, ClientAddresses(ipv6_prefix), "")


@pytest.mark.parametrize("line", ["192.0.2.7", "192.0.2.0/24", "0.0.0.0/0"])
def test_whom_the_file_denies_no_login_or_permit_lets_relay(table: LoginTable, tmp_path: Path, line: str) -> None:
    denies = denies_of(tmp_path, f"{line} spam\n")
    log_in(table, "192.0.2.7")
    log_in(table, "2001:db8::7")
    table.permit(ClientAddresses().parse_target("192.0.2.7"), Permit(int(table.now()), "scanner@example.com"), 3600)
    assert reason(table, "192.0.2.7") == "permit"
    assert reason(table, "192.0.2.7", denies=denies) == "denied"
    assert reason(table, "2001:db8::7", denies=denies) == "login"


def test_a_user_whom_the_file_denies_relays_from_nowhere_and_nobody_does_in_their_name(
    table: LoginTable, tmp_path: Path
) -> None:
    denies = denies_of(tmp_path, "Alice@Example.com stolen\n")
    log_in(table, "192.0.2.7", "alice@example.com")
    log_in(table, "192.0.2.8", "bob@example.com")
    assert reason(table, "192.0.2.7", denies=denies) == "denied_user"
    assert reason(table, "192.0.2.7", "carol@example.com", denies=denies) == "denied_user"
    assert reason(table, "192.0.2.8", "alice@example.com", denies=denies) == "denied_user"
    assert reason(table, "192.0.2.8", "bob@example.com", denies=denies) == "login"


def test_where_the_file_denies_a_user_an_uncertain_sender_is_refused(table: LoginTable, tmp_path: Path) -> None:
    denies = denies_of(tmp_path, "alice@example.com stolen\n")
    log_in(table, "192.0.2.8", "bob@example.com")
    for sender in ("alice@example.com.", "alice%example.com", "example.com!alice", "alice"):
        assert reason(table, "192.0.2.8", sender, denies=denies) == "sender_uncertain", sender
        assert reason(table, "192.0.2.8", sender) == "login", sender


def test_check_names_the_line_of_the_file_and_its_reason(pbs: Pbs, table: LoginTable, tmp_path: Path) -> None:
    file = tmp_path / "denies"
    file.write_text("192.0.2.7 spam since Monday\nalice@example.com stolen\n")
    log_in(table, "192.0.2.7", "bob@example.com")
    log_in(table, "192.0.2.8", "alice@example.com")
    with_file = ("--set", f"denies={file}")
    said = pbs(*with_file, "check", "192.0.2.7", "--sender", "bob@example.com")
    assert said.status == 1
    assert f"192.0.2.7 is denied: spam since Monday, {file}:1" in said.out
    assert f"change: take line 1 out of {file}" in said.out
    assert "(reason=denied)" in said.out
    said = pbs(*with_file, "check", "192.0.2.8", "--sender", "bob@example.com")
    assert f"alice@example.com is denied: stolen, {file}:2" in said.out
    assert f"change: take line 2 out of {file}" in said.out
    assert "(reason=denied_user)" in said.out
    assert pbs(*with_file, "check", "-q", "192.0.2.7").status == 1


# --- the service


def asked(service: Service, address: str, sender: str = "alice@example.com") -> str:
    return service.ask(address, sender=sender)


def test_the_file_holds_while_redis_is_away_and_is_read_anew(
    start_service: Callable[..., Service], own_redis: Callable[..., PrivateRedis], tmp_path: Path
) -> None:
    server = own_redis()
    file = tmp_path / "denies"
    file.write_text("192.0.2.7 spam\n")
    with connect(RedisUrl.parse(server.url)) as redis:
        for address in ("192.0.2.7", "192.0.2.8"):
            redis.set(f"pbs:login:{address}", b"1763881234 imap alice@example.com", ex=600)
    service = start_service(redis_url=server.url, denies=str(file))
    assert (asked(service, "192.0.2.7"), asked(service, "192.0.2.8")) == (DUNNO, OK)
    file.write_text("192.0.2.8 spam\nall\n")
    assert service.waits_to_log(f"error: denies is not read anew, what it said before holds: {file}:2: 'all'")
    assert (asked(service, "192.0.2.7"), asked(service, "192.0.2.8")) == (DUNNO, OK)
    file.write_text("192.0.2.8 spam\nalice@example.com\n")
    assert service.waits_to_log("info: denies was read anew")
    assert wait_until(lambda: (asked(service, "192.0.2.7"), asked(service, "192.0.2.8")) == (DUNNO, DUNNO))
    server.stop()
    assert asked(service, "192.0.2.8") == DUNNO
    assert wait_until(lambda: asked(service, "192.0.2.7") == DEFER)
    assert service.log().count("denies is not read anew") == 1


def test_the_service_does_not_start_on_a_faulty_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "denies"
    file.write_text("192.0.2.7\nall\n!192.0.2.8\n")
    assert run(["--set", f"denies={file}", *SERVE]) == os.EX_CONFIG
    said = capsys.readouterr().err
    assert f"denies: {file}:2: 'all'" in said
    assert f"denies: {file}:3: '!192.0.2.8'" in said


@pytest.mark.parametrize(("before", "after"), [(128, 64), (64, 128)])
def test_a_deny_holds_over_a_reload_to_another_ipv6_prefix(
    redis_server: PrivateRedis, tmp_path: Path, before: int, after: int
) -> None:
    address = "2001:db8:1:2::7"
    settings = {"redis_url": redis_server.url, "ipv6_prefix": str(before)}
    with connect(RedisUrl.parse(redis_server.url)) as redis, Manager(tmp_path, settings) as service:
        for each in (address, "2001:db8:1:2::/64"):
            redis.set(f"pbs:login:{each}", b"1763881234 imap bob@example.com", ex=600)
        assert asked(service, address) == OK
        deny(table_on(redis, "pbs:"), address, ipv6_prefix=before)
        assert asked(service, address) == DUNNO
        file = service.settings_file
        file.write_text(file.read_text().replace(f"ipv6_prefix = {before}", f"ipv6_prefix = {after}"))
        service.reload()
        assert asked(service, address) == DUNNO
        redis.flushall()
        redis.set(f"pbs:login:{address if after == 128 else '2001:db8:1:2::/64'}", b"1763881234 imap bob", ex=600)
        assert asked(service, address) == OK


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8:1:2::7"])
def test_auto_deny_shortens_no_deny_of_an_administrator(
    start_service: Callable[..., Service], redis_server: PrivateRedis, address: str
) -> None:
    client = ClientAddresses(64).parse(address).text
    service = start_service(
        redis_url=redis_server.url, max_recipients_per_address="1/1h", auto_deny="1m", ipv6_prefix="64"
    )
    with connect(RedisUrl.parse(redis_server.url)) as redis:
        redis.set(f"pbs:login:{client}", b"1763881234 imap alice@example.com", ex=600)
        redis.set(KEYS.auto_deny_networks, b"6/128", ex=30)
        with service.connect() as connection:
            answers = [connection.ask(address, instance=str(number)) for number in range(6)]
        assert answers == [OK, *[DUNNO] * 5]
        assert redis.get(KEYS.auto_deny(client)) == b"over twice its cap of 1/1h"
        assert redis.exists(KEYS.deny(client)) == 0
        lengths = redis.get(KEYS.auto_deny_networks)
        assert lengths == (b"6/64 6/128" if ":" in address else b"6/128")
        if ":" in address:
            assert int(redis.ttl(KEYS.auto_deny_networks)) > int(redis.ttl(KEYS.auto_deny(client)))
