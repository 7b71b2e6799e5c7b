"""The post-login script: the real file as a process against a real Redis, and its agreement with the package.

The script stands alone, so whatever it shares with the package is held equal here: the settings file, canonical
addresses, keys and records, durations and URLs.
"""

from __future__ import annotations

import fcntl
import posix
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis

from pbs_policy import duration, log, settings
from pbs_policy.address import AddressError, ClientAddresses
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.ports import free_port
from pbs_policy.settings import sources
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import Keys
from pbs_policy.table.login_table import Entry, LoginTable
from pbs_policy.table.records import Record, parse_record
from pbs_policy.table.users import domain_of, names_of_user
from tests.conftest import CAPTURES
from tests.patience import be_patient, patient_script
from tests.stores import connect, pause, table_on

SCRIPT = Path(__file__).parent.parent / "dovecot-hooks" / "pbs-postlogin"
ENVIRONMENTS = sorted(CAPTURES.glob("dovecot-2.*/*.env"))
SESSION = ("/usr/bin/env", "-0")
"""A session that shows its environment, byte for byte."""

ALICE = {b"IP": b"192.0.2.7", b"USER": b"alice@example.com"}
LONGEST_LOGIN = 5
"""Seconds. 0.5 s are meant, and the rest is the start of two processes on a busy machine."""

TIMER = "import signal; print(*signal.getitimer(signal.ITIMER_REAL), signal.getsignal(signal.SIGALRM).name)"
"""A session that shows what is left of an alarm clock."""

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


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., str]:
    """Write a settings file of `name = value` lines, and return its path."""

    def write(**values: str) -> str:
        file = tmp_path / "pbs-policy.conf"
        file.write_text("".join(f"{name} = {text}\n" for name, text in values.items()))
        return str(file)

    return write


def log_in(
    environment: dict[bytes, bytes], *options: str, session: tuple[str, ...] = SESSION, script: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the script as Dovecot does: the arguments configured, then those of the session; no other environment.

    It has more time than the one that is shipped, unless `script` says which one is meant.
    """
    script = script or patient_script()
    command: list[str | Path] = [script, *options, *session]
    return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)


def went_on(result: subprocess.CompletedProcess[bytes], environment: dict[bytes, bytes]) -> bool:
    """Whether the session ran, in the environment it was given, with nothing in front of its own output."""
    shown = dict(pair.split(b"=", 1) for pair in result.stdout.split(b"\0")[:-1])
    return result.returncode == 0 and shown == environment


def table_at(url: str) -> Iterator[tuple[Redis, LoginTable]]:
    with connect(RedisUrl.parse(url), "", "") as redis:
        yield redis, table_on(redis, "pbs:")


@pytest.fixture
def redis(redis_server: PrivateRedis) -> Iterator[Redis]:
    with connect(RedisUrl.parse(redis_server.url), "", "") as client:
        yield client


def logins(redis: Redis) -> list[Entry]:
    return sorted(table_on(redis, "pbs:").entries())


# --- what is recorded


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


@pytest.mark.parametrize("mechanism", [b"ANONYMOUS", b"anonymous"])
@pytest.mark.parametrize("record_master_logins", ["yes", "no"])
def test_a_login_that_nobody_authenticated_is_not_recorded_and_leaves_a_line(
    mechanism: bytes,
    record_master_logins: str,
    redis_server: PrivateRedis,
    redis: Redis,
    configure: Callable[..., str],
) -> None:
    environment = {**ALICE, b"AUTH_MECH": mechanism}
    file = configure(redis_url=redis_server.url, record_master_logins=record_master_logins)
    result = log_in(environment, "-c", file, "imap")
    assert went_on(result, environment)
    assert redis.keys() == []
    assert_says(result, "it is anonymous, from 192.0.2.7: nobody was asked for a password")


@pytest.mark.parametrize(
    ("master_user", "auth_user"),
    [
        (b"alice@example.com", None),  # the user database gives each user the name of the user
        (b"alice@example.com", b"Alice@Example.COM"),  # as typed: Dovecot has folded it
        (b"", None),
        (b"admin", None),
        (None, b"Alice@Example.COM"),
        (None, b"alice"),  # Dovecot has added the domain
        (None, b"a.smith"),  # and a passdb or userdb has replaced the name by its field user
    ],
)
def test_a_master_user_that_the_user_database_names_makes_no_master_login(
    master_user: bytes | None, auth_user: bytes | None, redis: Redis, working: list[str]
) -> None:
    given = {b"MASTER_USER": master_user, b"AUTH_USER": auth_user}
    environment = ALICE | {name: value for name, value in given.items() if value is not None}
    result = log_in(environment, *working)
    assert went_on(result, environment)
    assert result.stderr == b""
    assert [entry.record.user for entry in logins(redis)] == ["alice@example.com"]


@pytest.mark.parametrize(
    ("master_user", "auth_user"),
    [
        (b"master", b"master"),
        (b"alice@example.com", b"master"),  # the user database has replaced MASTER_USER, and cannot replace AUTH_USER
        (b"", b"master"),
        (b"alice@example.com", b"alice"),  # what cannot be told from a master user of that name
    ],
)
def test_a_master_users_login_is_known_whatever_the_user_database_says(
    master_user: bytes, auth_user: bytes, redis: Redis, working: list[str]
) -> None:
    environment = ALICE | {b"MASTER_USER": master_user, b"AUTH_USER": auth_user}
    result = log_in(environment, *working)
    assert went_on(result, environment)
    assert redis.keys() == []
    name = auth_user.decode()
    assert_says(result, f"{name} logged in as alice@example.com from 192.0.2.7: record_master_logins = no")


@pytest.mark.parametrize(
    ("user", "user_domain", "is_recorded"),
    [
        (b"alice@example.com", "", True),
        (b"Alice@EXAMPLE.net", "", True),
        (b"alice", "example.com", True),
        (b"alice@victim.example", "", False),
        (b"alice@victim.example@example.com", "", True),  # the domain is behind the last "@", as in sender_match
        (b"alice@sub.example.com", "", False),
        (b"alice", "", False),
        (b"alice", "victim.example", False),
        (b"example.com", "", False),  # a name without a domain, whatever it reads like
        (b"example.com", "victim.example", False),
        (b"@example.com", "", False),
        (b"", "", False),
    ],
)
def test_with_login_domains_a_user_of_another_domain_is_not_recorded(
    user: bytes,
    user_domain: str,
    is_recorded: bool,
    redis_server: PrivateRedis,
    redis: Redis,
    configure: Callable[..., str],
) -> None:
    environment = ALICE | {b"USER": user}
    domains = {"login_domains": "Example.com, example.net", "user_domain": user_domain}
    result = log_in(environment, "-c", configure(redis_url=redis_server.url, **domains), "imap")
    assert went_on(result, environment)
    assert bool(logins(redis)) == is_recorded
    reason = f"user {user.decode()} from 192.0.2.7 is of no domain in login_domains"
    assert_says(result, "" if is_recorded else reason)


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


@pytest.mark.parametrize("transport", ["tcp", "tcp by name", "unix", "unix, database 3", "tcp, database 3"])
def test_redis_is_reached_over_tcp_and_a_unix_socket(
    transport: str, redis_server: PrivateRedis, configure: Callable[..., str]
) -> None:
    url = {
        "tcp": f"redis://127.0.0.1:{redis_server.port}",
        "tcp by name": f"redis://localhost:{redis_server.port}/0",
        "unix": f"unix://{redis_server.socket_path}",
        "unix, database 3": f"unix://{redis_server.socket_path}?db=3",
        "tcp, database 3": f"redis://127.0.0.1:{redis_server.port}/3",
    }[transport]
    result = log_in(ALICE, "-c", configure(redis_url=url), "pop3")
    assert result.stderr == b""
    assert went_on(result, ALICE)
    for redis, table in table_at(url):
        (entry,) = table.entries()
        assert entry[:2] == ("login", "192.0.2.7")
        assert 1740 < redis.ttl("pbs:login:192.0.2.7") <= 1800


@pytest.mark.parametrize(
    ("environment", "values", "keys"),
    [
        ({b"IP": b"2001:DB8:1:2:3::7"}, {"ipv6_prefix": "64"}, [b"pbs:login:2001:db8:1:2::/64"]),
        ({b"IP": b"192.0.2.7"}, {"ipv6_prefix": "64"}, [b"pbs:login:192.0.2.7"]),
        ({b"IP": b"192.0.2.7"}, {"key_prefix": "mail/"}, [b"mail/login:192.0.2.7"]),
        ({b"IP": b"192.0.2.7"}, {"never_record": "198.51.100.0/24, 192.0.2.0/25"}, []),
        ({b"IP": b"::ffff:192.0.2.7"}, {"never_record": "192.0.2.7"}, []),
        ({b"IP": b"2001:db8::7"}, {"never_record": "2001:db8::/32"}, []),
        ({b"IP": b"64:ff9b::192.0.2.7"}, {"ipv6_prefix": "64"}, [b"pbs:login:192.0.2.7"]),
        ({b"IP": b"64:ff9b::192.0.2.7"}, {"never_record": "192.0.2.0/24"}, []),
        ({b"IP": b"64:ff9b::127.0.0.1"}, {}, []),
        ({b"IP": b"2002:c000:207::7"}, {"ipv6_prefix": "64"}, [b"pbs:login:2002:c000:207::7"]),
        ({b"IP": b"192.0.2.7", b"USER": b""}, {}, [b"pbs:login:192.0.2.7"]),
        ({b"IP": b"192.0.2.7", b"USER": b"alice"}, {}, [b"pbs:login:192.0.2.7", b"pbs:login:192.0.2.7,alice"]),
        ({b"IP": b"192.0.2.7", b"USER": b"@example.com"}, {}, [b"pbs:login:192.0.2.7"]),
        ({b"IP": b"192.0.2.7", b"USER": b"@example.com"}, {"sender_match": "domain"}, [b"pbs:login:192.0.2.7"]),
        ({b"IP": b"192.0.2.7", b"USER": b"a@example.com"}, {"sender_match": "address"},
         [b"pbs:login:192.0.2.7", b"pbs:login:192.0.2.7,a@example.com"]),
        ({b"IP": b"192.0.2.7", b"USER": b"a\nb\xff@Example.com"}, {"sender_match": "domain"},
         [b"pbs:login:192.0.2.7", b"pbs:login:192.0.2.7,@example.com", b"pbs:login:192.0.2.7,a\nb\xff@example.com"]),
    ],
)  # fmt: skip
def test_under_which_keys_a_login_is_recorded(
    environment: dict[bytes, bytes],
    values: dict[str, str],
    keys: list[bytes],
    redis_server: PrivateRedis,
    redis: Redis,
    configure: Callable[..., str],
) -> None:
    result = log_in(environment, "-c", configure(redis_url=redis_server.url, **values), "imap")
    assert result.stderr == b""
    assert went_on(result, environment)
    assert sorted(redis.keys()) == keys


@pytest.mark.parametrize(
    ("options", "service"),
    [(["pop3"], "pop3"), (["imap"], "imap"), ([], "unknown"), (["p\u00f6p"], "unknown"), (["a b"], "unknown"),
     (["x" * 33], "unknown"), (["x" * 32], "x" * 32), (["sub-mission_2"], "sub-mission_2")],
)  # fmt: skip
def test_the_service_is_one_word_or_unknown(
    options: list[str], service: str, redis_server: PrivateRedis, redis: Redis, configure: Callable[..., str]
) -> None:
    result = log_in(ALICE, "-c", configure(redis_url=redis_server.url), *options)
    assert went_on(result, ALICE)
    assert [entry.record.service for entry in logins(redis)] == [service]


def test_an_empty_argument_is_overlooked(
    redis_server: PrivateRedis, redis: Redis, configure: Callable[..., str]
) -> None:
    """Two blanks in a row in `executable` make one."""
    result = log_in(ALICE, "", "-c", configure(redis_url=redis_server.url), "", "pop3", "")
    assert result.stderr == b""
    assert went_on(result, ALICE)
    assert [entry.record.service for entry in logins(redis)] == ["pop3"]


# --- the session goes on as Dovecot has it


@pytest.fixture
def working(redis_server: PrivateRedis, configure: Callable[..., str]) -> list[str]:
    """Options with which a login is recorded."""
    return ["-c", configure(redis_url=redis_server.url), "pop3"]


@pytest.mark.parametrize("working_redis", [True, False], ids=["recorded", "not recorded"])
@pytest.mark.parametrize("tail", [(), ("-d",), ("-c", "imap", "a b", "*", "$(id)", "\udcff"), ("", "last")])
def test_the_arguments_behind_ours_are_the_sessions_unchanged(
    working: list[str], working_redis: bool, tail: tuple[str, ...]
) -> None:
    options = working if working_redis else ["-c", "/nonexistent", "pop3"]
    session = ("/bin/cat", "/proc/self/cmdline", "--", *tail)
    result = log_in(ALICE, *options, session=session)
    shown = b"".join(each.encode("utf-8", "surrogateescape") + b"\0" for each in session)
    assert result.stdout.startswith(shown)


@pytest.mark.parametrize("extra", [{}, {b"LC_ALL": b"C"}, {b"ODD": b"\xff\n=", b"EMPTY": b""}])
def test_the_environment_is_the_sessions_unchanged(working: list[str], extra: dict[bytes, bytes]) -> None:
    """Python adds an LC_CTYPE of its own; a mail process must not find it."""
    environment = ALICE | extra
    assert went_on(log_in(environment, *working), environment)


def test_an_environment_of_nothing_stays_one(working: list[str]) -> None:
    result = log_in({}, *working)
    assert went_on(result, {})


@pytest.mark.parametrize("status", [0, 1, 75, 255])
def test_the_exit_status_is_the_sessions(working: list[str], status: int) -> None:
    assert log_in(ALICE, *working, session=("/bin/sh", "-c", f"exit {status}")).returncode == status


def test_signals_that_python_ignores_are_not_ignored_in_the_session(working: list[str]) -> None:
    """With SIGPIPE ignored, imapd would not notice that its client is gone."""
    result = log_in(ALICE, *working, session=("/bin/cat", "/proc/self/status"))
    signals = dict(line.split(":\t", 1) for line in result.stdout.decode().splitlines() if line.startswith("Sig"))
    # Others may be ignored already where the tests are run, and are then none of ours.
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        assert not int(signals["SigIgn"], 16) >> (ignored_by_python - 1) & 1
    assert int(signals["SigBlk"], 16) == 0
    assert int(signals["SigCgt"], 16) == 0


def test_the_session_inherits_no_descriptor_of_ours(working: list[str]) -> None:
    result = log_in(ALICE, *working, session=("/bin/ls", "/proc/self/fd"))
    assert result.stdout.split() == [b"0", b"1", b"2", b"3"]  # 3 is what ls reads


def test_the_session_reads_what_the_client_has_sent_meanwhile(working: list[str]) -> None:
    result = subprocess.run(
        [patient_script(), *working, "/bin/cat"], env=ALICE, input=b"STAT\r\n", capture_output=True, check=False
    )
    assert result.stdout == b"STAT\r\n"


def test_run_by_hand_it_says_how_it_is_used() -> None:
    for options in ([], ["pop3"], ["-c", "/nonexistent", "pop3"]):
        result = log_in(ALICE, *options, session=())
        assert result.returncode == 64
        assert result.stdout == b""
        assert result.stderr.startswith(b"pbs-postlogin: error: usage: script-login ")
        assert result.stderr.count(b"\n") == 1


# --- failures: the session goes on, and one line says why


def assert_says(result: subprocess.CompletedProcess[bytes], reason: str) -> None:
    """One line says why a login was left out on purpose; or none, where no reason is expected."""
    line = result.stderr.decode("ascii")
    assert line.startswith("pbs-postlogin: info: this login is not recorded: ") == bool(reason)
    assert line.count("\n") == bool(reason)
    assert line.endswith(reason and reason + "\n")
    assert line.rstrip("\n").isprintable()


def assert_went_on_with_one_line(
    result: subprocess.CompletedProcess[bytes], environment: dict[bytes, bytes], complaint: str
) -> None:
    assert went_on(result, environment)
    line = result.stderr.decode("ascii")
    assert line.startswith("pbs-postlogin: error: ")
    assert complaint in line
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert line[:-1].isprintable()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"ttl": "soon"}, "ttl = soon"),
        ({"ttl": "0"}, "ttl = 0"),
        ({"ttl": ""}, "ttl = "),
        ({"ipv6_prefix": "/64"}, "ipv6_prefix = /64"),
        ({"never_record": "webmail.example.com"}, "not an IP address: webmail.example.com"),
        ({"redis_url": "localhost:6379"}, "redis_url = localhost:6379"),
        ({"redis_url": "redis://pbs:secret@localhost"}, "redis_url: a user and password do not belong"),
        ({"redis_url": "unix:///nonexistent/redis.sock"}, "cannot be reached"),
        ({"redis_password_file": "/nonexistent"}, "No such file"),
        ({"redis_password_file": "/"}, "Is a directory"),
    ],
    ids=lambda each: "-".join(f"{name} {text}" for name, text in each.items()) if isinstance(each, dict) else "",
)
def test_settings_that_cannot_be_used_fail_no_login(
    values: dict[str, str], complaint: str, redis_server: PrivateRedis, configure: Callable[..., str]
) -> None:
    result = log_in(ALICE, "-c", configure(**{"redis_url": redis_server.url, **values}), "pop3")
    assert_went_on_with_one_line(result, ALICE, complaint)
    assert b"secret" not in result.stderr


def test_a_host_name_that_nobody_knows_fails_no_login(configure: Callable[..., str]) -> None:
    """Where a name server says so, and where it says nothing."""
    started = time.monotonic()
    result = log_in(ALICE, "-c", configure(redis_url="redis://no-such-host.invalid"), "pop3", script=SCRIPT)
    assert_went_on_with_one_line(result, ALICE, "this login is not recorded")
    assert time.monotonic() - started < LONGEST_LOGIN


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({b"USER": b"alice@example.com"}, "not an IP address: "),
        ({b"USER": b"alice@example.com", b"IP": b""}, "not an IP address: "),
        ({b"USER": b"alice@example.com", b"IP": b"unknown"}, "not an IP address: unknown"),
        ({b"USER": b"alice@example.com", b"IP": b"192.0.2.07"}, "not an IP address: 192.0.2.07"),
        ({b"USER": b"alice@example.com", b"IP": b"2001:db8::7%eth0"}, "zone id: 2001:db8::7%eth0"),
        ({b"USER": b"alice@example.com", b"IP": b"a\n\x1b[31m\xffb"}, "not an IP address: a??[31m?b"),
        ({b"USER": b"alice@example.com", b"IP": b"x" * 5000}, "not an IP address: xxx"),
    ],
)
def test_an_address_that_is_none_fails_no_login(
    environment: dict[bytes, bytes], complaint: str, working: list[str], redis: Redis
) -> None:
    assert_went_on_with_one_line(log_in(environment, *working), environment, complaint)
    assert redis.keys() == []


@pytest.mark.parametrize("content", [None, "directory", b"ttl = \xff\n"], ids=["absent", "directory", "not UTF-8"])
def test_a_settings_file_that_cannot_be_read_fails_no_login(tmp_path: Path, content: bytes | str | None) -> None:
    file = tmp_path / "pbs-policy.conf"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        file.mkdir()
    assert_went_on_with_one_line(log_in(ALICE, "-c", str(file), "pop3"), ALICE, "this login is not recorded")


def test_a_redis_that_is_down_fails_no_login(configure: Callable[..., str]) -> None:
    result = log_in(ALICE, "-c", configure(redis_url=f"redis://127.0.0.1:{free_port()}"), "pop3")
    assert_went_on_with_one_line(result, ALICE, "cannot be reached")


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_mute_redis_delays_a_login_by_half_a_second_at_most(
    own_redis: Callable[..., PrivateRedis], configure: Callable[..., str], transport: str, tmp_path: Path
) -> None:
    """What is said then is said by whoever gives up first: here all of the login has more time than Redis has."""
    for name in (SCRIPT.name, "pbs_postlogin.py"):
        shutil.copy(SCRIPT.with_name(name), tmp_path)
    script = be_patient(tmp_path, with_redis=False)
    server = own_redis()
    pause(server)
    url = server.url if transport == "tcp" else f"unix://{server.socket_path}"
    started = time.monotonic()
    result = log_in(ALICE, "-c", configure(redis_url=url), "pop3", script=script)
    assert_went_on_with_one_line(result, ALICE, "did not answer within 0.3 s")
    assert time.monotonic() - started < LONGEST_LOGIN


def test_a_settings_file_that_never_ends_delays_a_login_by_half_a_second_at_most(tmp_path: Path) -> None:
    """A pipe stands for a network file system whose server is gone."""
    pipe = tmp_path / "pbs-policy.conf"
    posix.mkfifo(pipe)
    started = time.monotonic()
    result = log_in(ALICE, "-c", str(pipe), "pop3", script=SCRIPT)
    assert_went_on_with_one_line(result, ALICE, "no end within 0.4 s")
    assert time.monotonic() - started < LONGEST_LOGIN


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that takes not one byte more, and whose writers wait for it, as Dovecot's log process has
    it while it hangs."""
    end, begin = posix.pipe()
    try:
        fcntl.fcntl(begin, fcntl.F_SETFL, posix.O_NONBLOCK)
        with suppress(BlockingIOError):
            while posix.write(begin, b"x" * 4096):
                pass
        fcntl.fcntl(begin, fcntl.F_SETFL, 0)
        yield end, begin
    finally:
        posix.close(end)
        posix.close(begin)


NOT_BLOCKING = f"import fcntl; print(fcntl.fcntl(2, fcntl.F_GETFL) & {posix.O_NONBLOCK})"


@pytest.mark.parametrize(
    ("values", "extra"),
    [
        ({"redis_url": "nonsense"}, {}),
        ({}, {b"AUTH_MECH": b"ANONYMOUS"}),
        ({"redis_password_file": "a pipe"}, {}),
    ],
    ids=["failure", "left out on purpose", "no end"],
)
def test_a_full_log_pipe_delays_a_login_by_half_a_second_at_most(
    values: dict[str, str], extra: dict[bytes, bytes], configure: Callable[..., str], tmp_path: Path
) -> None:
    """The line is lost, and the pipe, which others write to as well, is left as it was."""
    if "redis_password_file" in values:
        posix.mkfifo(tmp_path / "password")
        values = {"redis_password_file": str(tmp_path / "password")}
    command = [str(SCRIPT), "-c", configure(**values), "pop3", sys.executable, "-c", f"{TIMER}; {NOT_BLOCKING}"]
    environment = ALICE | extra
    with full_pipe() as (_, begin):
        started = time.monotonic()
        # A script that waits for the pipe waits for ever: then this is a failure, and not a test that hangs.
        result = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=begin, check=True, timeout=2 * LONGEST_LOGIN
        )
        assert time.monotonic() - started < LONGEST_LOGIN
    assert result.stdout.decode() == "0.0 0.0 SIG_DFL\n0\n"


def test_a_full_redis_fails_no_login(own_redis: Callable[..., PrivateRedis], configure: Callable[..., str]) -> None:
    """With less memory than it needs for itself, Redis is full from its start, and reads on."""
    server = own_redis("--maxmemory", "100kb", "--maxmemory-policy", "noeviction")
    result = log_in(ALICE, "-c", configure(redis_url=server.url), "pop3")
    assert_went_on_with_one_line(result, ALICE, "Redis answers to SET: -OOM")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"wrong\n", "Redis answers to AUTH: -WRONGPASS"), (b"\n", "Redis answers to "), (None, "NOAUTH")],
)
def test_a_wrong_password_fails_no_login(
    own_redis: Callable[..., PrivateRedis],
    configure: Callable[..., str],
    tmp_path: Path,
    content: bytes | None,
    complaint: str,
) -> None:
    server = own_redis("--requirepass", "secret")
    values = {"redis_url": server.url}
    if content is not None:
        (tmp_path / "password").write_bytes(content)
        values["redis_password_file"] = str(tmp_path / "password")
    result = log_in(ALICE, "-c", configure(**values), "pop3")
    assert_went_on_with_one_line(result, ALICE, complaint)
    assert b"secret" not in result.stderr


@pytest.mark.parametrize("content", [b"secret\n", b"secret", b"secret\r\nnote\n"])
def test_a_user_of_redis_needs_the_right_to_set_and_nothing_else(
    own_redis: Callable[..., PrivateRedis], configure: Callable[..., str], tmp_path: Path, content: bytes
) -> None:
    server = own_redis("--user", "pbs", "on", ">secret", "~pbs:*", "-@all", "+set")
    (tmp_path / "password").write_bytes(content)
    login = {"redis_user": "pbs", "redis_password_file": str(tmp_path / "password")}
    result = log_in(ALICE, "-c", configure(redis_url=server.url, **login), "pop3")
    assert result.stderr == b""
    assert went_on(result, ALICE)
    with connect(RedisUrl.parse(server.url), "", "") as redis:
        assert [entry.target for entry in logins(redis)] == ["192.0.2.7"]
    result = log_in(ALICE, "-c", configure(redis_url=server.url, key_prefix="other:", **login), "pop3")
    assert_went_on_with_one_line(result, ALICE, "Redis answers to SET: -NOPERM")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"services": "pop3\n  never_record = 192.0.2.0/24"}, "never_record has a blank in front"),
        ({"redis_user": "pbs"}, "redis_user is set without redis_password_file"),
        ({"sentinel_user": "s"}, "sentinel_user is set without sentinel_password_file"),
        ({"redis_tls_ca_file": "/ca.pem"}, "redis_tls_ca_file is set, and redis_url is without TLS"),
        ({"redis_tls_key_file": "/key.pem"}, "redis_tls_key_file is set, and redis_url is without TLS"),
    ],
)
def test_a_setting_that_would_silently_not_hold_is_said_and_nothing_is_recorded(
    values: dict[str, str], complaint: str, redis_server: PrivateRedis, configure: Callable[..., str]
) -> None:
    result = log_in(ALICE, "-c", configure(redis_url=redis_server.url, **values), "pop3")
    assert_went_on_with_one_line(result, ALICE, complaint)
    with connect(RedisUrl.parse(redis_server.url), "", "") as redis:
        assert list(logins(redis)) == []


# --- log_logins


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "log"))
        listening.settimeout(20)
        yield listening


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


@pytest.mark.parametrize("log_logins", ["no", "yes"])
def test_a_syslog_that_is_not_there_or_not_asked_for_fails_no_login_and_takes_no_word(
    redis_server: PrivateRedis, configure: Callable[..., str], tmp_path: Path, log_logins: str
) -> None:
    file = configure(redis_url=redis_server.url, log_logins=log_logins, log_to=f"syslog:{tmp_path}/nothing")
    result = log_in(ALICE, "-c", file, "imap")
    assert went_on(result, ALICE)
    assert result.stderr == b""


def test_a_syslog_that_does_not_read_is_not_waited_for(
    redis_server: PrivateRedis, configure: Callable[..., str], syslog: socket.socket
) -> None:
    path = syslog.getsockname()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as full:
        full.connect(path)
        with suppress(BlockingIOError):
            while True:
                full.send(b"x")
    file = configure(redis_url=redis_server.url, log_logins="yes", log_to=f"syslog:{path}")
    result = log_in(ALICE, "-c", file, "imap")
    assert went_on(result, ALICE)
    assert result.stderr == b""


# --- agreement with the package: the script's functions, called without a process


def load_recorder() -> dict[str, Any]:
    """What the script's other file defines."""
    recorder = SCRIPT.with_name("pbs_postlogin.py")
    namespace: dict[str, Any] = {}
    exec(compile(recorder.read_text(), recorder, "exec"), namespace)  # noqa: S102 - our own script
    return namespace


RECORDER = load_recorder()

_v4 = st.integers(0, 2**32 - 1).map(IPv4Address).map(str)
_NETWORKS = [
    "192.0.2.0/24",
    "198.51.100.7",
    "2001:db8::/32",
    "2001:db8:1::7",
    "0.0.0.0/1",
    "fc00::/7",
    "203.0.113.128/025",
]


def _colons(groups: list[int], mapped: bool) -> str:
    return f"0:0:0:0:0:ffff:{groups[0]:x}:{groups[1]:x}" if mapped else ":".join(f"{group:X}" for group in groups)


_groups = st.lists(
    st.one_of(
        st.sampled_from([0, 0, 1, 0xFFFF, 0x2001, 0xDB8, 0xFE80, 0xFEC0, 0xFF00, 0x7F00, 0xA9FE, 0x200, 0x5EFE]),
        st.integers(0, 65535),
    ),
    min_size=8,
    max_size=8,
)
_STRANGERS = [
    "64:ff9b::",
    "64:ff9b:1:",
    "64:ff9b:1::",
    "2001:0:",
    "2002:",
    "2001:10:",
    "2001:1f:",
    "2001:2f:",
    "2001:30:",
]
_addresses = st.one_of(
    _v4,
    st.sampled_from(
        ["192.0.2.", "198.51.100.", "127.0.0.", "169.254.0.", "0.0.0.", "224.0.0.", "255.255.255.", "1.2.3."]
    ).flatmap(lambda begin: st.integers(0, 255).map(lambda last: f"{begin}{last}")),
    st.builds(_colons, _groups, st.booleans()),
    st.builds("::ffff:{}".format, _v4),
    st.builds("{}{}".format, st.sampled_from(_STRANGERS), st.one_of(_v4, st.sampled_from([":1", "a:b:c:d:e:f"]))),
    st.builds("2001:db8:1:2:{}:5efe:{}".format, st.sampled_from(["0", "200", "100"]), _v4),
    st.text("0123456789abcdef:.%/ \0", max_size=24),
    st.text(max_size=8),
)
_never_record = st.lists(st.sampled_from(_NETWORKS), max_size=3)


def addresses_of(prefix: str, never_record: str) -> ClientAddresses:
    """The package's view of the two settings, through its own parsers."""
    loaded, _ = settings.load(Path("/dev/null"), {}, [f"ipv6_prefix={prefix}", f"never_record={never_record}"])
    return loaded.addresses


@hypothesis_settings(max_examples=500)
@given(_addresses, st.sampled_from(["128", "64", "56", "48", "127", "065", "0128"]), _never_record)
@example("fe80::1%br0", "128", [])
@example("2001:db8::7", "0128", [])
@example("64:ff9b::c633:640b", "64", ["198.51.100.0/24"])
@example("64:ff9b::127.0.0.1", "64", [])
@example("64:ff9b::1:c633:640b", "64", [])
@example("2001:1f:ffff::1", "64", [])
@example("2001:db8::0200:5efe:192.0.2.7", "64", ["2001:db8::/32"])
def test_script_and_package_name_a_client_alike(text: str, prefix: str, never_record: list[str]) -> None:
    networks = ", ".join(never_record)
    values = {"ipv6_prefix": prefix, "never_record": networks}
    try:
        by_script = RECORDER["canonical"](text, values)
    except RECORDER["Failure"]:
        by_script = None
    try:
        client = addresses_of(prefix, networks).parse(text)
    except AddressError:
        # Of the zone ids that Dovecot shows, the script knows those of link-local addresses: no more than that.
        assert by_script is None or ("%" in text and by_script[1] == "link_local")
    else:
        assert by_script == client[:2]


@pytest.mark.parametrize(
    ("network", "excluded"),
    [
        ("192.0.2.0/255.255.255.0", ["192.0.2.7"]),
        ("192.0.2.0/0.0.0.255", ["192.0.2.7"]),
        ("192.0.2.0/024", ["192.0.2.7"]),
        ("2001:db8::%1/64", ["2001:db8::7"]),
        ("2001:DB8::/032", ["2001:db8::7"]),
        ("::ffff:192.0.2.0/120", []),
    ],
)
def test_what_the_settings_accept_as_a_network_the_script_understands(network: str, excluded: list[str]) -> None:
    """Otherwise every login fails to be recorded on a site whose settings `pbs-policy config` finds sound."""
    try:
        addresses = addresses_of("128", network)
    except sources.SettingsError:
        return
    values = {"ipv6_prefix": "128", "never_record": network}
    for address in ("192.0.2.7", "2001:db8::7", "203.0.113.7"):
        assert bool(addresses.parse(address).excluded) == (address in excluded)
        assert bool(RECORDER["canonical"](address, values)[1]) == (address in excluded)


class Recorded(Exception):
    """The commands that the script would have sent."""

    def __init__(self, commands: list[tuple[bytes, ...]]) -> None:
        self.commands = commands


class NotRecorded(Exception):
    """The script's own reason not to record a login."""


def commands_for(environment: dict[bytes, bytes], service: str, file: str) -> list[tuple[bytes, ...]]:
    """What the script tells Redis in this environment."""
    script = load_recorder()

    def tell_redis(_: object, commands: list[tuple[bytes, ...]]) -> None:
        raise Recorded(commands)

    script["tell_redis"] = tell_redis
    try:
        script["record_login"](file, service, environment)
    except Recorded as recorded:
        return recorded.commands
    except script["Failure"] as failure:
        raise NotRecorded(str(failure)) from None
    return []


@given(
    st.one_of(
        st.binary(max_size=30),
        st.lists(st.sampled_from([b"@", b"a", b"A", b",", b" ", b"\xc9", b".", b"\n"]), max_size=8).map(b"".join),
        st.sampled_from([b"example.com", b"Example.NET", b"a@Example.com"]),
    ),
    st.one_of(st.sampled_from(["pop3", "imap", "---"]), st.text(max_size=34)),
    st.sampled_from(["", "example.com", "Example.COM", "B\u00dccher.example"]),
    st.sampled_from(["", "", "example.COM", "example.net, a B\u00dccher.example"]),
)
def test_script_and_package_agree_on_the_names_and_the_record_of_a_login(
    scratch: Path, user: bytes, service: str, user_domain: str, login_domains: str
) -> None:
    before = int(time.time())
    scratch.write_text(f"sender_match = domain\nuser_domain = {user_domain}\nlogin_domains = {login_domains}\n")
    keys = Keys("pbs:")
    names = names_of_user(user, user_domain)
    domains = {domain.encode() for domain in settings.load(scratch)[0].login_domains}
    if domains and not (names and domain_of(names[0]) in domains):
        with pytest.raises(NotRecorded, match="is of no domain in login_domains"):
            commands_for({b"IP": b"192.0.2.7", b"USER": user}, service, str(scratch))
        return
    commands = commands_for({b"IP": b"192.0.2.7", b"USER": user}, service, str(scratch))
    assert [command[1] for command in commands] == [keys.login("192.0.2.7", name) for name in (b"", *names)]
    for command in commands:
        assert command[0] == b"SET"
        assert command[3:] == (b"EX", b"1800")
        record = parse_record(command[2])
        assert record is not None
        assert record.user == user.decode("utf-8", "surrogateescape")
        assert record.service in (service, "unknown")
        assert before <= record.login_at <= time.time()


@given(st.one_of(st.from_regex(r"[0-9]{0,10}[smhdwSMy]?", fullmatch=True), st.text(max_size=6)))
@example("158112000")
@example("158112001")
@example("1830d")
def test_script_and_package_read_a_time_alike(text: str) -> None:
    try:
        by_package = duration.parse_duration(text)
    except ValueError:
        by_package = None
    try:
        by_script = RECORDER["seconds"](text)
    except RECORDER["Failure"]:
        by_script = None
    assert by_script == by_package


class Reached(Exception):
    """Where the script would have connected to."""

    def __init__(self, target: Any) -> None:
        self.target = target


def place_of(url: str) -> tuple[Any, list[str]]:
    """Where the script connects to for `url`, and what it says before anything else."""
    script = load_recorder()
    said: list[str] = []

    class Socket:
        def __init__(self, *_: object) -> None: ...

        def settimeout(self, _: float) -> None: ...

        def connect(self, target: Any) -> None:
            self.target = target

        def sendall(self, data: bytes) -> None:
            said.append(data.decode())
            raise Reached(self.target)

    def getaddrinfo(host: bytes, port: int, *_: object) -> list[Any]:
        return [(2, 1, 6, "", (host.decode(), port))]

    script["_socket"] = SimpleNamespace(
        AF_UNIX=socket.AF_UNIX,
        AF_INET=socket.AF_INET,
        AF_INET6=socket.AF_INET6,
        SOCK_STREAM=socket.SOCK_STREAM,
        inet_pton=socket.inet_pton,
        socket=Socket,
        getaddrinfo=getaddrinfo,
    )
    settings = {"redis_url": url, "redis_password_file": "", "redis_user": ""}
    settings |= {"sentinel_user": "", "sentinel_password_file": ""}
    with pytest.raises(Reached) as reached:
        script["tell_redis"](settings, [(b"SET",)])
    return reached.value.target, said[0].split("\r\n")


_hosts = st.sampled_from(["127.0.0.1", "localhost", "[2001:db8::7]", "[::1]", "redis.example.com"])
_ports = st.sampled_from(["", ":6379", ":1", ":65535", ":06380", ":\u0666\u0663"])
_databases = st.sampled_from(["", "/", "/0", "/3", "/15", "/03", "/00", "/\u0663"])


@given(
    st.one_of(
        st.builds("{}://{}{}{}".format, st.sampled_from(["redis", "valkey"]), _hosts, _ports, _databases),
        st.builds("redis://{}{},other{}".format, _hosts, _ports, _databases),
        st.builds("valkey+cluster://{}{},other".format, _hosts, _ports),
        st.builds("redis+sentinel://{}{}{}/mail{}".format, _hosts, _ports, st.sampled_from(["", ",b:1"]), _databases),
        st.builds(
            "unix://{}{}".format,
            st.sampled_from(["/run/r.sock", "/r/:a/b@c"]),
            st.sampled_from(["", "?db=0", "?db=3", "?db=03"]),
        ),
    )
)
def test_script_and_package_go_to_the_same_redis(text: str) -> None:
    try:
        url = RedisUrl.parse(text)
    except ValueError:
        return
    target, said = place_of(text)
    assert target == (url.path or url.places[0])
    asked = ["SENTINEL", "get-master-addr-by-name"] if url.master else ["SELECT", str(url.db)] if url.db else ["SET"]
    assert said[2:5:2] == asked


_blanks = st.sampled_from(["", " ", "  ", "\t", " \t"])
_values = {
    "redis_url": ["redis://127.0.0.1", "unix:///run/r.sock?db=3"],
    "redis_user": ["", "pbs"],
    "redis_password_file": ["", "/etc/pbs-policy/password"],
    "key_prefix": ["pbs:", "a=b", "#:", "m"],
    "ttl": ["30m", "8h", "90", "030m"],
    "ipv6_prefix": ["128", "64", "048"],
    "never_record": [
        "",
        "192.0.2.0/24",
        "192.0.2.0/24,2001:db8::/32",
        "192.0.2.0/24\n 198.51.100.7",
        "\n\n\t192.0.2.7",
    ],
    "record_master_logins": ["yes", "no"],
    "listen": ["inet:127.0.0.1:1"],
    "sender_match": ["off"],
    "login_domains": ["", "example.com", "Example.com, example.net"],
}
_lines = st.one_of(
    st.sampled_from(sorted(_values)).flatmap(
        lambda name: st.builds(
            "{0}{2}={3}{1}{4}".format, st.just(name), st.sampled_from(_values[name]), _blanks, _blanks, _blanks
        )
    ),
    st.sampled_from(
        ["", " ", "#", "# ttl = 1h", "  # ttl = 1h", "\t", "\r", "\x0c", "\x0b", "\x1c", "\x85", "\u00a0", "\u2028"]
    ),
    st.sampled_from([" ", "\t", "\x0b", "\x0c", "\x1c", "\u00a0"]).map("{}198.51.100.0/24".format),
    st.sampled_from([" ", "\x1f", "\u2003", "\u00a0"]).map("{}ttl = 2h".format),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files") / "pbs-policy.conf"


@hypothesis_settings(max_examples=300)
@given(st.lists(_lines, max_size=6, unique=True), st.sampled_from(["\n", "\r\n"]))
@example(["ttl = 8h", "\u00a0key_prefix = x:"], "\n")
@example(["ttl = 8h\x1f"], "\n")
def test_script_and_package_read_the_same_from_every_file_that_is_valid(
    scratch: Path, lines: list[str], newline: str
) -> None:
    scratch.write_bytes("\n".join(lines).replace("\n", newline).encode())
    try:
        _, values = settings.load(scratch)
    except sources.SettingsError:
        return
    by_script = RECORDER["read_settings"](str(scratch))
    assert by_script == {name: values[name].text for name in by_script}


def test_script_and_package_have_the_same_defaults() -> None:
    by_script = RECORDER["read_settings"]("/dev/null")
    defaults = settings.defaults()
    assert by_script == {name: defaults[name].text for name in by_script}
    assert f'"{sources.DEFAULT_FILE}"' in SCRIPT.with_name("pbs_postlogin.py").read_text()


@given(
    st.one_of(
        st.binary(min_size=1, max_size=40),
        st.text('ab@.=" \\\t\u202e\u00e9', min_size=1, max_size=12).map(str.encode),
        st.integers(318, 322).map(lambda length: b"x" * length),
    )
)
def test_script_and_package_show_a_user_alike(user: bytes) -> None:
    assert RECORDER["shown"](user) == log.value(user.decode("utf-8", "surrogateescape"))


def test_the_record_of_a_login_is_the_packages_record() -> None:
    (command, *_) = commands_for(ALICE, "pop3", "/dev/null")
    record = parse_record(command[2])
    assert record == Record(record.login_at if record else 0, "pop3", "alice@example.com")
