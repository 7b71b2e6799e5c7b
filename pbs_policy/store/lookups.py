"""The hot path to Redis: every request of the service shares one connection, and all that arrive in one turn of the
event loop go out in one round (`MGET`, and whatever commands a decision needs). Answers are matched in order; there
is no task, no connection and no timer per request.

A lookup has three answers: found, not found (both in `values`), unavailable (`values` is None). When Redis is away:

- A lost connection is opened anew at once; what was in flight is asked once more on it, within its deadline. One that
  gave a reply that Redis cannot give (`replies`) is as good as lost.
- While no connection can be had, requests wait for one until their deadline, `TIMEOUT` after they were asked. All
  rounds of a request have one deadline.
- After that, after a Redis that was mute for `TIMEOUT`, and after a connection that gave nothing but such a reply,
  the circuit is open: requests are answered "unavailable" at once, and a probe in the background closes it again as
  soon as Redis answers.

Nothing is remembered between two requests: a permission is read from Redis for the very request it is for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import Any

from pbs_policy.log import Log, printable
from pbs_policy.store.batch import Answered, Answering, Batch
from pbs_policy.store.connect import TIMEOUT
from pbs_policy.store.question import Answer, Command, Question
from pbs_policy.store.redis_connector import Connector
from pbs_policy.store.redis_line import Alarm, RedisLine
from pbs_policy.store.redis_url import NOBODY, Login, RedisUrl, TlsFiles
from pbs_policy.store.replies import missing_right

RETRY_INTERVAL = 0.02
"""Seconds between attempts to connect while requests wait: a restart of Redis takes a few tenths of a second."""

PROBE_INTERVAL = 0.25
"""Seconds between attempts to connect while the circuit is open and nobody waits."""

_MOST_TROUBLES = 100  # that are told apart until the next connection: the text is Redis'

_NO_TLS_FILES = TlsFiles()


class Lookups:
    """Asks Redis for the whole of a daemon. Use `await open()`, then `ask`, at the end `await close()`."""

    def __init__(
        self,
        url: RedisUrl,
        user: str,
        password: str,
        probe_key: bytes,
        log: Log,
        tls: TlsFiles = _NO_TLS_FILES,
        sentinel: Login = NOBODY,
        probe: Command = (),
    ) -> None:
        """`sentinel` is who to log in to Sentinels as; `probe` is for a user who may not GET `probe_key`."""
        self._connector = Connector(url, user, password, probe or (b"GET", probe_key), tls, sentinel)
        self._url = url
        self._user = printable(user or "default")
        self._prefix = probe_key.decode().removesuffix("probe")
        self._log = log
        self._line: RedisLine | None = None
        self._answering = Answering()
        self._batch = Batch(log, self._answering)  # of this turn of the loop
        self._waiting: deque[Batch] = deque()  # for a connection, oldest first
        self._wait_until = 0.0  # after this moment nobody waits for a connection: the circuit is open
        self._troubles: set[str] = set()  # what was reported since the last connection
        self.connections = 0  # that were had so far: 1, and each reconnect

    async def open(self) -> None:
        """Begin to connect, and wait for the outcome of the first attempt, at most `TIMEOUT`; it may fail."""
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._loop, self._fail_overdue)
        first_attempt = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep_connected(first_attempt))
        await first_attempt.wait()

    @property
    def connector(self) -> Connector:
        """What opens its connections."""
        return self._connector

    @property
    def circuit_is_open(self) -> bool:
        """Whether a request of this moment would be told "unavailable" at once."""
        return self._line is None and self._loop.time() >= self._wait_until

    @property
    def in_flight(self) -> int:
        """How many questions wait for Redis."""
        sent = self._line.in_flight if self._line is not None else ()
        return sum(ask[3] < inf for each in (self._batch, *self._waiting, *sent) for ask in each.asks)

    @property
    def is_connected(self) -> bool:
        """Whether Redis can be asked now."""
        return self._line is not None

    async def close(self) -> None:
        """End the connection; whoever still waits is told "unavailable"."""
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        self._wait_until = 0.0
        if self._line is not None:
            self._line.close()
            self._take_back(self._line)
        self._connector.close()
        self._alarm.stop()
        while self._waiting:
            self._waiting.popleft().fail()

    def ask(self, keys: Sequence[bytes], answered: Answered) -> None:
        """Ask for the values of `keys` (one at least), with which a request begins, in the round of this turn of the
        loop. `answered` is called later, never from here."""
        batch = self._batch
        if not batch.asks:
            self._begin(batch)
        batch.asks.append((answered, len(keys), 0, batch.deadline))
        batch.keys += keys

    def ask_further(self, keys: Sequence[bytes], commands: Sequence[Command], answered: Answered) -> None:
        """The same where it is not the beginning of a request (its next round, or the service's own question), with
        the replies to `commands` as well; there may be no `keys` then. What is asked while an answer is handed out
        has the deadline of the request that is answered.

        A question that was in flight when the connection was lost is asked once more: its commands may then have been
        carried out twice.
        """
        batch = self._batch
        if not batch.asks:
            self._begin(batch)
        deadline = self._answering.deadline or batch.deadline
        if deadline < batch.due:
            batch.due = deadline
        batch.asks.append((answered, len(keys), len(commands), deadline))
        batch.keys += keys
        batch.commands += commands

    def put(self, question: Question) -> asyncio.Future[Answer | None]:
        """Ask for the service itself: what becomes the answer, or None where Redis is unavailable."""
        answered: asyncio.Future[Answer | None] = self._loop.create_future()

        def settle(values: Sequence[bytes | None] | None, replies: Sequence[Any]) -> None:
            if not answered.done():
                answered.set_result(None if values is None else Answer(values, replies))

        self.ask_further(question.keys, question.commands, settle)
        return answered

    def _begin(self, batch: Batch) -> None:
        batch.deadline = batch.due = monotonic() + TIMEOUT
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        batch, self._batch = self._batch, Batch(self._log, self._answering)
        if self._line is not None:
            self._line.send(batch)
        elif self._loop.time() < self._wait_until:
            self._wait(batch)
        else:
            batch.fail()

    async def _keep_connected(self, first_attempt: asyncio.Event) -> None:
        while True:
            try:
                line = await self._connector.open()
            except Exception as error:  # noqa: BLE001 - were this task to end, nobody would connect again
                self._report_trouble(str(error) or f"no answer within {TIMEOUT} s")
                first_attempt.set()
                await asyncio.sleep(RETRY_INTERVAL if self._waiting else PROBE_INTERVAL)
                continue
            line.report = self._report_trouble
            self._line = line
            self._report_connection(line)
            first_attempt.set()
            while self._waiting:
                line.send(self._waiting.popleft())
            await line.lost
            self._take_back(line)
            if line.is_false and not line.has_answered:
                await asyncio.sleep(PROBE_INTERVAL)

    def _take_back(self, line: RedisLine) -> None:
        """After the loss of `line`: what was in flight waits for the next one, once, or is unavailable."""
        self._line = None
        if line.trouble:
            self._report_trouble(line.trouble)
        is_hopeless = line.is_mute or (line.is_false and not line.has_answered)
        self._wait_until = 0.0 if is_hopeless else self._loop.time() + TIMEOUT
        while line.in_flight:
            batch = line.in_flight.popleft()
            if batch.retried or is_hopeless:
                batch.fail()
            else:
                batch.begin_again()
                self._wait(batch)

    def _wait(self, batch: Batch) -> None:
        self._waiting.append(batch)
        self._alarm.set_by(batch.due)

    def _fail_overdue(self) -> None:
        now = self._loop.time()
        for batch in self._waiting:
            if batch.due <= now:
                batch.expire(now)
        self._waiting = deque(batch for batch in self._waiting if batch.due < inf)
        if self._waiting:
            self._alarm.set_by(min(batch.due for batch in self._waiting))

    def _report_trouble(self, trouble: str) -> None:
        # Several commands may each be refused, again and again: each is said once.
        if trouble not in self._troubles and len(self._troubles) < _MOST_TROUBLES:
            right = missing_right(trouble, self._prefix)
            if right:
                self._log.error(f"the ACL user {self._user} lacks {right} at {self._url}: {printable(trouble)}")
            else:
                self._log.error(f"Redis is unavailable at {self._url}: {printable(trouble)}")
            self._troubles.add(trouble)

    def _report_connection(self, line: RedisLine) -> None:
        self.connections += 1
        found = "" if self._url.path or self._url.server else f", the master {line.place}"
        self._log.info(f"connected to Redis at {self._url}{found}")
        self._troubles.clear()
