"""Time as an event loop has lived it, for what must not wait: a machine that is busy elsewhere does not count."""

from __future__ import annotations

import asyncio

_TICK = 0.01


class LoopClock:
    """Seconds since it was made, in the running loop. A stretch in which the process was not scheduled is one tick,
    as is a turn of the loop that took long; who waits for a timer waits as many ticks as it has hundredths."""

    def __init__(self) -> None:
        self._ticks = 0
        self._loop = asyncio.get_running_loop()
        self._loop.call_later(_TICK, self._tick)

    def __call__(self) -> float:
        return self._ticks * _TICK

    def _tick(self) -> None:
        self._ticks += 1
        self._loop.call_later(_TICK, self._tick)
