"""How long requests wait for their answer, in buckets: a clock reading for each round to Redis, not for each request.

A request's time runs from the moment at which its turn of the loop asked first (`Batch.begun`) to the moment at which
the last reply of the batch that decided it was written. So it is too long by one turn of the loop at most. Requests
that are answered without Redis are not among them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from time import perf_counter

BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper ends of the buckets, in seconds. One more holds what took longer."""


class Latency:
    """Batches call `begin` and `end`. A connection whose request takes a further round calls `go_on`, and hands what
    that gave to `settle` when the request is answered."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.clock = clock
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        """Seconds of all requests together."""
        self._begun = 0.0
        self._going_on = 0
        self._late: list[float] = []

    def begin(self, begun: float) -> None:
        """The answers of a batch that began at `begun` are handed out next."""
        self._begun = begun

    def go_on(self) -> float:
        """A request of this batch is not answered yet. When it began."""
        self._going_on += 1
        return self._begun

    def settle(self, begun: float) -> None:
        """A request that had gone on is answered now."""
        self._late.append(begun)

    def end(self, requests: int) -> None:
        """All answers of the batch are handed out: it was the first round of so many requests."""
        now = self.clock()
        requests -= self._going_on
        self._going_on = 0
        if requests:
            self._note(now - self._begun, requests)
        late = self._late
        while late:
            begun = late[0]  # of nearly all: those of one batch are asked on, and answered, together
            same = late.count(begun)
            self._note(now - begun, same)
            late = self._late = [each for each in late if each != begun] if same < len(late) else []

    def _note(self, seconds: float, requests: int) -> None:
        self.buckets[bisect_left(BOUNDS, seconds)] += requests
        self.total += seconds * requests
