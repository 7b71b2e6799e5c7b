"""Redis' replies (RESP2) read in Python, for where there is no hiredis that is safe (`resp`). It has the interface of
hiredis' reader: what came is given to `feed`, and `gets` gives a reply, or NOTHING_YET.

Only what RESP2 has is read: any other kind is an error of the protocol, and so is nesting deeper than any reply of
Redis. What is kept is what was received: a list that announces a billion items costs nothing before they come.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

NOTHING_YET = object()
"""No reply is complete."""

_DEEPEST = 8  # lists in lists: HELLO has two
_LONGEST = 512 * 1024 * 1024  # of a value: Redis' own limit
_MOST = 1 << 31  # items of a list: more than Redis sends
_LONGEST_LINE = 65_536  # numbers, and the texts of errors

_is_number = re.compile(rb"-?[0-9]{1,19}").fullmatch


class PlainReader:
    """Give it bytes (`feed`), and take replies (`gets`): bytes, int, None, lists of them, and what `reply_error`
    makes of an error's text. After an error of the protocol, made by `protocol_error`, it is of no further use."""

    __slots__ = ("_at", "_buffer", "_lists", "_protocol_error", "_reply_error")

    def __init__(
        self, protocol_error: Callable[[str], Exception], reply_error: Callable[[str], Exception]
    ) -> None:
        self._buffer = b""
        self._at = 0
        self._lists: list[tuple[list[Any], int]] = []  # that are not complete, and how many items they will have
        self._protocol_error = protocol_error
        self._reply_error = reply_error

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
                    raise self._protocol_error("a line without an end")
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
                    raise self._protocol_error("a value that does not end where it should")
                self._at = end + 2
                return buffer[value:end]
            self._at = end + 2
            if kind == b":":
                return self._number(text, 1 << 63, least=-(1 << 63))
            if kind == b"+":
                return text
            if kind == b"-":
                return self._reply_error(text.decode("utf-8", "replace"))
            if kind != b"*":
                raise self._protocol_error("a kind of reply that RESP2 does not have")
            length = self._number(text, _MOST, least=-1)
            if length <= 0:
                return None if length else []
            if len(self._lists) == _DEEPEST:
                raise self._protocol_error("lists nested too deep")
            self._lists.append(([], length))

    def _number(self, text: bytes, most: int, *, least: int) -> int:
        if not _is_number(text) or not least <= (number := int(text)) < most:
            raise self._protocol_error("no number where one should be")
        return number
