"""What a service manager is to the policy service: it holds the sockets, starts it, and is told.

It speaks what sd_listen_fds(3) and sd_notify(3) say, as far as the service uses it.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pbs_policy.demo.daemons import wait_until
from tests.service import Service

# Descriptors in their places from 3 on, and the process id that nobody knows before: then the program itself.
_LAUNCH = """\
import fcntl, os, sys
count = int(sys.argv[1])
ours = [int(each) for each in sys.argv[2 : 2 + count]]
given = [fcntl.fcntl(each, fcntl.F_DUPFD, 3 + count) for each in ours]
for each in ours:
    os.close(each)
for number, each in enumerate(given, 3):
    os.dup2(each, number)
    os.close(each)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2 + count], sys.argv[2 + count :])
"""


class Manager(Service):
    """A service under a manager, that gives it `listening` and waits `watchdog` seconds for its signs of life."""

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, str],
        *,
        listening: Sequence[socket.socket] = (),
        watchdog: float = 0.0,
        abstract: bool = False,
    ) -> None:
        super().__init__(directory, settings)
        if listening and "listen" not in settings:
            lines = [f"{name} = {text}\n" for name, text in settings.items()]
            self.settings_file.write_text("".join(lines))  # what is passed is enough
        self.listening = list(listening)
        self.others: list[int] = []  # what it passes besides, as one that keeps connections would
        self.messages: list[str] = []
        self._place = tempfile.TemporaryDirectory(prefix="pbs-")
        address = f"@{self._place.name}" if abstract else f"{self._place.name}/notify"
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind("\0" + address[1:] if abstract else address)
        self.environment = {**os.environ, "NOTIFY_SOCKET": address}
        if watchdog:
            self.environment |= {"WATCHDOG_USEC": str(int(watchdog * 1e6))}

    def command(self) -> list[str]:
        """The launcher, and what it is to start."""
        command = super().command()
        given = [each.fileno() for each in self.listening] + self.others
        self.descriptors = given
        if not given:
            return command
        names = ["policy.socket"] * len(self.listening) + ["connection"] * len(self.others)
        passed = {"LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": ":".join(names)}
        self.environment = {**(self.environment or {}), **passed}
        return [sys.executable, "-IS", "-c", _LAUNCH, str(len(given)), *map(str, given), *command]

    def is_ready(self) -> bool:
        """Whether it has said so, since the last start."""
        return super().is_ready() and self.hears(lambda line: line == "READY=1")

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.messages.clear()
        super().start()

    def restart(self) -> None:
        """End it and start it again, as `systemctl restart` does: what is listened on stays open."""
        process = self.process
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            self.listen(0.005)
        self.listen()
        assert self.stop() == 0
        self.start()

    def reload(self) -> None:
        """SIGHUP, and wait until the reload is done."""
        self.messages.clear()
        self.process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: self.hears(lambda line: line == "READY=1")), self.messages

    def hears(self, condition: Callable[[str], bool]) -> bool:
        """Whether one of the lines that it was told is such a one."""
        self.listen()
        return any(condition(line) for message in self.messages for line in message.split("\n"))

    def listen(self, seconds: float = 0.0) -> None:
        """Read what was said, waiting at most so long for the first of it."""
        while select.select([self._ear], [], [], seconds)[0]:
            self.messages.append(self._ear.recv(65_536).decode())
            seconds = 0.0

    def close(self) -> None:
        """End it, and let go of everything."""
        super().close()
        for each in self.others:
            os.close(each)
        self.others.clear()
        for listening in self.listening:
            listening.close()
        self._ear.close()
        self._place.cleanup()
