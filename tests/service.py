"""`pbs-policy serve` as a process of the test's own, and a client that speaks to it as Postfix does."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from pbs_policy.demo.daemons import START_SECONDS, wait_until
from pbs_policy.demo.service import PrivateService
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.query import connect
from tests.recorder import PrivateRecorder

CLI = [sys.executable, "-m", "pbs_policy"]
"""The command line, from the environment that runs the tests."""


SERVE = ["serve", "--allow-root"] if os.geteuid() == 0 else ["serve"]
"""The command, as whoever runs the tests."""


class Service(PrivateService):
    """A running policy service. Listens on a free port of 127.0.0.1 where `settings` names no `listen`."""

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        settings = {"listen": "inet:127.0.0.1:0", **settings}
        super().__init__(directory, settings, name=f"service-{time.monotonic_ns()}")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process. Raises AssertionError where it does not run."""
        assert self._process is not None
        return self._process

    def log(self) -> str:
        """Everything it has logged so far."""
        return self.log_text()

    def waits_to_log(self, text: str, seconds: float = START_SECONDS) -> bool:
        """Whether `text` is in the log, now or within `seconds`."""
        return wait_until(lambda: text in self.log(), seconds=seconds)

    def connect(self, which: int = 0) -> Client:
        """A connection to the listener with this number."""
        return Client(self.listeners[which])

    def ask(self, client_address: str, **attributes: str) -> str:
        """The action for one request on a connection of its own."""
        with self.connect() as client:
            return client.ask(client_address, **attributes)


class Recorder(Service, PrivateRecorder):
    """A running `pbs-policy record`, which hears reports on a free port where `settings` do not say where."""

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        reports = {"reports_listen": "inet:127.0.0.1:0", "reports_check_passwords": "yes"}
        super().__init__(directory, {**reports, **settings})

    @property
    def url(self) -> str:
        """Where Dovecot reports: its auth_policy_server_url."""
        return f"http://127.0.0.1:{self.listeners[0].port}/"


class Client:
    """One connection to a policy service."""

    def __init__(self, listener: Listener) -> None:
        self.socket = connect(listener, 60)

    def ask(self, client_address: str, **attributes: str) -> str:
        """Send one request, and return the action of the one reply."""
        self.send(request(client_address, **attributes))
        return self.action()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def action(self) -> str:
        """The action of the next reply, which must come alone. Raises AssertionError where it is not a reply."""
        reply = b""
        while not reply.endswith(b"\n\n"):
            data = self.socket.recv(4096)
            assert data, f"closed after {reply!r}"
            reply += data
        found = re.fullmatch(rb"action=([^\n]+)\n\n", reply)
        assert found, f"not one reply: {reply!r}"
        return found[1].decode()

    def is_closed(self) -> bool:
        """Whether the service closes the connection without another byte. Waits for it."""
        with contextlib.suppress(ConnectionResetError):
            return self.socket.recv(4096) == b""
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def request(client_address: str, **attributes: str) -> bytes:
    """A request as Postfix sends it at RCPT, shortened to what matters."""
    pairs = {
        "request": "smtpd_access_policy",
        "protocol_state": "RCPT",
        "protocol_name": "ESMTP",
        "client_address": client_address,
        "sender": "alice@example.com",
        "recipient": "bob@example.net",
        **attributes,
    }
    return "".join(f"{name}={value}\n" for name, value in pairs.items()).encode() + b"\n"


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """`data` in pieces of `size` bytes."""
    return (data[start : start + size] for start in range(0, len(data), size))
