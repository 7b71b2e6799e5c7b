"""Commands as Redis reads them, and its replies as we do (RESP2). hiredis does both, in C, where it is new enough.

hiredis 2.0 to 3.1.0 kills the process (SIGSEGV) at a reply that whatever answers at `redis_url` may send: a map with
a list as its key. Older ones do not have it, and give no way to tell a reply `false` from none at all. In place of
all of these, and of none, `PlainReader` is used, which costs a few microseconds a round: Debian 12 and 13 have no
other. redis-py would use such a hiredis by itself, so whoever needs redis-py takes it from here.
"""

from __future__ import annotations

import re
import sys
from typing import Any, Protocol

from pbs_policy.store.question import Command

OLDEST_SAFE = (3, 1, 1)
"""Of hiredis."""

try:
    import hiredis
except ImportError:
    _IS_SAFE = False
else:
    _IS_SAFE = tuple(map(int, re.findall(r"\d+", hiredis.__version__)[:3])) >= OLDEST_SAFE
    if not _IS_SAFE:
        sys.modules["hiredis"] = None  # type: ignore[assignment]  # what an import of it then fails at

import redis  # noqa: E402 - see above

__all__ = ["NOTHING_YET", "NotRedis", "ReplyError", "pack", "reader", "redis"]

NOTHING_YET = object()
"""No reply is complete."""

_DEEPEST = 8  # lists in lists: HELLO has two
_LONGEST = 512 * 1024 * 1024  # of a value: Redis' own limit
_MOST = 1 << 31  # items of a list: more than Redis sends
_LONGEST_LINE = 65_536  # numbers, and the texts of errors

_is_number = re.compile(rb"-?[0-9]{1,19}").fullmatch


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


def reader() -> Reader:
    """A reader of one connection's replies; a ReplyError stands in the place of an error."""
    if not _IS_SAFE:
        return PlainReader()
    return hiredis.Reader(protocolError=NotRedis, replyError=ReplyError, notEnoughData=NOTHING_YET)


def pack(command: Command) -> bytes:
    """The bytes of one command."""
    if not _IS_SAFE:
        return b"*%d\r\n" % len(command) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in command])
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows tuples of one item only
    return packed


class PlainReader:
    """A `Reader` of nothing but RESP2: any other kind is an error of the protocol, and so is nesting deeper than any
    reply of Redis. It keeps what was received: a list that announces a billion items costs nothing before they come.
    """

    __slots__ = ("_at", "_buffer", "_lists")

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0
        self._lists: list[tuple[list[Any], int]] = []  # that are not complete, and how many items they will have

    def feed(self, data: bytes) -> None:
        """Keep what was received."""
        self._buffer = self._buffer[self._at :] + data
        self._at = 0

    def gets(self) -> Any:
        """The next reply, or NOTHING_YET."""
        while (item := self._next_item()) is not NOTHING_YET:
            while self._lists:
                items, length = self._lists[-1]
                items.append(item)
                if len(items) < length:
                    break
                self._lists.pop()
                item = items
            else:
                return item
        return NOTHING_YET

    def _next_item(self) -> Any:
        """The next reply that is no list, or an empty one; a list that begins is noted on the way."""
        buffer = self._buffer
        while True:
            at = self._at
            end = buffer.find(b"\r\n", at)
            if end < 0 or end - at > _LONGEST_LINE:
                if len(buffer) - at > _LONGEST_LINE:
                    raise NotRedis("a line without an end")
                return NOTHING_YET
            kind, text = buffer[at : at + 1], buffer[at + 1 : end]
            if kind == b"$":
                if text == b"-1":
                    self._at = end + 2
                    return None
                length = self._number(text, _LONGEST, least=0)
                value = end + 2
                end = value + length
                if len(buffer) < end + 2:
                    return NOTHING_YET
                if buffer[end : end + 2] != b"\r\n":
                    raise NotRedis("a value that does not end where it should")
                self._at = end + 2
                return buffer[value:end]
            self._at = end + 2
            if kind == b":":
                return self._number(text, 1 << 63, least=-(1 << 63))
            if kind == b"+":
                return text
            if kind == b"-":
                return ReplyError(text.decode("utf-8", "replace"))
            if kind != b"*":
                raise NotRedis("a kind of reply that RESP2 does not have")
            length = self._number(text, _MOST, least=-1)
            if length <= 0:
                return None if length else []
            if len(self._lists) == _DEEPEST:
                raise NotRedis("lists nested too deep")
            self._lists.append(([], length))

    def _number(self, text: bytes, most: int, *, least: int) -> int:
        if not _is_number(text) or not least <= (number := int(text)) < most:
            raise NotRedis("no number where one should be")
        return number
