"""The session goes on as Dovecot has it, whatever becomes of the login: one line says why it was not recorded."""

from __future__ import annotations

import posix
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.ports import free_port
from pbs_policy.store.redis_url import RedisUrl
from tests.patience import be_patient, patient_script
from tests.postlogin.support import (
    ALICE,
    LONGEST_LOGIN,
    SCRIPT,
    TIMER,
    assert_went_on_with_one_line,
    full_pipe,
    log_in,
    logins,
    went_on,
)
from tests.stores import connect, pause


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


@pytest.mark.parametrize(
    "environment", [{}, ALICE, ALICE | {b"LC_ALL": b"C"}, ALICE | {b"ODD": b"\xff\n=", b"EMPTY": b""}]
)
def test_the_environment_is_the_sessions_unchanged(working: list[str], environment: dict[bytes, bytes]) -> None:
    """Python adds an LC_CTYPE of its own; a mail process must not find it."""
    assert went_on(log_in(environment, *working), environment)


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



# --- failures: one line says why, and nothing is recorded


REDIS_DOWN = "redis://127.0.0.1:{free_port}"

Failure = tuple[dict[str, str], dict[bytes, bytes], str]
"""Settings, what Dovecot says besides, and what is complained of."""

FAILURES: list[Failure] = [
    *(
        (values, {}, complaint)
        for values, complaint in (
            ({"ttl": "soon"}, "ttl = soon"),
            ({"ttl": "0"}, "ttl = 0"),
            ({"ttl": ""}, "ttl = "),
            ({"ipv6_prefix": "/64"}, "ipv6_prefix = /64"),
            ({"never_record": "webmail.example.com"}, "not an IP address: webmail.example.com"),
            ({"redis_url": "localhost:6379"}, "redis_url = localhost:6379"),
            ({"redis_url": "redis://pbs:secret@localhost"}, "redis_url: a user and password do not belong"),
            ({"redis_url": "unix:///nonexistent/redis.sock"}, "cannot be reached"),
            ({"redis_url": REDIS_DOWN}, "cannot be reached"),
            ({"redis_password_file": "/nonexistent"}, "No such file"),
            ({"redis_password_file": "/"}, "Is a directory"),
            # What would silently not hold.
            ({"services": "pop3\n  never_record = 192.0.2.0/24"}, "never_record has a blank in front"),
            ({"redis_user": "pbs"}, "redis_user is set without redis_password_file"),
            ({"sentinel_user": "s"}, "sentinel_user is set without sentinel_password_file"),
            ({"redis_tls_ca_file": "/ca.pem"}, "redis_tls_ca_file is set, and redis_url is without TLS"),
            ({"redis_tls_key_file": "/key.pem"}, "redis_tls_key_file is set, and redis_url is without TLS"),
        )
    ),
    *(
        ({}, {b"IP": address}, complaint)
        for address, complaint in (
            (b"", "not an IP address: "),
            (b"unknown", "not an IP address: unknown"),
            (b"192.0.2.07", "not an IP address: 192.0.2.07"),
            (b"2001:db8::7%eth0", "zone id: 2001:db8::7%eth0"),
            (b"a\n\x1b[31m\xffb", "not an IP address: a??[31m?b"),
            (b"x" * 5000, "not an IP address: xxx"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "said_by_dovecot", "complaint"), FAILURES, ids=[row[2] for row in FAILURES])
def test_what_cannot_be_used_fails_no_login_and_records_none(
    values: dict[str, str],
    said_by_dovecot: dict[bytes, bytes],
    complaint: str,
    redis_server: PrivateRedis,
    redis: Redis,
    configure: Callable[..., str],
) -> None:
    values = {name: text.format(free_port=free_port()) for name, text in values.items()}
    environment = ALICE | said_by_dovecot
    result = log_in(environment, "-c", configure(**{"redis_url": redis_server.url, **values}), "pop3")
    assert_went_on_with_one_line(result, environment, complaint)
    assert b"secret" not in result.stderr
    assert redis.keys() == []


def test_a_login_without_an_address_is_not_recorded(working: list[str]) -> None:
    environment = {b"USER": b"alice@example.com"}
    assert_went_on_with_one_line(log_in(environment, *working), environment, "not an IP address: ")


@pytest.mark.parametrize("content", [None, "directory", b"ttl = \xff\n"], ids=["absent", "directory", "not UTF-8"])
def test_a_settings_file_that_cannot_be_read_fails_no_login(tmp_path: Path, content: bytes | str | None) -> None:
    file = tmp_path / "pbs-policy.conf"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        file.mkdir()
    assert_went_on_with_one_line(log_in(ALICE, "-c", str(file), "pop3"), ALICE, "this login is not recorded")


def test_a_host_name_that_nobody_knows_fails_no_login(configure: Callable[..., str]) -> None:
    """Where a name server says so, and where it says nothing."""
    started = time.monotonic()
    result = log_in(ALICE, "-c", configure(redis_url="redis://no-such-host.invalid"), "pop3", script=SCRIPT)
    assert_went_on_with_one_line(result, ALICE, "this login is not recorded")
    assert time.monotonic() - started < LONGEST_LOGIN


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


@pytest.mark.parametrize(
    ("options", "password", "complaint"),
    [
        # With less memory than it needs for itself, Redis is full from its start, and reads on.
        ("--maxmemory 100kb --maxmemory-policy noeviction", None, "Redis answers to SET: -OOM"),
        ("--requirepass secret", b"wrong\n", "Redis answers to AUTH: -WRONGPASS"),
        ("--requirepass secret", b"\n", "Redis answers to "),
        ("--requirepass secret", None, "NOAUTH"),
    ],
)
def test_a_redis_that_does_not_take_a_login_fails_none(
    own_redis: Callable[..., PrivateRedis],
    configure: Callable[..., str],
    tmp_path: Path,
    options: str,
    password: bytes | None,
    complaint: str,
) -> None:
    values = {"redis_url": own_redis(*options.split()).url}
    if password is not None:
        (tmp_path / "password").write_bytes(password)
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
