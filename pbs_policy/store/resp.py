"""Commands as Redis reads them, and its replies as we do (RESP2). hiredis does both, in C, where it is new enough.

hiredis 2.0 to 3.1.0 kills the process (SIGSEGV) at a reply that whatever answers at `redis_url` may send: a map with
a list as its key. Older ones do not have it, and give no way to tell a reply `false` from none at all. In place of
all of these, and of none, our own reader is used, which costs a few microseconds a round.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, Protocol

from pbs_policy.store.plain_reader import NOTHING_YET, PlainReader

OLDEST_SAFE = (3, 1, 1)
"""Of hiredis."""

try:
    import hiredis
except ImportError:
    _IS_SAFE = False
else:
    _IS_SAFE = tuple(map(int, re.findall(r"\d+", hiredis.__version__)[:3])) >= OLDEST_SAFE
    if not _IS_SAFE:
        sys.modules["hiredis"] = None  # type: ignore[assignment]  # redis-py, imported later, would use it

__all__ = ["NOTHING_YET", "NotRedis", "Reader", "ReplyError", "pack", "reader"]


class ReplyError(Exception):
    """An error that Redis answered."""


class NotRedis(Exception):
    """What came is not Redis' protocol."""


class Reader(Protocol):
    """Give it bytes, and take replies, until there is NOTHING_YET. Whatever it raises: what came is no protocol of
    Redis' (NotRedis; TypeError and MemoryError, too, of hiredis)."""

    def feed(self, data: bytes) -> None:
        """Keep what was received."""

    def gets(self) -> Any:
        """The next reply, or NOTHING_YET."""


def reader(reply_error: Callable[[str], Exception] = ReplyError) -> Reader:
    """A reader of one connection's replies; `reply_error` makes of an error's text what stands in its place."""
    if not _IS_SAFE:
        return PlainReader(NotRedis, reply_error)
    return hiredis.Reader(protocolError=NotRedis, replyError=reply_error, notEnoughData=NOTHING_YET)


def _pack_by_hand(parts: tuple[str | bytes, ...]) -> bytes:
    words = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def pack(parts: tuple[str | bytes, ...]) -> bytes:
    """The bytes of one command."""
    if not _IS_SAFE:
        return _pack_by_hand(parts)
    packed: bytes = hiredis.pack_command(parts)  # type: ignore[arg-type]  # its stub knows tuples of one item only
    return packed
