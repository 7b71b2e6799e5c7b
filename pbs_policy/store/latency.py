"""How long requests wait for their answer, in buckets: a clock reading for each round to Redis, not for each request.

A request's time runs from the moment at which its turn of the loop asked first (`Batch.begun`) to the moment at which
the last reply of the batch that decided it was written. So it is too long by one turn of the loop at most. Requests
that are answered without Redis are not among them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from time import monotonic

BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper ends of the buckets, in seconds. One more holds what took longer."""


class Latency:
    """A batch says when it began (`begun`) before it hands out its answers, and calls `end` after that. A connection
    whose request takes a further round adds one to `going_on`, keeps `begun`, and puts it among `settled` when the
    request is answered: plain attributes, since each of these is done for every OK."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """`clock` is the one by which batches begin."""
        self.begun = 0.0
        self.going_on = 0
        self.settled: list[float] = []
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        """Seconds of all requests together."""
        self._clock = clock

    def end(self, requests: int) -> None:
        """All answers of the batch are handed out: it was the first round of so many requests."""
        now = self._clock()
        requests -= self.going_on
        self.going_on = 0
        if requests:
            self._note(now - self.begun, requests)
        settled = self.settled
        while settled:
            begun = settled[0]  # of nearly all: those of one batch are asked on, and answered, together
            same = settled.count(begun)
            self._note(now - begun, same)
            settled = self.settled = [each for each in settled if each != begun] if same < len(settled) else []

    def _note(self, seconds: float, requests: int) -> None:
        self.buckets[bisect_left(BOUNDS, seconds)] += requests
        self.total += seconds * requests
