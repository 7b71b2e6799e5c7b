"""One connection to Redis, and the batches of questions in flight on it, oldest first. How it is opened is said in
`redis_connector`; what becomes of the batches when it is lost is for `lookups` to say.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis

from pbs_policy.log import Log
from pbs_policy.prompt_writer import PromptWriter
from pbs_policy.store.latency import Latency
from pbs_policy.store.question import Command
from pbs_policy.store.redis_master import is_elsewhere, without_password
from pbs_policy.store.resp import pack

TIMEOUT = 0.5
"""Seconds a request may wait for Redis in all. Postfix waits 2 s for us in the example main.cf."""

Answered = Callable[[Sequence[bytes | None] | None, Sequence[Any]], None]
"""Called once for each question: the values and the commands' replies, or None and nothing for "unavailable"."""


_NO_REPLIES: Sequence[Any] = ()
_IS_VALUE = frozenset((bytes, type(None))).issuperset

_ANSWERS = "Redis answers: "


def _fault(replies: Sequence[Any]) -> str:
    """What is wrong with the replies to commands, or nothing: a number is right, and `OK` of a SET."""
    for reply in replies:
        if type(reply) is not int and reply != b"OK":
            return f"{_ANSWERS}{reply}"
    return ""


class RedisRefused(Exception):
    """Redis was reached, and answered the login or the first command with an error."""


class _Elsewhere(Exception):
    """Redis answers that another server is the one to be asked."""


class Batch:
    """What one turn of the loop asked, and where each answer goes."""

    __slots__ = ("asks", "begun", "commands", "deadline", "further", "keys", "latency", "log", "replies", "retried")

    def __init__(self, log: Log, latency: Latency | None = None) -> None:
        self.asks: list[tuple[Answered, int, int]] = []
        self.keys: list[bytes] = []
        self.commands: list[Command] = []
        self.retried = False
        self.replies: list[Any] = []
        self.log = log
        self.latency = latency
        self.begun = 0.0  # when the first of them was asked, by the loop's clock
        self.deadline = 0.0  # until when it waits
        self.further = 0  # of `asks`, those with which no request began

    def request(self) -> bytes:
        """The commands: one MGET for all values, and those that were asked for."""
        parts = [pack(command) for command in self.commands]
        if self.keys:
            parts.insert(0, pack((b"MGET", *self.keys)))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def is_answered(self) -> bool:
        """Whether there is a reply to each command."""
        return len(self.replies) == len(self.commands) + bool(self.keys)

    def fault(self) -> str:
        """What is wrong with the values, which makes the whole batch unavailable, or nothing."""
        if self.keys:
            values = self.replies[0]
            if type(values) is not list or len(values) != len(self.keys) or not _IS_VALUE(map(type, values)):
                return f"Redis answers to MGET: {values}"
        return ""

    def answer(self, report: Callable[[str], None]) -> None:
        """Hand the replies to those who asked; whose command met an error is told "unavailable", it alone."""
        values: list[bytes | None] = self.replies[0] if self.keys else []
        replies: list[Any] = self.replies[bool(self.keys) :]
        latency = self.latency
        if latency is not None:
            latency.begun = self.begun
        value = reply = 0
        for answered, number_of_values, number_of_replies in self.asks:
            own_values = values[value : value + number_of_values]
            value += number_of_values
            try:
                if not number_of_replies:
                    answered(own_values, _NO_REPLIES)
                    continue
                own_replies = replies[reply : reply + number_of_replies]
                reply += number_of_replies
                if fault := _fault(own_replies):
                    report(fault)
                    answered(None, _NO_REPLIES)
                else:
                    answered(own_values, own_replies)
            except Exception as error:  # noqa: BLE001 - one request's fault must not take its neighbours' answers
                self.log.error(f"a request was left without an answer: {error!r}")
        if latency is not None:
            latency.end(len(self.asks) - self.further)

    def fail(self) -> None:
        """Tell those who asked that Redis is unavailable."""
        latency = self.latency
        if latency is not None:
            latency.begun = self.begun
        for answered, _, _ in self.asks:
            try:
                answered(None, ())
            except Exception as error:  # noqa: BLE001 - as above
                self.log.error(f"a request was left without an answer: {error!r}")
        if latency is not None:
            latency.end(len(self.asks) - self.further)


class Line(asyncio.Protocol):
    """One connection to Redis: what is in flight on it, oldest first."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._reader = hiredis.Reader()
        self._loop = loop
        self._watch: asyncio.TimerHandle | None = None
        self._greetings: list[asyncio.Future[Any]] = []
        self.in_flight: deque[Batch] = deque()
        self.is_mute = False
        self.trouble = ""
        self.place = ""
        self.report: Callable[[str], None] = lambda _: None
        self.lost: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A stream's protocol is always given a Transport; the base class's signature does not say so.
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # of a stream it is one
        self._writer = PromptWriter(self._transport)

    async def greet(self, *command: bytes) -> Any:
        """The reply to one command before any batch, such as AUTH. Raises RedisRefused where it is an error."""
        future = self._loop.create_future()
        self._greetings.append(future)
        self._transport.write(pack(command))
        reply = await future
        if isinstance(reply, Exception):
            raise RedisRefused(f"{command[0].decode()}: {without_password(str(reply), [command])}")
        return reply

    def send(self, batch: Batch) -> None:
        """Ask a batch. On a connection that is just being lost it waits to be taken back with the others."""
        self.in_flight.append(batch)
        if self._transport.is_closing():
            return
        self._writer.write(batch.request())
        if self._watch is None:
            self._watch = self._loop.call_at(batch.deadline, self._look_at_the_oldest)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if self._greetings:
                    greeting = self._greetings.pop(0)
                    if not greeting.done():
                        greeting.set_result(reply)
                    continue
                self._take_reply(reply)
        except _Elsewhere as error:
            self.give_up(str(error))
        except Exception:  # noqa: BLE001 - hiredis raises TypeError and MemoryError, too, at what no Redis sends
            self.give_up("what answers there does not speak Redis' protocol")

    def _take_reply(self, reply: Any) -> None:
        batch = self.in_flight[0]
        batch.replies.append(reply)
        if not batch.is_answered():
            return
        fault = batch.fault()
        if fault and is_elsewhere(str(batch.replies[0])):
            raise _Elsewhere(fault)  # what is in flight is asked again there
        self.in_flight.popleft()
        if fault:
            self.report(fault)
            batch.fail()
        else:
            batch.answer(self._report)

    def _report(self, fault: str) -> None:
        """After an error that a command met."""
        self.report(fault)
        if is_elsewhere(fault.removeprefix(_ANSWERS)):
            self.give_up(fault)

    def connection_lost(self, error: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        reason = self.trouble or str(error or "the connection was closed")
        for greeting in self._greetings:
            if not greeting.done():
                greeting.set_exception(ConnectionResetError(reason))
        if not self.lost.done():
            self.lost.set_result(None)

    def give_up(self, trouble: str) -> None:
        """End the connection at once, for this reason."""
        self.trouble = trouble
        self._transport.abort()

    def close(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def _look_at_the_oldest(self) -> None:
        # One timer watches all: it is moved to the oldest batch's deadline, not set for each.
        self._watch = None
        if not self.in_flight:
            return
        deadline = self.in_flight[0].deadline
        if self._loop.time() >= deadline:
            self.is_mute = True
            self.trouble = f"no answer within {TIMEOUT} s"
            self._transport.abort()
        else:
            self._watch = self._loop.call_at(deadline, self._look_at_the_oldest)
