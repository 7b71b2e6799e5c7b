"""A Redis whose replies are changed on their way: what the service makes of them, in so many answers.

The proxy passes on each reply whole, but for a share that it changes. What is corrupted, cut or late is found out, or
waited for no longer than a request may wait. A reply that is a valid one to another question cannot be told from the
right one by its kind: of those, the figure is what can be had.
"""

from __future__ import annotations

import queue
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Bar
from benchmarks.processes import before_others
from pbs_policy.demo.daemons import wait_until
from tests.faults.asking import RECORD_SIZE, Asking
from tests.faults.clients import LOGGED_IN
from tests.faults.proxy import Proxy, close
from tests.faults.stage import Stage
from tests.service import Service

SHARE = 0.01
"""Of the replies, those that are changed."""

Change = Callable[["Replies", bytes], bytes]


class Replies:
    """The replies of one connection: what was passed on, and what is held back."""

    def __init__(self, chosen: random.Random) -> None:
        self.chosen = chosen
        self.earlier: dict[bytes, bytes] = {}  # the last reply of each shape
        self.held = b""
        self.is_cut = False


def corrupted(replies: Replies, reply: bytes) -> bytes:
    """One byte is another."""
    at = replies.chosen.randrange(len(reply))
    return reply[:at] + replies.chosen.randbytes(1) + reply[at + 1 :]


def cut(replies: Replies, reply: bytes) -> bytes:
    """The connection is closed in the middle."""
    replies.is_cut = True
    return reply[: len(reply) // 2]


def doubled(_: Replies, reply: bytes) -> bytes:
    """It comes twice."""
    return reply + reply


def swapped(replies: Replies, reply: bytes) -> bytes:
    """It comes behind the one that follows it."""
    replies.held = reply
    return b""


def displaced(replies: Replies, reply: bytes) -> bytes:
    """In its place comes an earlier one of the same shape."""
    return replies.earlier.get(_shape(reply), reply)


def late(_: Replies, reply: bytes) -> bytes:
    """Every one is late, by 0.15 to 0.35 s."""
    return reply


ANSWERS = 100_000
"""For each change, where it is measured."""

CHANGES: dict[str, Change] = {each.__name__: each for each in (corrupted, cut, late, doubled, swapped, displaced)}
FOUND_OUT = ("corrupted", "cut", "late")
"""After these nobody is told OK wrongly."""


def _shape(reply: bytes) -> bytes:
    return reply.partition(b"\r\n")[0] if reply.startswith(b"*") else reply[:1]


def end_of_reply(data: bytes, at: int = 0) -> int:
    """Where the reply that begins at `at` ends; -1 where it is not complete."""
    line = data.find(b"\r\n", at)
    if line < 0:
        return -1
    number = int(data[at + 1 : line]) if data[at : at + 1] in b"*$" else 0
    end = line + 2
    if data[at : at + 1] == b"$" and number >= 0:
        end += number + 2
    elif data[at : at + 1] == b"*":
        for _ in range(number):
            end = end_of_reply(data, end)
            if end < 0:
                return -1
    return end if end <= len(data) else -1


class LyingProxy(Proxy):
    """Passes on Redis' replies; from `lie` on it changes them."""

    def __init__(self, target: int | None, change: Change) -> None:
        super().__init__(target)
        self._change = change
        self._chosen = random.Random(3)  # for all connections, else short ones would begin alike, and be passed over
        self._lies = threading.Event()
        self.changed = 0

    def lie(self) -> None:
        """Begin."""
        self._lies.set()

    def _pass_replies(self, server: socket.socket, client: socket.socket) -> None:
        replies = Replies(self._chosen)
        due: queue.Queue[tuple[float, bytes]] = queue.Queue()
        sending = threading.Thread(target=self._send, args=(client, due), daemon=True)
        sending.start()
        rest = b""
        with suppress(OSError):
            while not replies.is_cut and (data := server.recv(65_536)):
                rest += data
                while not replies.is_cut and (end := end_of_reply(rest)) > 0:
                    reply, rest = rest[:end], rest[end:]
                    moment = time.monotonic()
                    if self._change is late and self._lies.is_set():
                        moment += replies.chosen.uniform(0.15, 0.35)
                    due.put((moment, self._told(replies, reply)))
        due.put((0.0, b""))
        sending.join()
        close(server, client)

    def _told(self, replies: Replies, reply: bytes) -> bytes:
        held, replies.held = replies.held, b""
        told = reply
        if self._lies.is_set() and (self._change is late or replies.chosen.random() < SHARE):
            self.changed += 1
            told = self._change(replies, reply)
        replies.earlier[_shape(reply)] = reply
        return told + held

    @staticmethod
    def _send(client: socket.socket, due: queue.Queue[tuple[float, bytes]]) -> None:
        """One after the other, each when its moment has come."""
        with suppress(OSError):
            while (each := due.get())[0]:
                moment, data = each
                time.sleep(max(0.0, moment - time.monotonic()))
                client.sendall(data)


@dataclass(frozen=True)
class Told:
    """What clients were told: how many answers, how many of them OK to who must not have it (or no answer of the
    protocol), how many OK or DUNNO; the slowest answer in seconds; how many replies were changed."""

    answers: int
    wrong: int
    decided: int
    slowest: float
    changed: int


def tell(directory: Path, redis_port: int | None, change: Change, answers: int) -> Told:
    """Ask a service of their own behind the proxy until there are so many answers."""
    # Of late replies, each connection has two or three a second.
    connections = 1_000 if change is late else 50
    with LyingProxy(redis_port, change) as proxy:
        settings = {"redis_url": proxy.url, "log_decisions": "none"}
        with before_others(), Service(directory, settings) as service:
            assert wait_until(lambda: service.ask(LOGGED_IN[0]) == "OK")
            file = directory / "asked"
            with Asking(service.listeners[0], file, rate=2_000, connections=connections) as asking:
                proxy.lie()
                enough = answers * RECORD_SIZE
                assert wait_until(lambda: file.stat().st_size >= enough, seconds=600)
    asked = [each for each in asking.asked() if each.answer != "lost"]
    return Told(
        len(asked),
        sum(each.is_wrong_ok or each.answer == "wrong" for each in asked),
        sum(each.answer in ("OK", "DUNNO") for each in asked),
        max(each.answered - each.sent for each in asked),
        proxy.changed,
    )


def measure(stage: Stage, say: Callable[[str], None]) -> list[Bar]:
    """The bars on each change."""
    bars = []
    for name, change in CHANGES.items():
        say(f"replies of Redis: {name}")
        directory = stage.directory / name
        directory.mkdir()
        told = tell(directory, stage.redis.port, change, ANSWERS)
        what = f"replies of Redis are {name}"
        is_bar = name in FOUND_OUT
        wrong = f"{told.wrong} of {told.answers:,}, of {told.changed:,} replies"
        bars += [
            Bar(f"{what}: wrong `OK`", "0 of 100,000" if is_bar else "", wrong, told.wrong == 0 if is_bar else None),
            Bar(f"{what}: the slowest answer", "at most 0.6 s", f"{told.slowest:.2f} s", told.slowest <= 0.6),
        ]
    return bars
