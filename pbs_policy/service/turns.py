"""Whose next request waits although it is here: that of a peer that sends more than one at a time.

Postfix sends one and waits, and is answered in the turn of the event loop in which its request arrives. Whoever sends
more has the first answered like that, and the others one after the other, in turn with all who do the same, and no
more than `REQUESTS_A_TURN` of all of them together in one turn of the loop. So a flood delays those who take part in
it: Postfix, Redis and the watchdog wait for one such turn at the most, however many peers there are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

REQUESTS_A_TURN = 32
"""Half a millisecond, and four where each is logged."""


class Waiting(Protocol):
    """A connection with requests that wait."""

    def take_turn(self) -> None:
        """Decide one of them."""


def _call_soon(callback: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(callback)


class Turns:
    """Those that wait for their turn, in their order."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], None] = _call_soon) -> None:
        """`call_soon` has something called in the next turn of the loop."""
        self._call_soon = call_soon
        self._waiting: deque[Waiting] = deque()
        self._is_due = False

    def add(self, connection: Waiting) -> None:
        """Have its `take_turn` called once, later, never from here."""
        self._waiting.append(connection)
        self._go_on_later()

    def _go_on_later(self) -> None:
        if self._waiting and not self._is_due:
            self._is_due = True
            self._call_soon(self._go_on)

    def _go_on(self) -> None:
        try:
            for _ in range(REQUESTS_A_TURN):
                if not self._waiting:
                    return
                self._waiting.popleft().take_turn()
        finally:
            self._is_due = False
            self._go_on_later()  # one connection's fault must not stop the others
