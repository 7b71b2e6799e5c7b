"""Writes reported logins to Redis, behind whoever told of them: nobody waits for Redis.

The logins wait in one bounded queue, oldest first, and go out many at a time on one connection to the master. While
Redis is away they stay there; each is written with the time that is left of its `ttl`, so that an outage prolongs no
permission. What finds no room any more is lost, counted, and said once in a while.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from time import monotonic

from pbs_policy.log import Log, printable
from pbs_policy.recorder.logins import LoginRules, Recorded, SeenLogin, Unrecorded
from pbs_policy.store.lookups import Lookups
from pbs_policy.store.question import Question

MOST_WAITING = 10_000
"""Logins that wait for Redis, some 600 bytes each: five seconds of 2,000 a second, a quarter of an hour of ten."""

_AT_ONCE = 2_000
"""In one round, which takes a few turns of the loop: in each, a hundred busy connections bring a hundred logins."""

_AGAIN = 0.25  # seconds until Redis is asked again that took nothing
_LOSS_TOLD = 10.0  # seconds between two lines about what was lost


class LoginWriter:
    """Takes logins by `offer`; `run` writes them until `stop`. `rules` may be replaced at any time."""

    def __init__(self, rules: LoginRules, lookups: Lookups, log: Log) -> None:
        self.rules = rules
        self._lookups = lookups
        self._log = log
        self._queue: deque[tuple[Recorded, float]] = deque()  # and when it ends
        self._some = asyncio.Event()
        self._stopping = asyncio.Event()
        self._lost_told = 0
        self._told_at = -_LOSS_TOLD
        self.recorded = 0
        self.left_out = 0  # those that must not be recorded
        self.lost = 0

    @property
    def waiting(self) -> int:
        """Logins that are not written yet."""
        return len(self._queue)

    def offer(self, login: SeenLogin) -> bool:
        """Record a login; False where it must not be recorded. Where the queue is full, its oldest login is lost."""
        try:
            recorded = self.rules.describe(login)
        except Unrecorded as reason:
            self.left_out += 1
            self._log.info(f"a login is not recorded ({login.way}): {printable(str(reason), 500)}")
            return False
        if self.rules.tells_logins:
            self._log.info(recorded.line)
        if not recorded.keys:
            self.left_out += 1
            return False
        if len(self._queue) >= MOST_WAITING:
            self._queue.popleft()
            self.lost += 1
        self._queue.append((recorded, monotonic() + recorded.ttl))
        self._some.set()
        return True

    async def run(self) -> None:
        """Write what waits, as it comes, until `stop`; then what is left, if Redis takes it at once."""
        while self._queue or not self._stopping.is_set():
            if not self._queue:
                self._some.clear()
                await self._some.wait()
                continue
            is_written = await self._write()
            self._say_loss()
            if not is_written:
                if self._stopping.is_set():
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), _AGAIN)
        self.lost += len(self._queue)
        self._told_at = -_LOSS_TOLD
        self._say_loss()

    def stop(self) -> None:
        """Have `run` come to its end."""
        self._stopping.set()
        self._some.set()

    async def _write(self) -> bool:
        """Write the oldest ones. What Redis does not take goes back to where it was."""
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), _AT_ONCE))]
        now = monotonic()
        live = [(recorded, ends_at) for recorded, ends_at in batch if round(ends_at - now) > 0]
        commands = [each for recorded, ends_at in live for each in recorded.commands(round(ends_at - now))]
        if not commands or await self._lookups.put(Question((), commands)) is not None:
            self.recorded += len(live)
            return True
        room = MOST_WAITING - len(self._queue)
        self.lost += max(0, len(live) - room)
        self._queue.extendleft(reversed(live[-room:] if room else []))
        return False

    def _say_loss(self) -> None:
        now = monotonic()
        if self.lost > self._lost_told and now - self._told_at >= _LOSS_TOLD:
            number, self._lost_told, self._told_at = self.lost - self._lost_told, self.lost, now
            self._log.error(f"{number} logins are lost: Redis did not take them in time")
