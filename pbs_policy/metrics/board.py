"""Where the workers post their numbers for one another: memory that they share, a slot for each.

A worker writes its own slot alone, so nobody waits for anybody: each slot has two pages, the one that is not shown is
written, and then shown. A reader that was overtaken finds a sum that does not fit, and reads again.

A worker that takes the place of one that has died goes on counting where that one had last posted: a counter that
fell would be read as one that began anew, and all that was counted before would count twice.
"""

from __future__ import annotations

import mmap
import struct
import time
import zlib
from collections.abc import Callable
from typing import NamedTuple

from pbs_policy.metrics.numbers import Numbers

POST_INTERVAL = 1.0
"""Seconds between two posts of a worker: what a scrape that another worker answers may be behind."""

STALE = 10.0
"""Seconds after which a worker that has not posted does not turn any more."""

_PAGE = 16_384  # bytes; thirty reasons with three actions each take 4,000
_HEAD = struct.Struct("=dII")  # when it was posted, the length of what follows, and its sum
_SLOT = 64 + 2 * _PAGE  # the first byte says which page is shown: 0 none, 1 or 2
_ATTEMPTS = 5


class Post(NamedTuple):
    """What a worker has posted, and how many seconds ago."""

    worker: int
    age: float
    numbers: Numbers

    @property
    def is_fresh(self) -> bool:
        """Whether that worker turns."""
        return self.age <= STALE


class Board:
    """Made before the workers are, and used by all of them."""

    def __init__(self, workers: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._monotonic = monotonic
        self._memory = mmap.mmap(-1, workers * _SLOT)

    def post(self, index: int, numbers: Numbers) -> None:
        """Show these as the numbers of that worker. Raises ValueError where they are too many."""
        data = numbers.serialise()
        if len(data) > _PAGE - _HEAD.size:
            raise ValueError(f"{len(data)} bytes of numbers, expected at most {_PAGE - _HEAD.size}")
        slot = index * _SLOT
        page = 2 if self._memory[slot] == 1 else 1
        start = slot + 64 + (page - 1) * _PAGE
        record = _HEAD.pack(self._monotonic(), len(data), zlib.crc32(data)) + data
        self._memory[start : start + len(record)] = record
        self._memory[slot] = page

    def read(self, index: int) -> Post | None:
        """What that worker has last posted; None where it has not yet."""
        slot = index * _SLOT
        for _ in range(_ATTEMPTS):
            page = self._memory[slot]
            if not page:
                return None
            start = slot + 64 + (page - 1) * _PAGE
            posted, length, checksum = _HEAD.unpack(self._memory[start : start + _HEAD.size])
            data = self._memory[start + _HEAD.size : start + _HEAD.size + min(length, _PAGE)]
            if zlib.crc32(data) == checksum:
                return Post(index, self._monotonic() - posted, Numbers.parse(data))
        return None

    def read_all(self) -> list[Post]:
        """What each of those has last posted that have."""
        posts = (self.read(index) for index in range(self._workers))
        return [post for post in posts if post is not None]


def total(posts: list[Post]) -> Numbers:
    """The numbers of all workers together: all that they have counted, and what those do that turn."""
    return (
        Numbers.none()
        .with_counters_of(post.numbers for post in posts)
        .with_states_of(post.numbers for post in posts if post.is_fresh)
    )
