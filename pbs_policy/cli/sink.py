"""Standard output and standard error while a command runs: whatever writes there, and whoever wrote the text, a
terminal is sent nothing but letters that print, newlines and tabs.

What does not print (control characters of C0 and C1, direction marks, line separators, halves of surrogate pairs,
what the encoding lacks) is written as `\\uXXXX`, which is how JSON writes it as well. The sink sits below
`sys.stdout` and `sys.stderr`, so that no command can forget it. Two places go past it by the descriptor, with control
sequences of our own: the screen of `watch` (`watch.terminal`) and the line of progress (`cli.output`).
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from pbs_policy.log import escaped

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ESCAPE = "pbs-policy.escape"  # codecs' name for what to do with a letter that an encoding lacks

# What nearly all output is: then it is passed on as it came.
_is_plain = re.compile(rb"[\t\n -~]*").fullmatch


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return escaped(error.object[error.start : error.end], keeps=str.isascii), error.end


codecs.register_error(_ESCAPE, _escape_unencodable)


class _Sink(io.RawIOBase):
    """Takes what is written to `stream`, and hands it on so that it prints. `errors` is what surrounds each write."""

    def __init__(self, stream: TextIO, errors: Callable[[], AbstractContextManager[None]]) -> None:
        self._stream = stream
        self.errors = errors

    def write(self, data: ReadableBuffer) -> int:
        """Whole characters alone come here: from a TextIOWrapper, or lines of the log."""
        data = bytes(data)
        encoding = self._stream.encoding
        shown = data
        if not _is_plain(data):
            shown = escaped(data.decode(encoding, "backslashreplace")).encode(encoding, _ESCAPE)
        with self.errors():
            self._stream.buffer.write(shown)
        return len(data)

    def flush(self) -> None:
        with self.errors():
            self._stream.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


@contextmanager
def output_errors() -> Iterator[None]:
    """Say of a fault that it is the output that cannot be written."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"cannot write the output: {error.strerror}") from error


@contextmanager
def to_the_end() -> Iterator[None]:
    """Go on while standard output takes nothing; its first fault is raised at the end. For what makes several changes
    and tells of each: half of them is not what was asked for."""
    sink = cast("object", sys.stdout.buffer)
    if not isinstance(sink, _Sink):
        yield
        return
    faults: list[OSError] = []
    usual, sink.errors = sink.errors, lambda: _kept_in(faults)
    try:
        yield
    finally:
        sink.errors = usual
    if faults:
        raise faults[0]


@contextmanager
def _kept_in(faults: list[OSError]) -> Iterator[None]:
    try:
        with output_errors():
            yield
    except OSError as error:
        faults.append(error)


@contextmanager
def printable_output() -> Iterator[None]:
    """Put the sink below standard output and standard error. What standard error does not take is lost: there is
    nowhere to say so, and it is not to change what a command does or how it ends."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _over_sink(sys.stdout, output_errors), _over_sink(sys.stderr, lambda: suppress(OSError))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def _over_sink(stream: TextIO, errors: Callable[[], AbstractContextManager[None]]) -> TextIO:
    is_prompt = getattr(stream, "line_buffering", False)
    sink = cast("BinaryIO", _Sink(stream, errors))  # typeshed asks for a read1 of what is only written
    return io.TextIOWrapper(
        sink, stream.encoding, _ESCAPE, newline="\n", line_buffering=is_prompt, write_through=True
    )


def open_closed_streams() -> None:
    """Put something in the place of standard streams that were closed before we began (`>&-`).

    Otherwise the next file or socket that is opened gets the number of standard output. Reading or writing fails, as
    it does for other programs; what is said on a closed standard error goes nowhere.
    """
    streams = ("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)
    for name, mode, access in streams:
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, access), mode))
