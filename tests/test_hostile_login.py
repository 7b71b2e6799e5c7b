"""The post-login script as a process, with what a login can hold that nobody should believe or print: a field of the
user database in place of the address, RESP and newlines in names, very long ones, bytes that are no text.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pbs_policy.demo import dovecot
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.dovecot import imap_login, pop3_login
from pbs_policy.demo.real import installation
from pbs_policy.store.connect import RedisClient, connect
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import Keys
from pbs_policy.table.records import parse_record
from pbs_policy.table.users import names_of_user
from tests.conftest import need
from tests.postlogin.support import log_in, went_on

INJECTED = b"a\r\n*1\r\n$8\r\nFLUSHALL\r\n*3\r\n$3\r\nSET\r\n$21\r\npbs:permit:192.0.2.99\r\n$1\r\n1\r\n"
USERS = (
    INJECTED,
    b"alice@example.com\r\nEX\r\n999999999",
    b"alice,@example.com",
    b"@example.com",
    b"x" * 100_000 + b"@example.com",
    bytes(range(1, 256)),
    b"\xff\xfe@\xff",
    b"\xe2\x80\xae\xc2\x9b31m@example.com",
)


@pytest.fixture
def redis(redis_server: PrivateRedis) -> Iterator[RedisClient]:
    with connect(RedisUrl.parse(redis_server.url), "", "") as client:
        yield client


@pytest.fixture
def file(redis_server: PrivateRedis, tmp_path: Path) -> str:
    file = tmp_path / "pbs-policy.conf"
    file.write_bytes(f"# caf\u00e9\nredis_url = {redis_server.url}\nttl = 5m\n".encode("latin-1"))
    return str(file)


def keys(redis: RedisClient) -> set[bytes]:
    (found,) = redis.ask([(b"KEYS", b"*")])
    return set(found)


@pytest.mark.parametrize("user", USERS, ids=range(len(USERS)))
def test_a_hostile_user_is_a_value_and_the_end_of_a_key_and_nothing_more(
    user: bytes, file: str, redis: RedisClient
) -> None:
    redis.ask([(b"SET", b"witness", b"here")])
    environment = {b"IP": b"192.0.2.7", b"USER": user}
    result = log_in(environment, "-c", file, "imap")
    assert result.stderr == b""
    assert went_on(result, environment)
    login = Keys("pbs:").login
    expected = {login("192.0.2.7"), *[login("192.0.2.7", name) for name in names_of_user(user, "")[:1]]}
    assert keys(redis) == {b"witness", *expected}
    for key in expected:
        value, left = redis.ask([(b"GET", key), (b"TTL", key)])
        record = parse_record(value)
        assert record is not None
        assert record.user.encode("utf-8", "surrogateescape") == user
        assert record.service == "imap"
        assert 290 < left <= 300


@pytest.mark.parametrize(
    "address", [INJECTED, b"192.0.2.7\r\n", b"192.0.2.7%", b"::ffff:192.0.2.7%0", b"9" * 100_000], ids=range(5)
)
def test_a_hostile_address_is_one_line_in_dovecots_log_and_nothing_in_redis(
    address: bytes, file: str, redis: RedisClient
) -> None:
    environment = {b"IP": address, b"USER": b"alice@example.com"}
    result = log_in(environment, "-c", file, "imap")
    assert went_on(result, environment)
    assert result.stderr.startswith(b"pbs-postlogin: error: this login is not recorded: ")
    assert result.stderr.count(b"\n") == 1
    assert len(result.stderr) < 600
    assert result.stderr[:-1].decode("ascii").isprintable()
    assert keys(redis) == set()


@pytest.mark.parametrize("fields", [b"UID GID HOME IP AUTH_MECH ", b"IP", b"UID  IP"])
def test_an_address_from_the_user_database_is_not_recorded(fields: bytes, file: str, redis: RedisClient) -> None:
    environment = {b"IP": b"203.0.113.5", b"USER": b"alice@example.com", b"USERDB_KEYS": fields}
    result = log_in(environment, "-c", file, "imap")
    assert went_on(result, environment)
    assert b"the user database has a field named ip" in result.stderr
    assert keys(redis) == set()


def test_a_field_that_only_looks_like_it_hides_nothing(file: str, redis: RedisClient) -> None:
    environment = {b"IP": b"192.0.2.7", b"USER": b"a", b"USERDB_KEYS": b"LOCAL_IP IPS SHIP ", b"SHIP": b"203.0.113.5"}
    assert log_in(environment, "-c", file, "imap").stderr == b""
    assert Keys("pbs:").login("192.0.2.7") in keys(redis)


@pytest.mark.parametrize("log_in_by", [pop3_login, imap_login])
def test_dovecot_lets_a_field_of_the_user_database_replace_the_address_and_nobody_is_permitted_for_it(
    monkeypatch: pytest.MonkeyPatch, log_in_by: Callable[..., dovecot.LoginAttempt]
) -> None:
    need("redis", "postfix", "dovecot")
    monkeypatch.setattr(dovecot, "_BASE_2_3", dovecot._BASE_2_3.replace("/mail\n}}", "/mail ip=203.0.113.5\n}}"))
    monkeypatch.setattr(
        dovecot, "_BASE_2_4", dovecot._BASE_2_4.replace("    home =", "    ip = 203.0.113.5\n    home =")
    )
    with tempfile.TemporaryDirectory(prefix="pbs-") as place, installation(Path(place)) as site:
        port = site.dovecot.pop3_port if log_in_by is pop3_login else site.dovecot.imap_port
        assert log_in_by(port, "192.0.2.7").succeeded
        assert "the user database has a field named ip" in site.dovecot.log_text()
        with connect(RedisUrl.parse(site.redis.url), "", "") as redis:
            assert not [key for key in keys(redis) if b":login:" in key]
