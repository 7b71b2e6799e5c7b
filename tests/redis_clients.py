"""The three that talk to Redis (the service, the command line, the post-login script), on one settings file."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest

from pbs_policy.cli import run
from pbs_policy.decision.rules import DEFER, DUNNO, OK
from pbs_policy.demo.daemons import PrivateDaemon
from pbs_policy.shipped import shipped
from tests.patience import PatientService, as_shipped, patient_script
from tests.service import Service

ALICE = "192.0.2.7"
BOB = "198.51.100.8"

LONGEST_LOGIN = 12
"""Seconds. 6 s at most are the script's own, and the rest is the start of two processes on a busy machine."""


class Said(NamedTuple):
    """How a process ended, and what it said."""

    status: int
    out: str
    err: str


class Clients:
    """The three that talk to Redis, on one settings file each test: the service, the command line, the script.

    They wait for Redis longer than they do as they are shipped, unless a test says that they have no patience.
    """

    def __init__(self, directory: Path, stack: ExitStack, capsys: pytest.CaptureFixture[str]) -> None:
        self._directory = directory
        self._stack = stack
        self._capsys = capsys
        self._settings: dict[str, str] = {}
        self.have_patience = True

    def point_at(self, url: str, **settings: str) -> None:
        """From now on Redis is there."""
        self._settings = {"redis_url": url, **settings}

    def start(self) -> Service:
        """A service with these settings."""
        kind = PatientService if self.have_patience else Service
        return self._stack.enter_context(kind(self._directory, self._settings))

    def check(self, client_address: str = ALICE) -> Said:
        """`pbs-policy check`, in this process: a connection that it leaves open is a warning, and so a failure."""
        self._capsys.readouterr()
        with nullcontext() if self.have_patience else as_shipped():
            status = run(["-c", str(self._file()), "check", client_address])
        return Said(status, *self._capsys.readouterr())

    def log_in(self, client_address: str = ALICE, *, has_patience: bool | None = None) -> Said:
        """A login by way of the script, whose session says that it went on."""
        has_patience = self.have_patience if has_patience is None else has_patience
        script = patient_script() if has_patience else shipped("dovecot-hooks/pbs-postlogin")
        started = time.monotonic()
        result = subprocess.run(
            [script, "-c", self._file(), "pop3", "/bin/echo", "went on"],
            env={"IP": client_address, "USER": "alice@example.com"},
            capture_output=True,
            check=False,
            text=True,
        )
        assert time.monotonic() - started < LONGEST_LOGIN
        assert (result.returncode, result.stdout) == (0, "went on\n"), result.stderr
        return Said(result.returncode, result.stdout, result.stderr)

    def assert_recorded(self, client_address: str = ALICE) -> None:
        """The script records a login, and says nothing."""
        assert self.log_in(client_address).err == ""

    def assert_not_recorded(self, reason: str) -> None:
        """The script says in one line why it did not record, and the session goes on. Where the reason does not
        matter, nor does how soon it gives up."""
        line = self.log_in(has_patience=self.have_patience and bool(reason)).err
        assert line.startswith("pbs-postlogin: error: this login is not recorded: ")
        assert line.count("\n") == 1
        assert reason in line, line

    def assert_check_is_unavailable(self, reason: str) -> None:
        """The command line ends with 69, and says why."""
        status, out, err = self.check()
        assert status == os.EX_UNAVAILABLE
        assert reason in out + err, out + err
        assert "Traceback" not in err

    def assert_all_are_served(self) -> Service:
        """A login that the script records is OK to the service and to the command line; another address is not."""
        service = self.start()
        assert service.ask(ALICE) == DUNNO, service.log()
        self.assert_recorded()
        assert service.ask(ALICE) == OK, service.log()
        assert service.ask(BOB) == DUNNO
        checked = self.check(ALICE)
        assert checked.status == 0, checked
        assert self.check(BOB).status == 1
        assert "error: " not in service.log()
        return service

    def assert_none_is_served(self, reason: str, *, of_service: str = "") -> None:
        """Unavailable to all three, each naming the reason."""
        service = self.start()
        assert service.ask(ALICE) == DEFER
        assert service.waits_to_log(of_service or reason), service.log()
        assert "Traceback" not in service.log()
        assert "connected to Redis" not in service.log()
        self.assert_check_is_unavailable(reason)
        self.assert_not_recorded(reason)

    def _file(self) -> Path:
        file = self._directory / "pbs-policy.conf"
        file.write_text("".join(f"{name} = {value}\n" for name, value in self._settings.items()))
        return file


def kill(daemon: PrivateDaemon) -> None:
    """Kill it as a crash does, and wait until it is gone."""
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.stop()
