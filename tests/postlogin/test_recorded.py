"""Which logins the post-login script records, under which keys, and what it says of the others."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import Keys
from tests.conftest import CAPTURES
from tests.postlogin.support import ALICE, assert_says, log_in, logins, went_on
from tests.stores import connect

ENVIRONMENTS = sorted(CAPTURES.glob("dovecot-2.*/*.env"))
# What is kept of the login in each capture; of the others, nothing (loopback, link-local, master user).
RECORDED = {
    "imap-ID-trusted-mapped": "203.0.113.88",
    "imap-ID-trusted-v6-odd": "2001:db8:99::88",
    "imap-ID-trusted": "203.0.113.88",
    "imap-ID-untrusted": "198.51.100.11",
    "imap-haproxy-v2-local": "198.51.100.11",
    "imap-haproxy-v2-mapped": "203.0.113.77",
    "imap-haproxy-v2-tcp4": "203.0.113.77",
    "imap-haproxy-v2-tcp6": "2001:db8:99::77",
    "imap-shell-meta-user": "198.51.100.11",
    "imap-tab-user": "198.51.100.11",
    "imap-v4-plain": "198.51.100.11",
    "imap-v4-starttls": "198.51.100.11",
    "imap-v6-implicit-tls": "2001:db8:51::11",
    "imap-v6-plain": "2001:db8:51::11",
    "pop3-UPPER-user": "198.51.100.11",
    "pop3-XCLIENT-trusted-mapped": "203.0.113.99",
    "pop3-XCLIENT-trusted": "203.0.113.99",
    "pop3-XCLIENT-untrusted": "198.51.100.11",
    "pop3-haproxy-v1-mapped": "203.0.113.77",
    "pop3-haproxy-v1-tcp4": "203.0.113.77",
    "pop3-haproxy-v1-tcp6": "2001:db8:99::77",
    "pop3-haproxy-v1-unknown": "198.51.100.11",
    "pop3-odd-user": "198.51.100.11",
    "pop3-space-user": "198.51.100.11",
    "pop3-unicode-user": "198.51.100.11",
    "pop3-v4-implicit-tls": "198.51.100.11",
    "pop3-v4-plain": "198.51.100.11",
    "pop3-v4-starttls": "198.51.100.11",
    "pop3-v6-implicit-tls": "2001:db8:51::11",
    "pop3-v6-plain": "2001:db8:51::11",
}
NOT_RECORDED = {
    "imap-master-user": "master logged in as alice@ex.test from 198.51.100.11: record_master_logins = no",
    "pop3-master-user": "master logged in as alice@ex.test from 198.51.100.11: record_master_logins = no",
    "pop3-link-local": " is link-local: it may never relay",
    "pop3-loopback": "",
    "pop3-loopback6": "",
}
"""And what is said then."""
ODD_USERS = {
    "imap-shell-meta-user": 'a;$(id)`x`"&|<>\\@ex.test',
    "imap-tab-user": "a\tb@ex.test",
    "pop3-odd-user": "o'brien+tag@ex.test",
    "pop3-space-user": "sp ace@ex.test",
    "pop3-unicode-user": "jos\u00e9@ex.test",
}


def captured(file: Path) -> dict[bytes, bytes]:
    """The environment in a capture."""
    pairs = (line.partition(b"=") for line in file.read_bytes().splitlines())
    return {name: text for name, _, text in pairs}


def test_each_capture_has_its_expectation() -> None:
    assert {file.stem for file in ENVIRONMENTS} == RECORDED.keys() | NOT_RECORDED.keys()


@pytest.mark.parametrize("file", ENVIRONMENTS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_real_login_is_recorded_under_its_canonical_address(
    file: Path, redis_server: PrivateRedis, redis: Redis, configure: Callable[..., str]
) -> None:
    environment = captured(file)
    service = file.stem.partition("-")[0]
    before = int(time.time())
    result = log_in(environment, "-c", configure(redis_url=redis_server.url, ttl="8h"), service)
    assert went_on(result, environment)
    if file.stem in NOT_RECORDED:
        assert redis.keys() == []
        assert_says(result, NOT_RECORDED[file.stem])
        return
    assert result.stderr == b""
    (entry,) = logins(redis)
    user = ODD_USERS.get(file.stem, "alice@ex.test")
    assert entry.target == RECORDED[file.stem]
    assert (entry.record.service, entry.record.user) == (service, user)
    assert before <= entry.record.login_at <= time.time()
    keys = Keys("pbs:")
    names = (b"", user.encode())  # the domain's key is written for sender_match = domain alone
    assert set(redis.keys()) == {keys.login(entry.target, name) for name in names}
    for key in redis.keys():  # noqa: SIM118 - a server, not a dict
        assert 28_800 - 60 < redis.ttl(key) <= 28_800


@pytest.mark.parametrize("name", ["imap-master-user", "pop3-master-user"])
@pytest.mark.parametrize("version", ["dovecot-2.3", "dovecot-2.4"])
def test_a_master_users_login_is_recorded_where_the_settings_say_so(
    version: str, name: str, redis_server: PrivateRedis, redis: Redis, configure: Callable[..., str]
) -> None:
    environment = captured(CAPTURES / version / f"{name}.env")
    file = configure(redis_url=redis_server.url, record_master_logins="yes")
    assert went_on(log_in(environment, "-c", file, "imap"), environment)
    assert [entry.record.user for entry in logins(redis)] == ["alice@ex.test"]


ALICES = [b"pbs:login:192.0.2.7", b"pbs:login:192.0.2.7,alice@example.com"]
ANONYMOUS = "it is anonymous, from 192.0.2.7: nobody was asked for a password"
BY_MASTER = "{} logged in as alice@example.com from 192.0.2.7: record_master_logins = no"
OF_NO_DOMAIN = "user {} from 192.0.2.7 is of no domain in login_domains"
DOMAINS = {"login_domains": "Example.com, example.net"}

Login = tuple[dict[bytes, bytes], dict[str, str], list[bytes], str]
"""What Dovecot says besides, settings, the keys that are written, and what is said where there are none."""

NAMED: list[Login] = [
    *(
        ({b"AUTH_MECH": mechanism}, {"record_master_logins": records}, [], ANONYMOUS)
        for mechanism in (b"ANONYMOUS", b"anonymous") for records in ("yes", "no")
    ),
    # A master user that the user database names makes no master's login.
    ({b"MASTER_USER": b"alice@example.com"}, {}, ALICES, ""),  # it gives each user the name of the user
    # As typed: Dovecot has folded it.
    ({b"MASTER_USER": b"alice@example.com", b"AUTH_USER": b"Alice@Example.COM"}, {}, ALICES, ""),
    ({b"MASTER_USER": b""}, {}, ALICES, ""),
    ({b"MASTER_USER": b"admin"}, {}, ALICES, ""),
    ({b"AUTH_USER": b"Alice@Example.COM"}, {}, ALICES, ""),
    ({b"AUTH_USER": b"alice"}, {}, ALICES, ""),  # Dovecot has added the domain
    ({b"AUTH_USER": b"a.smith"}, {}, ALICES, ""),  # and a passdb or userdb has replaced the name by its field user
    # A master's login is known whatever the user database says: it can replace MASTER_USER, and not AUTH_USER.
    ({b"MASTER_USER": b"master", b"AUTH_USER": b"master"}, {}, [], BY_MASTER.format("master")),
    ({b"MASTER_USER": b"alice@example.com", b"AUTH_USER": b"master"}, {}, [], BY_MASTER.format("master")),
    ({b"MASTER_USER": b"", b"AUTH_USER": b"master"}, {}, [], BY_MASTER.format("master")),
    # What cannot be told from a master user of that name.
    ({b"MASTER_USER": b"alice@example.com", b"AUTH_USER": b"alice"}, {}, [], BY_MASTER.format("alice")),
    # With login_domains, a user of another domain is not recorded. The domain is behind the last "@".
    ({}, DOMAINS, ALICES, ""),
    ({b"USER": b"Alice@EXAMPLE.net"}, DOMAINS, [ALICES[0], b"pbs:login:192.0.2.7,alice@example.net"], ""),
    ({b"USER": b"alice"}, DOMAINS | {"user_domain": "example.com"}, ALICES, ""),
    (
        {b"USER": b"alice@victim.example@example.com"}, DOMAINS,
        [ALICES[0], b"pbs:login:192.0.2.7,alice@victim.example@example.com"], "",
    ),
    *(
        ({b"USER": user}, DOMAINS | {"user_domain": domain}, [], OF_NO_DOMAIN.format(user.decode()))
        for user, domain in (
            (b"alice@victim.example", ""), (b"alice@sub.example.com", ""), (b"alice", ""),
            (b"alice", "victim.example"), (b"@example.com", ""), (b"", ""),
            # A name without a domain, whatever it reads like.
            (b"example.com", ""), (b"example.com", "victim.example"),
        )
    ),
]  # fmt: skip


KEYS: list[Login] = [
    ({b"IP": b"2001:DB8:1:2:3::7", b"USER": b""}, {"ipv6_prefix": "64"}, [b"pbs:login:2001:db8:1:2::/64"], ""),
    ({b"IP": b"192.0.2.7", b"USER": b""}, {"ipv6_prefix": "64"}, [b"pbs:login:192.0.2.7"], ""),
    ({b"IP": b"192.0.2.7", b"USER": b""}, {"key_prefix": "mail/"}, [b"mail/login:192.0.2.7"], ""),
    ({b"IP": b"192.0.2.7", b"USER": b""}, {"never_record": "198.51.100.0/24, 192.0.2.0/25"}, [], ""),
    ({b"IP": b"::ffff:192.0.2.7", b"USER": b""}, {"never_record": "192.0.2.7"}, [], ""),
    ({b"IP": b"2001:db8::7", b"USER": b""}, {"never_record": "2001:db8::/32"}, [], ""),
    ({b"IP": b"64:ff9b::192.0.2.7", b"USER": b""}, {"ipv6_prefix": "64"}, [b"pbs:login:192.0.2.7"], ""),
    ({b"IP": b"64:ff9b::192.0.2.7", b"USER": b""}, {"never_record": "192.0.2.0/24"}, [], ""),
    ({b"IP": b"64:ff9b::127.0.0.1", b"USER": b""}, {}, [], ""),
    ({b"IP": b"2002:c000:207::7", b"USER": b""}, {"ipv6_prefix": "64"}, [b"pbs:login:2002:c000:207::7"], ""),
    ({b"IP": b"192.0.2.7", b"USER": b""}, {}, [b"pbs:login:192.0.2.7"], ""),
    ({b"IP": b"192.0.2.7", b"USER": b"alice"}, {}, [b"pbs:login:192.0.2.7", b"pbs:login:192.0.2.7,alice"], ""),
    ({b"IP": b"192.0.2.7", b"USER": b"@example.com"}, {}, [b"pbs:login:192.0.2.7"], ""),
    ({b"IP": b"192.0.2.7", b"USER": b"@example.com"}, {"sender_match": "domain"}, [b"pbs:login:192.0.2.7"], ""),
    (
        {b"IP": b"192.0.2.7", b"USER": b"a@example.com"}, {"sender_match": "address"},
        [b"pbs:login:192.0.2.7", b"pbs:login:192.0.2.7,a@example.com"], "",
    ),
    (
        {b"IP": b"192.0.2.7", b"USER": b"a\nb\xff@Example.com"}, {"sender_match": "domain"},
        [ALICES[0], b"pbs:login:192.0.2.7,@example.com", b"pbs:login:192.0.2.7,a\nb\xff@example.com"], "",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("said_by_dovecot", "values", "keys", "said"), [*NAMED, *KEYS])
def test_under_which_keys_a_login_is_recorded_or_why_it_is_not(
    said_by_dovecot: dict[bytes, bytes],
    values: dict[str, str],
    keys: list[bytes],
    said: str,
    redis_server: PrivateRedis,
    redis: Redis,
    configure: Callable[..., str],
) -> None:
    environment = ALICE | said_by_dovecot
    result = log_in(environment, "-c", configure(redis_url=redis_server.url, **values), "imap")
    assert went_on(result, environment)
    assert sorted(redis.keys()) == keys
    assert_says(result, said)


@pytest.mark.parametrize(
    ("address", "values", "reason"),
    [
        ("127.0.0.1", {}, "loopback"),
        ("::1", {}, "loopback"),
        ("64:ff9b::127.0.0.1", {}, "loopback"),
        ("192.0.2.7", {"never_record": "192.0.2.0/24"}, "never_record"),
        ("192.0.2.7", {"services": "pop3"}, "service_mismatch"),
    ],
)
@pytest.mark.parametrize("log_logins", ["yes", "no"])
def test_what_the_settings_leave_out_is_told_where_each_login_is_and_is_no_line_in_dovecots_log(
    address: str,
    values: dict[str, str],
    reason: str,
    log_logins: str,
    redis_server: PrivateRedis,
    redis: Redis,
    configure: Callable[..., str],
    syslog: socket.socket,
) -> None:
    """A webmail logs in from loopback with every click."""
    path = syslog.getsockname()
    environment = ALICE | {b"IP": address.encode()}
    settings = {"redis_url": redis_server.url, "log_logins": log_logins, "log_to": f"syslog:{path}", **values}
    result = log_in(environment, "-c", configure(**settings), "imap")
    assert went_on(result, environment)
    assert result.stderr == b""
    assert redis.keys() == []
    syslog.setblocking(False)
    if log_logins == "no":
        with pytest.raises(BlockingIOError):
            syslog.recv(4096)
        return
    shown = address.replace("64:ff9b::", "")
    line = syslog.recv(4096).decode().partition("]: info: ")[2]
    assert line == f"not_recorded client_address={shown} user=alice@example.com service=imap reason={reason}"


@pytest.mark.parametrize(
    "url",
    ["redis://127.0.0.1:{port}", "redis://localhost:{port}/0", "redis://127.0.0.1:{port}/3", "unix://{path}",
     "unix://{path}?db=3"],
)  # fmt: skip
def test_redis_is_reached_over_tcp_and_a_unix_socket(
    url: str, redis_server: PrivateRedis, configure: Callable[..., str]
) -> None:
    url = url.format(port=redis_server.port, path=redis_server.socket_path)
    result = log_in(ALICE, "-c", configure(redis_url=url), "pop3")
    assert result.stderr == b""
    assert went_on(result, ALICE)
    with connect(RedisUrl.parse(url), "", "") as redis:
        assert [entry[:2] for entry in logins(redis)] == [("login", "192.0.2.7")]
        assert 1740 < redis.ttl("pbs:login:192.0.2.7") <= 1800


@pytest.mark.parametrize(
    ("arguments", "service"),
    [(["pop3"], "pop3"), (["imap"], "imap"), ([], "unknown"), (["p\u00f6p"], "unknown"), (["a b"], "unknown"),
     (["x" * 33], "unknown"), (["x" * 32], "x" * 32), (["sub-mission_2"], "sub-mission_2"),
     (["", "pop3", ""], "pop3")],  # two blanks in a row in `executable` make an empty argument
)  # fmt: skip
def test_the_service_is_one_word_or_unknown(
    arguments: list[str], service: str, redis_server: PrivateRedis, redis: Redis, configure: Callable[..., str]
) -> None:
    result = log_in(ALICE, *arguments[:-1], "-c", configure(redis_url=redis_server.url), *arguments[-1:])
    assert went_on(result, ALICE)
    assert [entry.record.service for entry in logins(redis)] == [service]


# --- log_logins


def test_a_login_is_told_to_syslog_where_the_settings_say_so(
    redis_server: PrivateRedis, configure: Callable[..., str], syslog: socket.socket
) -> None:
    path = syslog.getsockname()
    file = configure(redis_url=redis_server.url, log_logins="yes", log_to=f"syslog:{path}", ttl="8h")
    environment = {b"IP": b"192.0.2.7", b"USER": b'alice" service=x\n'}
    assert went_on(log_in(environment, "-c", file, "imap"), environment)
    assert re.fullmatch(
        r"<22>[A-Z][a-z][a-z] [ 123]\d \d\d:\d\d:\d\d pbs-postlogin\[\d+\]: info: login client_address=192\.0\.2\.7 "
        r'user="alice\\" service=x\?" service=imap ttl=28800',
        syslog.recv(4096).decode(),
    )


@pytest.mark.parametrize(("log_logins", "place"), [("no", "nothing"), ("yes", "nothing"), ("yes", "log")])
def test_a_syslog_that_is_not_there_or_does_not_read_fails_no_login_and_takes_no_word(
    redis_server: PrivateRedis, configure: Callable[..., str], syslog: socket.socket, log_logins: str, place: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as full:
        full.connect(syslog.getsockname())
        with suppress(BlockingIOError):
            while True:
                full.send(b"x")
    path = Path(syslog.getsockname()).with_name(place)
    file = configure(redis_url=redis_server.url, log_logins=log_logins, log_to=f"syslog:{path}")
    result = log_in(ALICE, "-c", file, "imap")
    assert went_on(result, ALICE)
    assert result.stderr == b""
