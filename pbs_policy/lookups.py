"""The hot path to Redis: every request of the service shares one connection, and all that arrive in one turn of the
event loop go out in one round (`MGET`, and `PTTL` for what would be permitted). Answers are matched in order; there
is no task, no connection and no timer per request.

A lookup has three answers: found, not found (both in `values`), unavailable (`values` is None). When Redis is away:

- A lost connection is opened anew at once; what was in flight is asked once more on it, within its deadline.
- While no connection can be had, requests wait for one until their deadline, `TIMEOUT` after they were asked.
- After that, and after a Redis that was mute for `TIMEOUT`, the circuit is open: requests are answered
  "unavailable" at once, and a probe in the background closes it again as soon as Redis answers.

Nothing is remembered between two requests: a permission is read from Redis for the very request it is for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis

from pbs_policy.log import Log, printable
from pbs_policy.redis_url import RedisUrl

TIMEOUT = 0.5
"""Seconds a request may wait for Redis in all. Postfix waits 2 s for us in the example main.cf."""

RETRY_INTERVAL = 0.02
"""Seconds between attempts to connect while requests wait: a restart of Redis takes a few tenths of a second."""

PROBE_INTERVAL = 0.25
"""Seconds between attempts to connect while the circuit is open and nobody waits."""

Answer = Callable[[Sequence[bytes | None] | None, Sequence[int]], None]
"""Called once for each `ask`, never from within it: the values and remaining milliseconds, or None and nothing."""


def _pack(*parts: str | bytes) -> bytes:
    packed: bytes = hiredis.pack_command(parts)  # type: ignore[arg-type]  # its stub knows tuples of one item only
    return packed


class RedisRefused(Exception):
    """Redis was reached, and answered the login or the first command with an error."""


class _Batch:
    """What one turn of the loop asked, and where each answer goes."""

    __slots__ = ("asks", "deadline", "ends", "keys", "replies", "retried")

    def __init__(self) -> None:
        self.asks: list[tuple[Answer, int, int]] = []
        self.keys: list[bytes] = []
        self.ends: list[bytes] = []
        self.deadline = 0.0
        self.retried = False
        self.replies: list[Any] = []

    def request(self) -> bytes:
        parts = [_pack("PTTL", key) for key in self.ends]
        if self.keys:
            parts.insert(0, _pack("MGET", *self.keys))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def is_answered(self) -> bool:
        return len(self.replies) == len(self.ends) + bool(self.keys)

    def answer(self, log: Log) -> None:
        """Hand the replies to those who asked; an error among them makes the whole batch unavailable."""
        for reply in self.replies:
            if isinstance(reply, Exception):
                log.error(f"Redis cannot be asked: {printable(str(reply))}")
                self.fail()
                return
        values: list[bytes | None] = self.replies[0] if self.keys else []
        ends: list[int] = self.replies[bool(self.keys) :]
        value = end = 0
        for answer, number_of_values, number_of_ends in self.asks:
            try:
                answer(values[value : value + number_of_values], ends[end : end + number_of_ends])
            except Exception as error:  # noqa: BLE001 - one request's fault must not take its neighbours' answers
                log.error(f"a request was left without an answer: {error!r}")
            value += number_of_values
            end += number_of_ends

    def fail(self) -> None:
        """Tell those who asked that Redis is unavailable."""
        for answer, _, _ in self.asks:
            answer(None, ())


class _Line(asyncio.Protocol):
    """One connection to Redis: what is in flight on it, oldest first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, log: Log) -> None:
        self._reader = hiredis.Reader()
        self._loop = loop
        self._log = log
        self._watch: asyncio.TimerHandle | None = None
        self._greetings: list[asyncio.Future[Any]] = []
        self.in_flight: deque[_Batch] = deque()
        self.is_mute = False
        self.lost: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    async def greet(self, *command: str) -> None:
        """One command before any batch, such as AUTH. Raises RedisRefused where it is answered with an error."""
        future = self._loop.create_future()
        self._greetings.append(future)
        self._transport.write(_pack(*command))
        reply = await future
        if isinstance(reply, Exception):
            raise RedisRefused(f"{command[0]}: {reply}")

    def send(self, batch: _Batch) -> None:
        self.in_flight.append(batch)
        self._transport.write(batch.request())
        if self._watch is None:
            self._watch = self._loop.call_at(batch.deadline, self._look_at_the_oldest)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if self._greetings:
                    self._greetings.pop(0).set_result(reply)
                    continue
                batch = self.in_flight[0]
                batch.replies.append(reply)
                if batch.is_answered():
                    self.in_flight.popleft()
                    batch.answer(self._log)
        except (hiredis.ProtocolError, IndexError) as error:
            self._log.error(f"what answers at redis_url does not speak Redis' protocol: {printable(str(error))}")
            self._transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        for greeting in self._greetings:
            if not greeting.done():
                greeting.set_exception(ConnectionResetError("the connection was closed"))
        if not self.lost.done():
            self.lost.set_result(None)

    def close(self) -> None:
        self._transport.abort()

    def _look_at_the_oldest(self) -> None:
        # One timer watches all: it is moved to the oldest batch's deadline, not set for each.
        self._watch = None
        if not self.in_flight:
            return
        deadline = self.in_flight[0].deadline
        if self._loop.time() >= deadline:
            self.is_mute = True
            self._transport.abort()
        else:
            self._watch = self._loop.call_at(deadline, self._look_at_the_oldest)


class Lookups:
    """Reads keys for the whole service. Use `await open()`, then `ask`, at the end `await close()`."""

    def __init__(self, url: RedisUrl, user: str, password: str, probe_key: bytes, log: Log) -> None:
        self._url = url
        self._user = user
        self._password = password
        self._probe_key = probe_key
        self._log = log
        self._line: _Line | None = None
        self._batch = _Batch()  # of this turn of the loop
        self._waiting: deque[_Batch] = deque()  # for a connection, oldest first
        self._wait_until = 0.0  # after this moment nobody waits for a connection: the circuit is open
        self._expiry: asyncio.TimerHandle | None = None
        self._trouble = ""

    async def open(self) -> None:
        """Begin to connect, and wait for the outcome of the first attempt, at most `TIMEOUT`; it may fail."""
        self._loop = asyncio.get_running_loop()
        first_attempt = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep_connected(first_attempt))
        await first_attempt.wait()

    async def close(self) -> None:
        """End the connection; whoever still waits is told "unavailable"."""
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        self._wait_until = 0.0
        if self._line is not None:
            self._line.close()
            self._take_back(self._line)
        while self._waiting:
            self._waiting.popleft().fail()

    def ask(self, keys: Sequence[bytes], ends: Sequence[bytes], answer: Answer) -> None:
        """Ask for the values of `keys` and the milliseconds left of `ends`, in the round of this turn of the loop."""
        batch = self._batch
        if not batch.asks:
            self._loop.call_soon(self._flush)
        batch.asks.append((answer, len(keys), len(ends)))
        batch.keys += keys
        batch.ends += ends

    def _flush(self) -> None:
        batch, self._batch = self._batch, _Batch()
        now = self._loop.time()
        batch.deadline = now + TIMEOUT
        if self._line is not None:
            self._line.send(batch)
        elif now < self._wait_until:
            self._wait(batch)
        else:
            batch.fail()

    async def _keep_connected(self, first_attempt: asyncio.Event) -> None:
        while True:
            try:
                line = await self._connect()
            except (OSError, RedisRefused, TimeoutError) as error:
                self._report_trouble(str(error) or f"no answer within {TIMEOUT} s")
                first_attempt.set()
                await asyncio.sleep(RETRY_INTERVAL if self._waiting else PROBE_INTERVAL)
                continue
            self._line = line
            self._report_connection()
            first_attempt.set()
            while self._waiting:
                line.send(self._waiting.popleft())
            await line.lost
            self._take_back(line)

    async def _connect(self) -> _Line:
        async with asyncio.timeout(TIMEOUT):
            line = _Line(self._loop, self._log)
            if self._url.path:
                await self._loop.create_unix_connection(lambda: line, self._url.path)
            else:
                await self._loop.create_connection(lambda: line, self._url.host, self._url.port)
            try:
                if self._password:
                    await line.greet("AUTH", *([self._user] if self._user else []), self._password)
                if self._url.db:
                    await line.greet("SELECT", str(self._url.db))
                # A least-privilege user may GET and not PING; and a mute Redis shows itself here.
                await line.greet("GET", self._probe_key.decode())
            except BaseException:
                line.close()
                raise
            return line

    def _take_back(self, line: _Line) -> None:
        """After the loss of `line`: what was in flight waits for the next one, once, or is unavailable."""
        self._line = None
        if line.is_mute:
            self._report_trouble(f"no answer within {TIMEOUT} s")
        self._wait_until = 0.0 if line.is_mute else self._loop.time() + TIMEOUT
        while line.in_flight:
            batch = line.in_flight.popleft()
            if batch.retried or line.is_mute:
                batch.fail()
            else:
                batch.retried = True
                batch.replies.clear()
                self._wait(batch)

    def _wait(self, batch: _Batch) -> None:
        self._waiting.append(batch)
        if self._expiry is None:
            self._expiry = self._loop.call_at(batch.deadline, self._fail_overdue)

    def _fail_overdue(self) -> None:
        self._expiry = None
        while self._waiting and self._waiting[0].deadline <= self._loop.time():
            self._waiting.popleft().fail()
        if self._waiting:
            self._expiry = self._loop.call_at(self._waiting[0].deadline, self._fail_overdue)

    def _report_trouble(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._log.error(f"Redis is unavailable at {self._url}: {printable(trouble)}")
            self._trouble = trouble

    def _report_connection(self) -> None:
        self._log.info(f"connected to Redis at {self._url}")
        self._trouble = ""
