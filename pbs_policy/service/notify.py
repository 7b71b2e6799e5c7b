"""What the service manager is told (sd_notify(3)): a datagram of NAME=VALUE lines to the socket that NOTIFY_SOCKET
names, a path or, after "@", an abstract name. Without that variable nobody is told anything.

Our own rather than a library's: it is one datagram.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping

_BEAT = 1.0
"""Seconds between two signs of life, at most."""

SEND_TIME = 0.5
"""Seconds that one message may wait for a manager that does not read."""


class Notify:
    """Tells the manager; `watchdog` is the time, in seconds, within which it wants to hear `alive` (0: it does not).

    A manager that cannot be told never stops the service: each method returns whether it was told.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = watchdog
        self._status = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Notify:
        """As the manager that started this process wants it."""
        address = environment.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@"):
            return cls()  # none, or a kind that only virtual machines have
        usec = environment.get("WATCHDOG_USEC", "")
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(address, int(usec) / 1e6 if is_ours and re.fullmatch("[0-9]{1,18}", usec) else 0.0)

    @property
    def beats(self) -> float:
        """Seconds between two signs of life that the manager wants, 0 for none."""
        if not self._address:
            return 0.0
        return min(_BEAT, self.watchdog / 4) if self.watchdog else _BEAT

    def ready(self, status: str) -> bool:
        """The service serves, or its reload is done, well or not."""
        self._status = status
        return self.send("READY=1", f"STATUS={status}")

    def reloading(self) -> bool:
        """The settings are being read anew; `ready` follows."""
        return self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        """The service is about to end."""
        return self.send("STOPPING=1", "STATUS=answering what was asked")

    def alive(self, status: str) -> bool:
        """The watchdog need not act; and what `systemctl status` is to show, where that has changed."""
        lines = ["WATCHDOG=1"] if self.watchdog else []
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={status}")
        return self.send(*lines) if lines else True

    def send(self, *lines: str) -> bool:
        """Send one message."""
        if not self._address:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
            telling.settimeout(SEND_TIME)
            try:
                telling.connect(self._address)
                telling.send("\n".join(lines).encode())
            except OSError:
                return False
        return True
