"""`pbs-policy export` and `import`: what is carried from one Redis to another, and what is not."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from pbs_policy.address import ClientAddresses
from pbs_policy.cap import Cap
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.table.importing import Import
from pbs_policy.table.keys import Keys
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.records import Permit, Record
from pbs_policy.table.rows import read_time, write_time
from pbs_policy.table.transfer import LONGEST_LINE, export_lines, parse_line, parse_lines, read_lines
from tests.commands import Pbs, Result, is_one_error
from tests.stores import Clock, table_on, write_login

KEYS = Keys("pbs:")
NOW = 1_790_000_000
HOUR = 3600
ADDRESSES = ClientAddresses()
FULL = Permit(NOW, "scanner@example.com", ("@example.com",), ("example.net",), Cap(20, HOUR), "second floor")


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def table(redis: Redis, clock: Clock) -> LoginTable:
    return table_on(redis, "pbs:", now=clock)


def stand(redis: Redis) -> dict[bytes, tuple[bytes, int]]:
    """Everything there is: value, and the milliseconds left."""
    keys: list[Any] = list(redis.scan_iter())
    ask: Any = redis  # whose types allow for asyncio's answers too
    return {key: (ask.get(key), ask.pttl(key)) for key in keys}


def are_alike(one: dict[bytes, tuple[bytes, int]], other: dict[bytes, tuple[bytes, int]]) -> bool:
    """Whether both hold the same, with the same ends as far as a clock of Python tells."""
    assert {key: value for key, (value, _) in one.items()} == {key: value for key, (value, _) in other.items()}
    return all(abs(left - other[key][1]) < 2500 for key, (_, left) in one.items())


def exported(table: LoginTable) -> tuple[bytes, Counter[str]]:
    left_out: Counter[str] = Counter()
    lines = list(export_lines(table, ADDRESSES, left_out, lambda _: None))
    return "".join(lines).encode(), left_out


def take_in(table: LoginTable, data: bytes, **options: Any) -> Counter[str]:
    importing = Import(table, with_domain=True, **options)
    items = []
    for _, item in parse_lines(read_lines(io.BytesIO(data)), ADDRESSES, table.now()):
        assert not isinstance(item, ValueError), item
        items.append(item)
    importing.add(items)
    return importing.counts


def line(**fields: Any) -> bytes:
    """A line that expires in an hour, unless it says when; its times are Unix seconds."""
    fields = {"expires_at": NOW + HOUR, **fields}
    for name in fields.keys() & {"since", "expires_at"}:
        if type(fields[name]) is int and 0 <= fields[name] < 10**12:
            fields[name] = write_time(fields[name])
    return json.dumps(fields).encode() + b"\n"


def login(user: str, at: int = NOW, ends: float = HOUR, address: str = "192.0.2.7") -> bytes:
    """The line of a login `at` Unix seconds that expires in so many seconds."""
    return line(
        kind="login", client_address=address, user=user, service="imap", since=at, expires_at=NOW + int(ends)
    )


# --- there and back

users = st.one_of(
    st.sampled_from(["", "alice@example.com", "bob@example.com", "Bob@Example.com", "carol", "@example.com", "a,@b"]),
    st.binary(max_size=12).map(lambda name: name.decode("utf-8", "surrogateescape")),
)
clients = st.sampled_from(["192.0.2.7", "192.0.2.8", "2001:db8::7", "2001:db8:1:2::"])
networks = st.sampled_from(["192.0.2.0/28", "192.0.2.0/24", "2001:db8::/32", "2001:db8:1::/48", "192.0.2.7"])
texts = st.text(st.characters(codec="utf-8"), max_size=12)
names = st.lists(st.sampled_from(["a@example.com", "@example.org", "\u00e4@example.net"]), max_size=2).map(tuple)
caps = st.sampled_from([None, Cap(20, 60)])
permits = st.builds(Permit, st.integers(1, 253_402_300_799), texts, names, names, caps, texts)
ends = st.integers(60, 10**7)
tables = st.fixed_dictionaries(
    {
        "logins": st.lists(st.tuples(clients, users, ends), max_size=8),
        "permits": st.lists(st.tuples(networks, permits, ends), max_size=4),
        "denies": st.lists(st.tuples(st.none() | networks, texts, ends), max_size=4),
        "denied_users": st.lists(st.tuples(users.filter(bool), texts, ends), max_size=4),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables)
def test_what_was_exported_is_imported_as_it_was(redis: Redis, entries: dict[str, list[Any]]) -> None:
    redis.flushall()
    table = table_on(redis, "pbs:", user_domain="example.com", now=lambda: NOW)
    for number, (address, user, ttl) in enumerate(entries["logins"]):
        write_login(table, address, Record(NOW + number, "imap", user), ttl, with_domain=True)
    for target, permit, ttl in entries["permits"]:
        table.permit(ADDRESSES.parse_target(target), permit, ttl)
    for target, reason, ttl in entries["denies"]:
        table.deny(ADDRESSES.parse_target(target) if target else None, reason, ttl)
    for user, reason, ttl in entries["denied_users"]:
        table.deny_user(table.name(user), reason, ttl)
    before = stand(redis)
    data, left_out = exported(table)
    assert not left_out
    redis.flushall()
    counts = take_in(table, data)
    assert set(counts) <= {"logins", "permits", "denies"}
    assert sum(counts.values()) == data.count(b"\n")
    lengths = (KEYS.permit_networks, KEYS.deny_networks)
    after = stand(redis)
    assert {key: set(before[key][0].split()) for key in lengths if key in before} == {
        key: set(after[key][0].split()) for key in lengths if key in after
    }
    # A length that a shorter network was overwritten with may have been known for longer before.
    assert are_alike(
        {key: each for key, each in before.items() if key not in lengths},
        {key: each for key, each in after.items() if key not in lengths},
    )
    # Again, it changes nothing: some seconds later, since a fixed clock does not see what the first time took.
    later = table_on(redis, "pbs:", user_domain="example.com", now=lambda: NOW + 30)
    assert set(take_in(later, data)) <= {"kept"}
    assert are_alike(after, stand(redis))


def test_a_login_is_recorded_under_the_keys_of_the_post_login_script(table: LoginTable, redis: Redis) -> None:
    record = Record(NOW, "imap", "Alice@Example.com")
    write_login(table, "192.0.2.7", record, HOUR, with_domain=True)
    expected = {KEYS.login("192.0.2.7", name) for name in (b"", b"alice@example.com", b"@example.com")}
    assert {key: value for key, (value, _) in stand(redis).items()} == dict.fromkeys(
        expected, b"%d imap Alice@Example.com" % NOW
    )
    redis.flushall()
    write_login(table, "192.0.2.7", record, HOUR)
    assert set(stand(redis)) == expected - {KEYS.login("192.0.2.7", b"@example.com")}
    redis.flushall()
    write_login(table_on(redis, "pbs:", user_domain="example.com"), "192.0.2.7", Record(NOW, "imap", "bob"), HOUR)
    assert set(stand(redis)) == {KEYS.login("192.0.2.7"), KEYS.login("192.0.2.7", b"bob@example.com")}


def test_an_hour_on_the_way_is_an_hour_lost(table: LoginTable, redis: Redis, clock: Clock) -> None:
    write_login(table, "192.0.2.7", Record(NOW, "imap", "alice@example.com"), 2 * HOUR)
    write_login(table, "192.0.2.8", Record(NOW, "imap", "alice@example.com"), HOUR - 10)
    table.permit(ADDRESSES.parse_target("192.0.2.0/28"), FULL, 3 * HOUR)
    table.deny_user(b"bob@example.com", "stolen", 10)
    data, _ = exported(table)
    expiries = {read_time(json.loads(each)["expires_at"]) - NOW for each in data.splitlines()}
    assert {-each % HOUR < 2 or -each % 10 < 2 for each in expiries} == {True}
    redis.flushall()
    clock.time += HOUR
    assert take_in(table, data) == {"logins": 1, "permits": 1, "ended": 2}
    left = {key: left for key, (_, left) in stand(redis).items()}
    assert HOUR * 1000 - 2500 < left[KEYS.login("192.0.2.7")] <= HOUR * 1000
    assert 2 * HOUR * 1000 - 2500 < left[KEYS.permit("192.0.2.0/28")] <= 2 * HOUR * 1000
    assert left[KEYS.permit_networks] > left[KEYS.permit("192.0.2.0/28")]


def test_a_longer_entry_stays_unless_it_is_to_be_replaced(table: LoginTable, redis: Redis) -> None:
    alice, target = Record(NOW - 60, "pop3", "alice@example.com"), ADDRESSES.parse_target("192.0.2.7")
    write_login(table, "192.0.2.7", alice, 2 * HOUR, with_domain=True)
    table.permit(target, FULL, 2 * HOUR)
    table.deny(target, "spam", 2 * HOUR)
    table.deny_user(b"bob@example.com", "spam", 2 * HOUR)
    before = stand(redis)
    data = login("alice@example.com") + line(kind="permit", client_address="192.0.2.7", since=NOW)
    data += line(kind="deny", client_address="192.0.2.7", reason="other")
    data += line(kind="deny", user="bob@example.com", reason="other")
    assert take_in(table, data) == {"kept": 4}
    assert are_alike(before, stand(redis))
    assert take_in(table, data, replaces=True, only_looks=True) == {"logins": 1, "permits": 1, "denies": 2}
    assert are_alike(before, stand(redis))
    assert take_in(table, data, replaces=True) == {"logins": 1, "permits": 1, "denies": 2}
    marks = (KEYS.user_denies,)
    assert all(left <= HOUR * 1000 for key, (_, left) in stand(redis).items() if key not in marks)
    assert stand(redis)[KEYS.login("192.0.2.7")][0] == b"%d imap alice@example.com" % NOW
    assert redis.get(KEYS.deny("192.0.2.7")) == redis.get(KEYS.deny_user(b"bob@example.com")) == b"other"


def test_a_shorter_entry_is_lengthened(table: LoginTable, redis: Redis) -> None:
    write_login(table, "192.0.2.7", Record(NOW - 60, "pop3", "alice@example.com"), 60)
    assert take_in(table, login("alice@example.com")) == {"logins": 1}
    assert stand(redis)[KEYS.login("192.0.2.7")][1] > HOUR * 900


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("together", [True, False])
def test_the_keys_that_users_share_name_who_logged_in_last(
    table: LoginTable, redis: Redis, order: tuple[int, ...], together: bool
) -> None:
    lines = [login("alice@example.com", NOW - 30, 3000), login("bob@example.com", NOW - 20, 2000)]
    lines.append(login("carol@example.net", NOW - 10, 1000))
    data = [lines[number] for number in order]
    for each in [b"".join(data)] if together else data:
        take_in(table, each)
    found = stand(redis)
    assert found[KEYS.login("192.0.2.7")][0].endswith(b"carol@example.net")
    assert found[KEYS.login("192.0.2.7", b"@example.com")][0].endswith(b"bob@example.com")
    assert found[KEYS.login("192.0.2.7", b"alice@example.com")][1] > 2_900_000


def test_a_later_login_keeps_the_address_key(table: LoginTable, redis: Redis) -> None:
    write_login(table, "192.0.2.7", Record(NOW - 5, "imap", "bob@example.com"), 60)
    assert take_in(table, login("alice@example.com", NOW - 10)) == {"logins": 1}
    assert stand(redis)[KEYS.login("192.0.2.7")][0].endswith(b"bob@example.com")


def test_a_key_without_an_end_is_mended_by_a_login_and_a_deny_without_one_stays(
    table: LoginTable, redis: Redis
) -> None:
    redis.set(KEYS.login("192.0.2.7"), f"{NOW} imap alice@example.com")
    redis.set(KEYS.deny("192.0.2.7"), "for ever")
    assert take_in(table, login("alice@example.com")) == {"logins": 1}
    assert 0 < stand(redis)[KEYS.login("192.0.2.7")][1] <= HOUR * 1000
    assert take_in(table, line(kind="deny", client_address="192.0.2.7", reason="x")) == {"kept": 1}


def test_what_must_not_be_carried_on_is_left_out_and_counted(table: LoginTable, redis: Redis) -> None:
    redis.set(KEYS.login("192.0.2.7"), str(NOW))
    redis.set(KEYS.deny("all"), "for ever")
    for address in ("127.0.0.1", "::ffff:192.0.2.9", "\x1b[31m", "2001:db8::/64"):
        redis.set(KEYS.login(address), str(NOW), ex=HOUR)
    redis.set(KEYS.permit("192.0.0.0/8"), f"{NOW} manual", ex=HOUR)
    redis.set(KEYS.deny("192.0.2.7/24"), "", ex=HOUR)
    data, left_out = exported(table)
    assert data == b""
    assert sorted(left_out.values()) == [2, 6]
    assert left_out["without an end"] == 2


# --- what a line may say


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"{", "not JSON: "),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b"[]", "expected a JSON object"),
        (b"7", "expected a JSON object"),
        (b'{"kind": "login"}', "expires_at: expected a time"),
        (b'{"kind": ["login"], "expires_at": 1}', "kind: expected text"),
        (line(), "kind: expected login, permit or deny"),
        (line(kind="loginn"), "kind: expected login, permit or deny"),
        *[(line(kind="deny", client_address="all", expires_at=at), "expires_at: expected a time")
          for at in (None, True, "1790003600", "2026-09-21T14:13:20", f"2026-09-21T14:13:20.{'0' * 40}Z", "", -1,
                     float("nan"), float("inf"), NOW + 1832 * 86_400, 10**30, 10**400)],
        (line(kind="login", client_address="192.0.2.7", since=NOW, colour="red"), "unknown field 'colour'"),
        (line(kind="login", client_address="192.0.2.7", since=NOW, senders=["a@b"]), "unknown field 'senders'"),
        (line(kind="login", client_address="192.0.2.7"), "since: expected a time"),
        (line(kind="login", client_address="192.0.2.7", since=True), "since: expected a time"),
        (line(kind="login", client_address="192.0.2.7", since=10**12), "since: expected a time"),
        (line(kind="login", client_address="192.0.2.7", since=NOW, login_at=NOW), "one field by two names: expected"),
        (line(kind="login", client_address="192.0.2.7", since=NOW, service="a b"), "service: expected a word"),
        (line(kind="login", client_address="192.0.2.7", since=NOW, user=7), "user: expected text"),
        (line(kind="login", client_address="192.0.2.0/24", since=NOW), "is a network, from which nobody logs in"),
        (line(kind="login", client_address="192.0.2.300", since=NOW), "client_address: not an IP address"),
        (line(kind="login", since=NOW), "client_address: not an IP address: ''"),
        (line(kind="login", client_address="192.0.2.7", since=NOW, user="\ud800"), "a lone surrogate"),
        (line(kind="permit", client_address="192.0.2.7"), "since: expected a time"),
        (line(kind="permit", client_address="192.0.0.0/15", since=NOW), "wider than /16"),
        (line(kind="permit", client_address="192.0.2.7", since=NOW, sender="a@b"), "unknown field 'sender'"),
        (line(kind="permit", client_address="192.0.2.7", since=NOW, senders=[]), "senders: expected at least one"),
        (line(kind="permit", client_address="192.0.2.7", since=NOW, cap="many"), "expected recipients per time"),
        (line(kind="permit", client_address="192.0.2.7/24", since=NOW), "did you mean 192.0.2.0/24?"),
        (line(kind="deny", client_address="0.0.0.0/0"), 'is everybody: expected "all"'),
        (line(kind="deny", client_address="everybody"), "client_address: not an IP address"),
        (line(kind="deny", client_address=None), "client_address: expected text"),
        (line(kind="deny"), "expected either client_address or user"),
        (line(kind="deny", user="bob", client_address="all"), "expected either client_address or user"),
        (line(kind="deny", user=""), "user: expected a name"),
        (line(kind="deny", user="bob", by="auto_deny"), "by: no user is denied by auto_deny"),
        (line(kind="deny", client_address="all", by="auto_deny"), "client_address: not an IP address"),
        (line(kind="deny", client_address="all", by="/etc/denies:1"), "by: expected administrator or auto_deny"),
        (line(kind="deny-user"), "deny-user: expected a user"),
        (line(kind="auto-deny", user="bob"), "auto-deny: expected a target"),
        (b" " * LONGEST_LINE + line(kind="deny", client_address="all"), "longer than 1048576 bytes"),
    ],
)  # fmt: skip
def test_a_line_that_says_nothing_sound_is_a_fault(text: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        parse_line(text, ADDRESSES, NOW)


@given(st.binary(max_size=60) | st.builds(json.dumps, st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["kind", "expires_at", "user", "reason", "since", "client_address", "target", "by"]), inner
    ),
)).map(str.encode))  # fmt: skip
def test_any_line_is_an_item_or_one_fault(data: bytes) -> None:
    for _, found in parse_lines(read_lines(io.BytesIO(data)), ADDRESSES, NOW):
        assert isinstance(found, tuple | ValueError)


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ({"kind": "login", "client_address": "192.0.2.7", "user": "bob", "service": "imap", "login_at": NOW},
         {"kind": "login", "client_address": "192.0.2.7", "user": "bob", "service": "imap", "since": NOW}),
        ({"kind": "permit", "target": "192.0.2.0/28", "given_at": NOW, "senders": ["a@b"], "cap": "20/1h"},
         {"kind": "permit", "client_address": "192.0.2.0/28", "since": NOW, "senders": ["a@b"], "cap": "20/1h"}),
        ({"kind": "deny", "target": "all", "reason": "x"}, {"kind": "deny", "client_address": "all", "reason": "x"}),
        ({"kind": "auto-deny", "target": "192.0.2.7", "reason": "x"},
         {"kind": "deny", "by": "auto_deny", "client_address": "192.0.2.7", "reason": "x"}),
        ({"kind": "deny-user", "user": "bob", "reason": ""}, {"kind": "deny", "user": "bob"}),
    ],
)  # fmt: skip
def test_a_line_of_an_earlier_version_says_what_it_said(earlier: dict[str, Any], now: dict[str, Any]) -> None:
    read = parse_line(json.dumps({**earlier, "ends_at": NOW + HOUR + 0.25}).encode(), ADDRESSES, NOW)
    assert read._replace(ends_at=NOW + HOUR) == parse_line(line(**now), ADDRESSES, NOW)
    assert read.ends_at == NOW + HOUR + 0.25


def test_a_line_without_an_end_is_read_in_pieces_and_counted_once() -> None:
    data = b"x" * (3 * LONGEST_LINE) + b"\n{}\n"
    lines = list(read_lines(io.BytesIO(data)))
    assert [len(each) for each in lines] == [LONGEST_LINE + 1, 3]


# --- the commands


def now_lines(*lines: bytes) -> bytes:
    """The lines with their times moved to the present."""
    import time

    shift = int(time.time()) - NOW
    moved = []
    for each in lines:
        fields = json.loads(each)
        for name in fields.keys() & {"expires_at", "since"}:
            fields[name] = write_time(read_time(fields[name]) + shift)
        moved.append(json.dumps(fields).encode() + b"\n")
    return b"".join(moved)


def test_export_and_import_by_a_file(pbs: Pbs, redis: Redis, tmp_path: Path) -> None:
    assert pbs("permit", "192.0.2.0/28", "--user", "scanner@example.com", "--sender", "@example.com").status == 0
    assert pbs("deny", "bob@example.com", "--for", "1h").status == 0
    table = table_on(redis, "pbs:")
    write_login(table, "192.0.2.7", Record(int(table.now()), "imap", "alice@example.com"), HOUR)
    table.deny(None, "spam", HOUR)
    redis.set(KEYS.deny("192.0.2.7"), "x")
    file = tmp_path / "table.jsonl"
    result = pbs("export", str(file))
    assert result == Result(0, "", "pbs-policy: left out: 1 without an end\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir() if "jsonl" in each.name] == ["table.jsonl"]
    assert len(pbs("export").out.splitlines()) == len(file.read_text().splitlines()) == 4
    before = stand(redis)
    del before[KEYS.deny("192.0.2.7")]
    redis.flushall()
    assert pbs("import", "--dry-run", str(file)).out == "would write: 1 login, 1 permit, 2 denies\n"
    assert stand(redis) == {}
    assert pbs("import", str(file)) == Result(0, "written: 1 login, 1 permit, 2 denies\n", "")
    assert are_alike(before, stand(redis))


def test_import_from_standard_input_a_pipe_or_a_file(
    pbs: Pbs, redis: Redis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = now_lines(login("jos\udce9@example.com"), login("bob", address="127.0.0.1"), login("carol", ends=-5))
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    with os.fdopen(reader) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        result = pbs("--set", "sender_match=domain", "import")
    excluded = "1 of addresses that may never relay here\n"
    assert result.out == f"written: 1 login, 0 permits, 0 denies; 1 had ended; {excluded}"
    expected = {KEYS.login("192.0.2.7", name) for name in (b"", b"jos\xe9@example.com", b"@example.com")}
    assert set(stand(redis)) == expected
    assert pbs("import", given=data).out == (
        "written: 0 logins, 0 permits, 0 denies; 1 had ended; 1 stay as they are in the table, where they last as "
        f"long; {excluded}"
    )
    assert pbs("import", given=b"\n\n") == Result(0, "written: 0 logins, 0 permits, 0 denies\n", "")


def test_of_a_file_with_faults_nothing_is_written(pbs: Pbs, redis: Redis, tmp_path: Path) -> None:
    file = tmp_path / "table.jsonl"
    good = now_lines(login("alice@example.com"))
    file.write_bytes(good + b"\x1b[31m\n" + good + b"{}\n")
    result = pbs("import", str(file))
    assert result.status == os.EX_DATAERR
    assert result.err == (
        f"pbs-policy: {file}:2: not JSON: Expecting value at character 1\n"
        f"pbs-policy: {file}:4: expires_at: expected a time such as 2026-11-28T10:02:00Z, at most 1830d ahead\n"
        "pbs-policy: nothing was written\n"
    )
    assert stand(redis) == {}


def test_twenty_faults_are_shown_and_the_rest_counted(pbs: Pbs, redis: Redis, tmp_path: Path) -> None:
    file = tmp_path / "table.jsonl"
    file.write_bytes(b"x\n" * 23)
    lines = pbs("import", str(file)).err.splitlines()
    assert len(lines) == 22
    assert f"{file}:20: " in lines[19]
    assert lines[20] == f"pbs-policy: {file}: and 3 more such lines"


def test_a_file_that_cannot_be_read_or_written_is_one_error(pbs: Pbs, redis: Redis, tmp_path: Path) -> None:
    assert pbs("permit", "192.0.2.9", "--user", "scanner@example.com").status == 0
    assert is_one_error(pbs("import", str(tmp_path / "absent")), os.EX_IOERR, "No such file or directory")
    assert is_one_error(pbs("export", str(tmp_path / "absent" / "x")), os.EX_IOERR, "No such file or directory")
    assert is_one_error(pbs("export", "/dev/full"), os.EX_IOERR, "No space left on device")


def test_an_export_that_fails_leaves_the_last_one(pbs: Pbs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "table.jsonl"
    file.write_text("the last one")

    def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr("pbs_policy.table.listing.read_keys", fail)
    assert is_one_error(pbs("export", str(file)), os.EX_UNAVAILABLE, "Redis is unavailable: gone")
    assert file.read_text() == "the last one"
    assert [each.name for each in tmp_path.iterdir() if "jsonl" in each.name] == ["table.jsonl"]


def test_many_lines_are_written_batch_by_batch(pbs: Pbs, tmp_path: Path, redis: Redis) -> None:
    file = tmp_path / "table.jsonl"
    file.write_bytes(
        now_lines(*[login(f"user{number}", address=f"192.0.{number >> 8}.{number & 255}") for number in range(1203)])
    )
    assert pbs("import", str(file)).out == "written: 1,203 logins, 0 permits, 0 denies\n"
    assert redis.dbsize() == 2406


def test_a_login_that_came_while_its_line_was_looked_at_is_not_overwritten() -> None:
    redis = fakeredis.FakeRedis()
    table = table_on(redis, "pbs:", now=lambda: NOW)

    class Late(Import):
        def _write(self, *arguments: Any) -> None:
            redis.set(KEYS.login("192.0.2.7"), f"{NOW} pop3 bob", ex=60)
            super()._write(*arguments)

    item = parse_line(login("alice@example.com"), ADDRESSES, NOW)
    Late(table, with_domain=False).add([item])
    assert redis.get(KEYS.login("192.0.2.7")) == b"%d pop3 bob" % NOW
    assert redis.get(KEYS.login("192.0.2.7", b"alice@example.com")) is not None
