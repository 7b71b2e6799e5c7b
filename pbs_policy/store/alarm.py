"""One timer for many deadlines: it rings at the earliest moment that was asked for, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf


class Alarm:
    """Calls `ring` no later than each moment given to `set_by`; whoever is called sets it again for what is left."""

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
