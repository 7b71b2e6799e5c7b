"""One line per event on standard error, with Postfix' words: info (a decision, a change of state), warning (the
peer's fault), error (ours). Text from a peer is clipped and made printable here before it can reach a line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import BinaryIO

LONGEST_VALUE = 320
"""Characters of a peer's text in a line: an address of RFC 5321 (64 + @ + 255) fits."""


# What nearly every value is: then it needs no second look. The quote is left out, and the blank.
_PLAIN = re.compile(rf"[!#-~]{{1,{LONGEST_VALUE}}}").fullmatch


def printable(text: str, limit: int = LONGEST_VALUE) -> str:
    """`text` for one line of a log or terminal: what does not print becomes `?`, the rest is clipped with `...`."""
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def value(text: str) -> str:
    """`text` as the value of `name=value`: in quotes where a blank or quote could pass for the next field."""
    if _PLAIN(text):
        return text
    text = printable(text)
    if " " in text or '"' in text or not text:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


class Log:
    """Lines to `stream` (standard error by default). With `soon` (an event loop's call_soon), all lines of one
    turn of the loop are written at once: a line then costs no system call of its own."""

    def __init__(self, stream: BinaryIO | None = None, soon: Callable[[Callable[[], None]], object] | None = None):
        self._stream = stream or sys.stderr.buffer
        self._soon = soon
        self._lines: list[str] = []

    def write_soon(self, soon: Callable[[Callable[[], None]], object]) -> None:
        """From now on write once per turn of the loop that `soon` belongs to."""
        self._soon = soon

    def write_now(self) -> None:
        """Write what is waiting, and from now on each line at once: that loop comes to its end."""
        self._soon = None
        self.flush()

    def info(self, line: str) -> None:
        """A decision or a change of state."""
        self._add(f"info: {line}\n")

    def warning(self, line: str) -> None:
        """The peer's fault, or a setting that deserves a second thought."""
        self._add(f"warning: {line}\n")

    def error(self, line: str) -> None:
        """Our fault, or Redis'."""
        self._add(f"error: {line}\n")

    def flush(self) -> None:
        """Write what is waiting. A log that cannot be written never stops the service."""
        lines, self._lines = self._lines, []
        try:
            self._stream.write("".join(lines).encode("utf-8", "backslashreplace"))
            self._stream.flush()
        except OSError:
            pass

    def _add(self, line: str) -> None:
        self._lines.append(line)
        if self._soon is None:
            self.flush()
        elif len(self._lines) == 1:
            self._soon(self.flush)
