"""Requests sent straight to the service, at a steady rate and by a process of its own, each with its time and answer.

It sends when a request is due, not when the last one is answered, as far as it has connections that wait for nothing:
a service that answers late is not asked less. A lost connection is opened anew.
"""

from __future__ import annotations

import asyncio
import random
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

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


class _Asker:
    """Sends what is due, and writes down what came of it."""

    def __init__(self, place: Listener, output: BinaryIO) -> None:
        self._place = place
        self._output = output
        self._chosen = random.Random(1)
        self.ready: deque[_Connection] = deque()

    async def ask(self, rate: int) -> None:
        """Send as many requests a second, for ever. What could not be sent in time is not made up for."""
        due = time.monotonic()
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            while due <= now:
                due += 1 / rate
                if not self.ready:
                    due = max(due, now)
                    break
                group = self._chosen.randrange(len(GROUPS))
                self.ready.popleft().send(group, request(self._chosen.choice(GROUPS[group])))

    def note(self, sent: float, group: int, answer: str) -> None:
        """One request was answered."""
        self._output.write(_RECORD.pack(sent, time.monotonic(), group, ANSWERS.index(answer)))

    async def keep_connected(self) -> None:
        """One connection, opened again and again."""
        loop = asyncio.get_running_loop()
        while True:
            connection = _Connection(self)
            try:
                if self._place.path:
                    await loop.create_unix_connection(lambda: connection, self._place.path)  # noqa: B023 - at once
                else:
                    await loop.create_connection(lambda: connection, self._place.host, self._place.port)  # noqa: B023
                await connection.lost.wait()
            except OSError:
                pass
            await asyncio.sleep(_REOPEN)


class _Connection(asyncio.Protocol):
    def __init__(self, asker: _Asker) -> None:
        self._asker = asker
        self._reply = b""
        self._group = 0
        self._sent = 0.0  # 0 while nothing is asked
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._asker.ready.append(self)

    def send(self, group: int, data: bytes) -> None:
        """Ask on it."""
        self._group, self._sent, self._reply = group, time.monotonic(), b""
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._reply += data
        if self._sent and not self._reply.endswith(b"\n\n"):
            return
        answer = _read(self._reply) if self._sent else "wrong"  # nobody asked
        self._asker.note(self._sent, self._group, answer)
        if self._sent and answer != "wrong":
            self._asker.ready.append(self)
        else:
            self._transport.abort()
        self._sent = 0.0

    def connection_lost(self, _: Exception | None) -> None:
        if self._sent:
            self._asker.note(self._sent, self._group, "lost")
        if self in self._asker.ready:
            self._asker.ready.remove(self)
        self.lost.set()


def _read(reply: bytes) -> str:
    known = {b"action=OK\n\n": "OK", b"action=DUNNO\n\n": "DUNNO"}
    if reply.startswith(b"action=DEFER_IF_REJECT ") and reply.count(b"\n") == 2:
        return "DEFER"
    return known.get(reply, "wrong")


async def main(output: BinaryIO, listener: str, rate: int, connections: int) -> None:
    """Ask until standard input ends."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    asker = _Asker(Listener.parse(listener), output)
    work = [asker.ask(rate), *(asker.keep_connected() for _ in range(connections))]
    tasks = [asyncio.create_task(each) for each in work]
    print("ready", flush=True)
    await ended.wait()
    for each in tasks:
        each.cancel()


if __name__ == "__main__":
    with Path(sys.argv[2]).open("wb") as answers:
        asyncio.run(main(answers, sys.argv[1], int(sys.argv[3]), int(sys.argv[4])))
