"""Whether each worker's event loop turns, told to the parent through a few bytes of memory that all of them share.

A byte each, so that nothing is ever read half written: a beat counts, it does not say when it was.
"""

from __future__ import annotations

import mmap
import time

_BEAT, _STATE, _GENERATION = range(3)
_BYTES = 3  # of each worker; the last of all says that the service ends


class Pulse:
    """Of `number` workers. Made before they are forked; a worker writes its own bytes, the parent reads them all."""

    def __init__(self, number: int) -> None:
        self._memory = mmap.mmap(-1, number * _BYTES + 1)
        # The parent's: the last beat of each, and when it was first seen; and when each was started.
        self._seen = [(0, time.monotonic())] * number
        self._started = [time.monotonic()] * number

    def beat(self, index: int, *, has_redis: bool) -> None:
        """Worker `index`: its loop has turned, and Redis could be asked, or not."""
        at = index * _BYTES
        self._memory[at + _BEAT] = (self._memory[at + _BEAT] + 1) % 256
        self._memory[at + _STATE] = has_redis

    def begin(self, index: int) -> None:
        """The parent: worker `index` is about to be started."""
        self._started[index] = time.monotonic()
        self._memory[index * _BYTES + _GENERATION] = 0

    def silence(self, index: int) -> float:
        """The parent: seconds since a new beat of worker `index`, or of the one before it, was seen. To be asked
        often."""
        last, since = self._seen[index]
        beat = self._memory[index * _BYTES + _BEAT]
        if beat != last:
            since = time.monotonic()
            self._seen[index] = (beat, since)
        return time.monotonic() - since

    def has_had_time(self, index: int, seconds: float) -> bool:
        """The parent: whether worker `index` was started longer ago than that."""
        return time.monotonic() - self._started[index] > seconds

    def has_redis(self) -> bool:
        """Whether every worker could ask Redis at its last beat."""
        return all(self._memory[_STATE:-1:_BYTES])

    def follow(self, index: int, generation: int) -> None:
        """Worker `index` serves, by the settings of that generation, 1 to 255."""
        self._memory[index * _BYTES + _GENERATION] = generation

    def all_follow(self, generation: int) -> bool:
        """Whether all workers do."""
        return all(each == generation for each in self._memory[_GENERATION:-1:_BYTES])

    def end(self) -> None:
        """The parent: the whole service ends."""
        self._memory[-1] = 1

    def is_last(self) -> bool:
        """Whether the whole service ends, and not one worker."""
        return bool(self._memory[-1])
