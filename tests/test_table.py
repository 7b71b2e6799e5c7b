"""The login table's contract, on fakeredis and on a real Redis; and what it says when Redis cannot be asked."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from pbs_policy.address import Target
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.store.connect import connect
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import NO_END, Keys
from pbs_policy.table.login_table import Entry, LoginTable
from pbs_policy.table.records import Permit, Record, serialise_record
from pbs_policy.table.users import names_of_user
from tests.stores import pause, table_on, write_login

NOW = 1_700_000_000
TTL = 1800
ADDRESS = "192.0.2.7"

ODD_USERS = [
    "al*ce@example.com",
    "al?ce@example.com",
    "al[i]ce@example.com",
    "al\\ce@example.com",
    "*",
    "[a-z]*",
    "\\",
    "a b@example.com",
    " leading and trailing ",
    "tab\there@example.com",
    "line\nbreak@example.com",
    "comma,@example.com",
    "quote'\"`$(id)@example.com",
    "jos\u00e9@example.com",
    "\udce9\udcff@example.com",
]


@pytest.fixture
def table(redis: Redis) -> LoginTable:
    return table_on(redis, "t:", now=lambda: NOW + 0.9)


def permit(table: LoginTable, address: str, user: str, ttl: int) -> None:
    """A permit without conditions."""
    table.permit(Target(address), Permit(int(table.now()), user), ttl)


def record_login(
    redis: Redis, address: str, user: str, *, ttl: int = TTL, service: str = "pop3", prefix: str = "t:"
) -> None:
    """A login as the post-login script writes it."""
    value = serialise_record(Record(NOW, service, user))
    folded = user.encode("utf-8", "surrogateescape").lower()
    for name in (b"", *names_of_user(folded, "")):
        redis.set(Keys(prefix).login(address, name), value, ex=ttl)


def listed(entries: Iterator[Entry]) -> list[tuple[str, str, str]]:
    """Kind, address and user of each entry, sorted."""
    return sorted((entry.kind, entry.target, entry.record.user) for entry in entries)


def stand(redis: Redis) -> dict[bytes, tuple[bytes | None, int]]:
    """Every key with its value and its seconds left, rounded up (NO_END where it has none)."""
    keys = cast("list[bytes]", redis.keys())
    return {key: (cast("bytes | None", redis.get(key)), -(-int(redis.pttl(key)) // 1000)) for key in keys}


# --- names behind an address


@given(st.binary(max_size=20))
def test_no_user_passes_for_everybody_of_a_domain(user: bytes) -> None:
    names = names_of_user(user, "")
    assert not names or not names[0].startswith(b"@")
    assert b"@" not in names[1:]


def test_the_names_of_the_keys_are_the_public_interface() -> None:
    keys = Keys("pbs:")
    assert keys.login(ADDRESS) == b"pbs:login:192.0.2.7"
    assert keys.login(ADDRESS, b"alice@example.com") == b"pbs:login:192.0.2.7,alice@example.com"
    assert keys.login("2001:db8:1:2::/64", b"@example.com") == b"pbs:login:2001:db8:1:2::/64,@example.com"
    assert keys.permit(ADDRESS) == b"pbs:permit:192.0.2.7"
    assert keys.deny(ADDRESS) == b"pbs:deny:192.0.2.7"
    assert keys.relay(ADDRESS) == [b"pbs:permit:192.0.2.7", b"pbs:login:192.0.2.7"]


# --- looking


def test_a_login_is_listed_once_with_its_record_and_the_time_it_has_left(table: LoginTable, redis: Redis) -> None:
    record_login(redis, ADDRESS, "alice@example.com")
    (entry,) = table.entries()
    assert entry[:3] == ("login", ADDRESS, Record(NOW, "pop3", "alice@example.com"))
    assert entry.left is not None
    assert TTL - 60 < entry.left <= TTL


def test_a_login_is_listed_for_each_user_behind_its_address(table: LoginTable, redis: Redis) -> None:
    for user in ("alice@example.com", "bob@example.com", "carol@example.net"):
        record_login(redis, ADDRESS, user)
    record_login(redis, "192.0.2.70", "dave@example.com")
    expected = [("login", ADDRESS, user) for user in ("alice@example.com", "bob@example.com", "carol@example.net")]
    assert listed(table.entries(client_address=ADDRESS)) == expected
    assert listed(table.entries()) == [*expected, ("login", "192.0.2.70", "dave@example.com")]


def test_a_user_is_found_behind_every_address_in_any_spelling(table: LoginTable, redis: Redis) -> None:
    record_login(redis, ADDRESS, "alice@example.com")
    record_login(redis, "2001:db8::7", "Alice@Example.com")
    record_login(redis, "198.51.100.7", "bob@example.com")
    permit(table, "203.0.113.7", "ALICE@example.com", 60)
    assert listed(table.entries(user="alice@EXAMPLE.com")) == [
        ("login", ADDRESS, "alice@example.com"),
        ("login", "2001:db8::7", "Alice@Example.com"),
        ("permit", "203.0.113.7", "ALICE@example.com"),
    ]


def test_a_login_that_last_login_wrote_is_listed_without_a_user(table: LoginTable, redis: Redis) -> None:
    redis.set("t:login:192.0.2.7", str(NOW), ex=TTL)
    (entry,) = table.entries()
    assert entry[:3] == ("login", ADDRESS, Record(NOW))
    assert listed(table.entries(client_address=ADDRESS)) == [("login", ADDRESS, "")]
    assert table.revoke_address(ADDRESS) == [ADDRESS]
    assert redis.keys() == []


def test_a_foreign_writers_login_with_its_user_in_the_value_alone_is_listed_and_revocable(
    table: LoginTable, redis: Redis
) -> None:
    """One SET is enough to record a login: the keys for each user are a service, not a duty."""
    redis.set("t:login:192.0.2.7", f"{NOW} webmail Bob@example.com", ex=TTL)
    assert listed(table.entries()) == [("login", ADDRESS, "Bob@example.com")]
    assert listed(table.entries(user="bob@example.com")) == [("login", ADDRESS, "Bob@example.com")]
    assert table.revoke_user("bob@example.com") == [ADDRESS]
    assert redis.keys() == []


def test_keys_that_hold_no_record_are_no_logins(table: LoginTable, redis: Redis) -> None:
    redis.set("t:login:192.0.2.7", "yes", ex=TTL)
    redis.set("t:permit:192.0.2.7", "", ex=TTL)
    redis.set("t:login:192.0.2.8,alice@example.com", "junk", ex=TTL)
    assert list(table.entries()) == []


@pytest.mark.parametrize("kind", ["login", "permit"])
def test_a_key_without_an_end_is_listed_as_one(table: LoginTable, redis: Redis, kind: str) -> None:
    redis.set(f"t:{kind}:192.0.2.7", f"{NOW} pop3 alice@example.com")
    (entry,) = table.entries()
    assert (entry.kind, entry.target, entry.record.user, entry.left) == (kind, ADDRESS, "alice@example.com", None)


def test_a_key_without_an_end_is_listed_also_beside_a_users_key_that_has_one(table: LoginTable, redis: Redis) -> None:
    """It is the address' own key that a relay check reads: hidden, nobody finds out why the client is refused."""
    record_login(redis, ADDRESS, "alice@example.com")
    redis.persist("t:login:192.0.2.7")
    assert None in [entry.left for entry in table.entries(client_address=ADDRESS)]


@pytest.mark.parametrize("user", ODD_USERS)
def test_an_odd_user_is_listed_and_revoked_alone(table: LoginTable, redis: Redis, user: str) -> None:
    """A name with `*` in it must not be taken for a pattern: others would lose their permission with it."""
    others = ["alice@example.com", "al_ce@example.com", "x", "a@example.com"]
    for each in [*others, user]:
        record_login(redis, ADDRESS, each)
    assert listed(table.entries(user=user)) == [("login", ADDRESS, user)]
    assert table.revoke_user(user) == [ADDRESS]
    assert listed(table.entries()) == [("login", ADDRESS, each) for each in sorted(others)]


@pytest.mark.parametrize("address", ["192.0.2.*", "192.0.2.?", "192.0.2.[7]", "*"])
def test_an_address_is_never_taken_for_a_pattern(table: LoginTable, redis: Redis, address: str) -> None:
    record_login(redis, ADDRESS, "alice@example.com")
    assert list(table.entries(client_address=address)) == []
    assert table.revoke_address(address) == []
    assert listed(table.entries()) == [("login", ADDRESS, "alice@example.com")]


def test_an_address_is_not_the_beginning_of_another(table: LoginTable, redis: Redis) -> None:
    for address in ("192.0.2.7", "192.0.2.70", "2001:db8::7", "2001:db8::7:1"):
        record_login(redis, address, "alice@example.com")
    assert listed(table.entries(client_address="192.0.2.7")) == [("login", "192.0.2.7", "alice@example.com")]
    assert table.revoke_address("2001:db8::7") == ["2001:db8::7"]
    assert [address for _, address, _ in listed(table.entries())] == ["192.0.2.7", "192.0.2.70", "2001:db8::7:1"]


def test_a_listing_longer_than_a_batch_is_complete(table: LoginTable, redis: Redis) -> None:
    pipeline = redis.pipeline(transaction=False)
    for number in range(1200):
        value = serialise_record(Record(NOW, "pop3", f"user{number}@example.com"))
        address = f"198.51.{number // 250}.{number % 250}"
        for name in (b"", f"user{number}@example.com".encode(), b"@example.com"):
            pipeline.set(table.keys.login(address, name), value, ex=TTL)
    pipeline.execute()
    entries = set(listed(table.entries()))  # SCAN may give a key twice
    assert len(entries) == 1200
    assert {user for _, _, user in entries} == {f"user{number}@example.com" for number in range(1200)}
    assert listed(table.entries(user="user777@example.com")) == [("login", "198.51.3.27", "user777@example.com")]


# --- permitting


def test_a_permit_is_written_as_asked_with_an_end(table: LoginTable, redis: Redis) -> None:
    permit(table, ADDRESS, "scanner@example.com", 60)
    assert stand(redis) == {b"t:permit:192.0.2.7": (b"1700000000 manual scanner@example.com", 60)}
    permit(table, ADDRESS, "", 3600)
    assert stand(redis) == {b"t:permit:192.0.2.7": (b"1700000000 manual", 3600)}


def test_reading_gives_the_values_and_what_is_left_of_the_keys_named(table: LoginTable, redis: Redis) -> None:
    redis.set("a", "1", px=60_000)
    redis.set("b", "2")
    values, ends = table.read([b"a", b"missing", b"b"], [b"b", b"missing", b"a"])
    assert values == [b"1", None, b"2"]
    assert ends[:2] == [NO_END, -2]
    assert 0 < ends[2] <= 60_000
    assert table.read([], [b"b"]) == ([], [NO_END])
    assert table.read([b"b"]) == ([b"2"], [])


# --- revoking


def test_revoking_an_address_takes_every_login_and_permit_of_it(table: LoginTable, redis: Redis) -> None:
    for user in ("alice@example.com", "bob@example.net"):
        record_login(redis, ADDRESS, user)
        record_login(redis, "192.0.2.8", user)
    permit(table, ADDRESS, "", 60)
    before = stand(redis)
    assert table.revoke_address(ADDRESS) == [ADDRESS]
    assert stand(redis) == {key: kept for key, kept in before.items() if b"192.0.2.8" in key}
    assert table.revoke_address(ADDRESS) == []


def test_revoking_an_address_leaves_its_deny(table: LoginTable, redis: Redis) -> None:
    redis.set("t:deny:192.0.2.7", "spam", ex=60)
    record_login(redis, ADDRESS, "alice@example.com")
    table.revoke_address(ADDRESS)
    table.revoke_user("alice@example.com")
    assert redis.keys() == [b"t:deny:192.0.2.7"]


def test_revoking_a_user_takes_every_login_and_permit_and_says_from_where(table: LoginTable, redis: Redis) -> None:
    record_login(redis, ADDRESS, "alice@example.com")
    record_login(redis, "2001:db8::7", "alice@example.com")
    permit(table, "203.0.113.7", "alice@example.com", 60)
    permit(table, "203.0.113.8", "bob@example.com", 60)
    assert table.revoke_user("Alice@example.com") == ["192.0.2.7", "2001:db8::7", "203.0.113.7"]
    assert redis.keys() == [b"t:permit:203.0.113.8"]
    assert table.revoke_user("alice@example.com") == []


def test_the_others_behind_an_address_keep_it_and_the_shared_keys_name_who_stays_longest(
    table: LoginTable, redis: Redis
) -> None:
    record_login(redis, ADDRESS, "bob@example.com", ttl=600)
    record_login(redis, ADDRESS, "dave@example.com", ttl=900)
    record_login(redis, ADDRESS, "carol@example.net", ttl=300)
    record_login(redis, ADDRESS, "alice@example.com", ttl=1800)
    assert table.revoke_user("alice@example.com") == [ADDRESS]
    left = stand(redis)
    dave = b"1700000000 pop3 dave@example.com"
    assert {key: value for key, (value, _) in left.items()} == {
        b"t:login:192.0.2.7": dave,
        b"t:login:192.0.2.7,@example.com": dave,
        b"t:login:192.0.2.7,@example.net": b"1700000000 pop3 carol@example.net",
        b"t:login:192.0.2.7,bob@example.com": b"1700000000 pop3 bob@example.com",
        b"t:login:192.0.2.7,carol@example.net": b"1700000000 pop3 carol@example.net",
        b"t:login:192.0.2.7,dave@example.com": dave,
    }
    for key, seconds in {b"": 900, b",@example.com": 900, b",@example.net": 300, b",bob@example.com": 600}.items():
        assert seconds - 60 < left[b"t:login:192.0.2.7" + key][1] <= seconds


def test_the_last_user_of_a_domain_takes_the_domain_with_him(table: LoginTable, redis: Redis) -> None:
    record_login(redis, ADDRESS, "alice@example.com")
    record_login(redis, ADDRESS, "carol@example.net")
    table.revoke_user("alice@example.com")
    assert sorted(redis.keys()) == [
        b"t:login:192.0.2.7",
        b"t:login:192.0.2.7,@example.net",
        b"t:login:192.0.2.7,carol@example.net",
    ]


def test_a_revoked_user_leaves_no_key_without_an_end_behind(table: LoginTable, redis: Redis) -> None:
    """Another user's key that has no end must not become the address' own."""
    record_login(redis, ADDRESS, "alice@example.com")
    redis.set("t:login:192.0.2.7,bob@example.com", f"{NOW} pop3 bob@example.com")
    table.revoke_user("alice@example.com")
    assert sorted(redis.keys()) == [b"t:login:192.0.2.7,bob@example.com"]


def test_revoking_a_permitted_user_leaves_a_login_of_nobody_known(table: LoginTable, redis: Redis) -> None:
    """The login is last_login's and names no user: it need not be that of the one whose permit goes."""
    redis.set("t:login:192.0.2.7", str(NOW), ex=TTL)
    permit(table, ADDRESS, "alice@example.com", 60)
    assert table.revoke_user("alice@example.com") == [ADDRESS]
    assert stand(redis) == {b"t:login:192.0.2.7": (str(NOW).encode(), TTL)}


def test_revoking_a_user_leaves_the_login_of_another_that_a_foreign_writer_left(
    table: LoginTable, redis: Redis
) -> None:
    """Bob's login came after Alice's and has no key of its own: the address is his as well."""
    record_login(redis, ADDRESS, "alice@example.com")
    redis.set("t:login:192.0.2.7", f"{NOW} webmail bob@example.net", ex=TTL)
    assert table.revoke_user("alice@example.com") == [ADDRESS]
    assert listed(table.entries()) == [("login", ADDRESS, "bob@example.net")]


def test_revoking_a_user_looks_at_every_key_twice_however_many_addresses_he_has(redis_server: PrivateRedis) -> None:
    with connect(RedisUrl.parse(redis_server.url), "", "") as client:
        table = LoginTable(client, "t:")
        for number in range(50):
            write_login(table, f"192.0.2.{number}", Record(NOW, "pop3", "alice@example.com"), TTL)
            write_login(table, f"192.0.2.{number}", Record(NOW, "pop3", "bob@example.com"), TTL)

        def scans() -> int:
            (said,) = client.ask([(b"INFO", b"commandstats")])
            return int(said.partition(b"cmdstat_scan:calls=")[2].partition(b",")[0] or 0)

        before = scans()
        assert len(table.revoke_user("alice@example.com")) == 50
        assert scans() - before == 2
        assert {entry.record.user for entry in table.entries()} == {"bob@example.com"}


@pytest.mark.parametrize(
    "revoke",
    [
        lambda table, progress: table.revoke_all(progress),
        lambda table, progress: table.revoke_all(progress, within=ip_network("192.0.2.0/24")),
        lambda table, progress: table.revoke_address(ADDRESS, progress),
        lambda table, progress: table.revoke_user("alice@example.com", progress),
    ],
    ids=["all", "network", "address", "user"],
)
def test_who_revokes_is_told_how_far_it_is(
    table: LoginTable, redis: Redis, revoke: Callable[[LoginTable, Callable[[int], None]], list[str]]
) -> None:
    record_login(redis, ADDRESS, "alice@example.com")
    told: list[int] = []
    assert revoke(table, told.append) == [ADDRESS]
    assert sum(told) > 0


def test_another_prefix_is_another_table(table: LoginTable, redis: Redis) -> None:
    for prefix in ("u:", "tt:", "t"):
        record_login(redis, ADDRESS, "alice@example.com", prefix=prefix)
        redis.set(f"{prefix}permit:192.0.2.7", f"{NOW} manual alice@example.com", ex=60)
    before = stand(redis)
    assert list(table.entries()) == []
    record_login(redis, ADDRESS, "alice@example.com")
    permit(table, ADDRESS, "alice@example.com", 60)
    assert len(list(table.entries())) == 2
    assert table.revoke_user("alice@example.com") == [ADDRESS]
    record_login(redis, ADDRESS, "alice@example.com")
    assert table.revoke_address(ADDRESS) == [ADDRESS]
    assert set(stand(redis)) == set(before)


def test_a_prefix_is_never_taken_for_a_pattern(redis: Redis) -> None:
    record_login(redis, ADDRESS, "alice@example.com", prefix="ab:")
    assert list(table_on(redis, "a?:").entries()) == []
    assert list(table_on(redis, "[a]b:").entries()) == []
    record_login(redis, ADDRESS, "bob@example.com", prefix="[a]b:")
    assert listed(table_on(redis, "[a]b:").entries()) == [("login", ADDRESS, "bob@example.com")]


# --- when Redis cannot be asked (each state in which it may be: test_error_states.py)


@pytest.mark.usefixtures("as_shipped")
@pytest.mark.parametrize(
    "ask",
    [
        lambda table: table.read([b"a"]),
        lambda table: list(table.entries()),
        lambda table: permit(table, ADDRESS, "", 60),
        lambda table: table.revoke_address(ADDRESS),
        lambda table: table.revoke_user("alice@example.com"),
    ],
    ids=["read", "entries", "permit", "revoke_address", "revoke_user"],
)
@pytest.mark.parametrize("connected", [True, False], ids=["on an old connection", "on a new connection"])
def test_a_mute_redis_is_unavailable_after_half_a_second(
    own_redis: Callable[..., PrivateRedis], ask: Callable[[LoginTable], object], connected: bool
) -> None:
    """On a busy machine it may be more: 5 s, where 0.5 s are meant."""
    server = own_redis()
    with connect(RedisUrl.parse(server.url), "", "") as redis:
        if connected:
            redis.ask([(b"GET", b"a")])
        pause(server)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"."):
            ask(LoginTable(redis, "t:"))
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_after_a_restart_of_redis_the_first_command_succeeds(
    own_redis: Callable[..., PrivateRedis], transport: str
) -> None:
    """The old connection is dead and nobody has noticed: one reconnect, and nothing for the caller to see."""
    server = own_redis()
    url = server.url if transport == "tcp" else f"unix://{server.socket_path}"
    with connect(RedisUrl.parse(url), "", "") as redis:
        table = LoginTable(redis, "t:")
        for _ in range(3):
            permit(table, ADDRESS, "alice@example.com", 60)
            assert listed(table.entries()) == [("permit", ADDRESS, "alice@example.com")]
            server.stop()
            server.start()
            assert list(table.entries()) == []


def test_a_database_number_names_another_table(redis_server: PrivateRedis) -> None:
    first = RedisUrl.parse(f"unix://{redis_server.socket_path}")
    second = RedisUrl.parse(f"unix://{redis_server.socket_path}?db=1")
    with connect(first, "", "") as one, connect(second, "", "") as two:
        permit(LoginTable(one, "t:"), ADDRESS, "", 60)
        assert list(LoginTable(two, "t:").entries()) == []
        assert len(list(LoginTable(one, "t:").entries())) == 1


def test_the_command_line_can_show_its_help_without_what_asks_redis() -> None:
    """Nor asyncio, which the service needs and the table does not."""
    code = "import sys, pbs_policy.cli; sys.exit(bool({'hiredis', 'redis', 'asyncio', 'ssl'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
