"""Those that talk to Redis, with more time for it than they have as they are shipped: half a second, or less, is what
a machine that is busy elsewhere may need itself. Where a test is about something else than these limits, they are
moved; and a Redis that is mute costs these seconds instead.
"""

from __future__ import annotations

import atexit
import compileall
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from pbs_policy.shipped import shipped
from pbs_policy.store import connect
from tests.service import Service

SECONDS = 3.0
"""For Redis; twice that for all of a login."""

SHIPPED_SECONDS = connect.TIMEOUT
"""Read before it is moved."""

SCRIPT, RECORDER = "pbs-postlogin", "pbs_postlogin.py"

_SERVE = f"""\
import sys
from pbs_policy.store import connect
connect.TIMEOUT = {SECONDS}  # before anybody else takes it from there
from pbs_policy.cli import main
main(sys.argv[1:])
"""


class PatientService(Service):
    """A service that waits longer for Redis."""

    def command(self) -> list[str]:
        """The command line."""
        return patient_command(super().command())


def patient_command(command: list[str]) -> list[str]:
    """The same for the command line of a service."""
    python, _, package, *arguments = command
    assert (python, package) == (sys.executable, "pbs_policy")
    return [python, "-c", _SERVE, *arguments]


def make_command_line_patient() -> None:
    """The command line, in this process, waits longer for Redis."""
    _move_command_line(SECONDS)


@contextmanager
def as_shipped() -> Iterator[None]:
    """Meanwhile it waits as long as it does for others."""
    _move_command_line(SHIPPED_SECONDS)
    try:
        yield
    finally:
        make_command_line_patient()


@cache
def patient_script() -> Path:
    """A copy of the post-login script that waits longer, for all tests."""
    directory = tempfile.TemporaryDirectory(prefix="pbs-")
    atexit.register(directory.cleanup)
    for name in (SCRIPT, RECORDER):
        shutil.copy(shipped(f"dovecot-hooks/{name}"), directory.name)
    return be_patient(Path(directory.name))


def be_patient(directory: Path, *, with_redis: bool = True) -> Path:
    """Give the script in `directory` more time in all, and, where asked for, for Redis. Returns its path."""
    _move(directory / RECORDER, "LOGIN_SECONDS", 2 * SECONDS)
    if with_redis:
        _move(directory / RECORDER, "REDIS_SECONDS", SECONDS)
    compileall.compile_file(directory / RECORDER, quiet=1)  # who runs it may not write there
    return directory / SCRIPT


def _move_command_line(seconds: float) -> None:
    vars(connect)["TIMEOUT"] = seconds


def _move(file: Path, limit: str, seconds: float) -> None:
    text, times = re.subn(rf"(?m)^{limit} = [0-9.]+ ", f"{limit} = {seconds} ", file.read_text())
    assert times == 1, f"{file} no longer has {limit}"
    file.write_text(text)
