"""Requests sent straight to the service, at a steady rate and by a process of its own, each with its time and answer.

It sends when a request is due, not when the last one is answered, as far as it has connections that wait for nothing:
a service that answers late is not asked less. A lost connection is opened anew.
"""

from __future__ import annotations

import random
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple, Self

from pbs_policy.postfix.listener import Listener
from tests.faults.clients import DENIED, LOGGED_IN, STRANGERS
from tests.service import request

GROUPS = (LOGGED_IN, STRANGERS, DENIED)
MAY_RELAY = 0  # the group of those who are logged in

ANSWERS = ("OK", "DUNNO", "DEFER", "lost", "wrong")
"""`lost`: the connection ended without a reply. `wrong`: a reply that this protocol or this service does not have."""

_RECORD = struct.Struct("<ddBB")
RECORD_SIZE = _RECORD.size
"""Bytes of the file for each answer."""

_TICK = 0.002
_REOPEN = 0.02  # seconds before a connection that could not be opened is tried again


class Asked(NamedTuple):
    """One request: sent and answered when (monotonic seconds), for a client of which group, with what answer."""

    sent: float
    answered: float
    group: int
    answer: str

    @property
    def is_wrong_ok(self) -> bool:
        """Whether somebody was permitted who must never be."""
        return self.answer == "OK" and self.group != MAY_RELAY


class Asking:
    """The process that asks, for as long as the context lasts; `asked` is what it has seen, when it has ended."""

    def __init__(self, listener: Listener, file: Path, *, rate: int, connections: int = 50) -> None:
        self._file = file
        self._command = [
            *(sys.executable, "-m", "tests.faults.asking"),
            *(str(listener), str(file), str(rate), str(connections)),
        ]

    def __enter__(self) -> Self:
        top = Path(__file__).parents[2]
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=top)
        assert self._process.stdout
        assert self._process.stdout.readline() == b"ready\n", "the process that asks did not begin"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()  # it ends when that does
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout
            self._process.stdout.close()

    def asked(self) -> list[Asked]:
        """Every request, in the order of the answers."""
        assert self._process.returncode == 0, f"the process that asks ended with {self._process.returncode}"
        records = _RECORD.iter_unpack(self._file.read_bytes())
        return [Asked(sent, answered, group, ANSWERS[answer]) for sent, answered, group, answer in records]


class _Connection:
    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.reply = b""
        self.group = 0
        self.sent = 0.0


def main(listener: str, file: str, rate: str, connections: str) -> None:
    """Ask until standard input ends."""
    place = Listener.parse(listener)
    chosen = random.Random(1)
    watching = selectors.DefaultSelector()
    watching.register(sys.stdin, selectors.EVENT_READ)
    closed = deque(_Connection() for _ in range(int(connections)))
    ready: deque[_Connection] = deque()
    interval, due = 1 / int(rate), time.monotonic()
    reopen_at = 0.0
    with Path(file).open("wb") as output:
        print("ready", flush=True)

        def note(connection: _Connection, answer: str) -> None:
            record = (connection.sent, time.monotonic(), connection.group, ANSWERS.index(answer))
            output.write(_RECORD.pack(*record))
            connection.sent, connection.reply = 0.0, b""

        def lose(connection: _Connection, answer: str) -> None:
            nonlocal reopen_at
            assert connection.socket
            watching.unregister(connection.socket)
            connection.socket.close()
            connection.socket = None
            if connection in ready:
                ready.remove(connection)
            if connection.sent or answer == "wrong":
                note(connection, answer)
            closed.append(connection)
            reopen_at = time.monotonic() + _REOPEN

        while True:
            now = time.monotonic()
            while closed and now >= reopen_at:
                connection = closed.popleft()
                connection.socket = _open(place)
                if connection.socket is None:
                    closed.append(connection)
                    reopen_at = now + _REOPEN
                    break
                watching.register(connection.socket, selectors.EVENT_READ, connection)
                ready.append(connection)
            while due <= now:
                due += interval
                if not ready:
                    due = max(due, now)  # what could not be sent is not made up for
                    break
                connection = ready.popleft()
                connection.group = chosen.randrange(len(GROUPS))
                data = request(chosen.choice(GROUPS[connection.group]))
                connection.sent = time.monotonic()
                assert connection.socket
                try:
                    connection.socket.send(data)
                except OSError:
                    lose(connection, "lost")
            for key, _ in watching.select(_TICK):
                if key.data is None:
                    return  # standard input has ended
                connection = key.data
                answer = _read(connection)
                if answer in ("lost", "wrong"):
                    lose(connection, answer)
                elif answer:
                    note(connection, answer)
                    ready.append(connection)


def _open(place: Listener) -> socket.socket | None:
    opened = socket.socket(socket.AF_UNIX if place.path else socket.AF_INET, socket.SOCK_STREAM)
    opened.settimeout(1.0)
    try:
        opened.connect(place.path or (place.host, place.port))
    except OSError:
        opened.close()
        return None
    if not place.path:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.setblocking(False)
    return opened


def _read(connection: _Connection) -> str:
    """The answer when it is complete, `lost`, or nothing yet."""
    assert connection.socket
    try:
        data = connection.socket.recv(4096)
    except BlockingIOError:
        return ""
    except OSError:
        return "lost"
    if not data:
        return "lost"
    connection.reply += data
    if not connection.sent:
        return "wrong"  # nobody asked
    if not connection.reply.endswith(b"\n\n"):
        return ""
    known = {b"action=OK\n\n": "OK", b"action=DUNNO\n\n": "DUNNO"}
    if connection.reply.startswith(b"action=DEFER_IF_REJECT ") and connection.reply.count(b"\n") == 2:
        return "DEFER"
    return known.get(connection.reply, "wrong")


if __name__ == "__main__":
    main(*sys.argv[1:])
