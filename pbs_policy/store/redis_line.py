"""One connection to Redis, and the batches of questions in flight on it, oldest first. How it is opened is said in
`redis_connector`; what becomes of the batches when it is lost is for `lookups` to say.

Replies are matched to questions by their order alone. So a connection is given up at the first reply that its command
cannot have, or that nobody asked for: no later one is read, and what is in flight has no answer from it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

from pbs_policy.prompt_writer import PromptWriter
from pbs_policy.store.batch import ANSWERS, Batch
from pbs_policy.store.connect import TIMEOUT, without_password
from pbs_policy.store.replies import Elsewhere, Impossible, is_elsewhere
from pbs_policy.store.resp import NOTHING_YET, pack, reader


class Alarm:
    """One timer for many deadlines. It calls `ring` no later than each moment given to `set_by`; whoever is called
    sets it again for what is left."""

    __slots__ = ("_at", "_loop", "_ring", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._at = inf
        self._timer: asyncio.TimerHandle | None = None

    def set_by(self, moment: float) -> None:
        """Ring at `moment` (by the loop's clock), if that is before what was asked for already."""
        if moment < self._at:
            self.stop()
            self._at = moment
            self._timer = self._loop.call_at(moment, self._go_off)

    def stop(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._at = None, inf

    def _go_off(self) -> None:
        self._timer, self._at = None, inf
        self._ring()


class RedisRefused(Exception):
    """Redis was reached, and answered the login or the first command with an error."""


class RedisLine(asyncio.Protocol):
    """One connection to Redis: what is in flight on it, oldest first."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._reader = reader()
        self._loop = loop
        self._alarm = Alarm(loop, self._look_at_deadlines)
        self._greetings: list[asyncio.Future[Any]] = []
        self.in_flight: deque[Batch] = deque()
        self.is_mute = False
        self.is_false = False  # it gave a reply that Redis cannot give
        self.has_answered = False  # a batch
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
            raise RedisRefused(f"{command[0].decode()}: {without_password(str(reply), command)}")
        return reply

    def send(self, batch: Batch) -> None:
        """Ask a batch. On a connection that is just being lost it waits to be taken back with the others.

        It asks for another number of values than the one before it, so that their replies cannot be mixed up.
        """
        if self.in_flight and batch.keys and len(batch.keys) == len(self.in_flight[-1].keys):
            batch.keys.append(batch.keys[-1])
        self.in_flight.append(batch)
        if self._transport.is_closing():
            return
        self._writer.write(batch.request())
        batch.answer_by = self._loop.time() + TIMEOUT
        self._alarm.set_by(batch.due)

    def data_received(self, data: bytes) -> None:
        gets = self._reader.gets
        try:
            self._reader.feed(data)
            while not self.trouble and (reply := gets()) is not NOTHING_YET:
                if self._greetings:
                    greeting = self._greetings.pop(0)
                    if not greeting.done():
                        greeting.set_result(reply)
                    continue
                self._take_reply(reply)
        except Elsewhere as error:
            self.give_up(f"{ANSWERS}{error}")  # what is in flight is asked again there
        except Impossible as error:
            self._give_up_as_false(str(error))
        except Exception:  # noqa: BLE001 - readers raise more than one kind at what no Redis sends
            self._give_up_as_false("what answers there does not speak Redis' protocol")

    def _take_reply(self, reply: Any) -> None:
        batch = self.in_flight[0]
        if batch.take(reply):
            self.in_flight.popleft()
            self.has_answered = True
            batch.answer(self._report)

    def _report(self, fault: str) -> None:
        """After an error that a command met."""
        self.report(fault)
        if is_elsewhere(fault.removeprefix(ANSWERS)):
            self.give_up(fault)

    def connection_lost(self, error: Exception | None) -> None:
        self._alarm.stop()
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

    def _give_up_as_false(self, trouble: str) -> None:
        self.is_false = True
        self.give_up(trouble)

    def _look_at_deadlines(self) -> None:
        if not self.in_flight:
            return
        now = self._loop.time()
        if self.in_flight[0].answer_by <= now:
            self.is_mute = True
            self.give_up(f"no answer within {TIMEOUT} s")
            return
        for batch in self.in_flight:
            if batch.due <= now:
                batch.expire(now)
        self._alarm.set_by(min(self.in_flight[0].answer_by, *(batch.due for batch in self.in_flight)))
