"""What the tests of the post-login script share: the real file as a process, against a real Redis."""

from __future__ import annotations

import fcntl
import posix
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from redis import Redis

from pbs_policy.shipped import shipped
from pbs_policy.table.login_table import Entry
from tests.patience import patient_script
from tests.stores import table_on

SCRIPT = shipped("dovecot-hooks/pbs-postlogin")
SESSION = ("/usr/bin/env", "-0")
"""A session that shows its environment, byte for byte."""

ALICE = {b"IP": b"192.0.2.7", b"USER": b"alice@example.com"}
LONGEST_LOGIN = 5
"""Seconds. 0.5 s are meant, and the rest is the start of two processes on a busy machine."""

TIMER = "import signal; print(*signal.getitimer(signal.ITIMER_REAL), signal.getsignal(signal.SIGALRM).name)"
"""A session that shows what is left of an alarm clock."""


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


def logins(redis: Redis) -> list[Entry]:
    return sorted(table_on(redis, "pbs:").entries())


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


def load_recorder() -> dict[str, Any]:
    """What the script's other file defines."""
    recorder = SCRIPT.with_name("pbs_postlogin.py")
    namespace: dict[str, Any] = {}
    exec(compile(recorder.read_text(), recorder, "exec"), namespace)  # noqa: S102 - our own script
    return namespace
