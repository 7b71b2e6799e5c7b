"""The event loop of our daemons: which one it is, and what goes wrong in it, or is said by a library, as lines of our
log."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from pbs_policy.log import Log, printable

_LONGEST_LIBRARY_LINE = 1000
"""Characters of what a library logs: it may quote what a peer or Redis sent."""


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the loop: uvloop, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def loop_name() -> str:
    """What the event loop is called."""
    return loop_factory().__module__.partition(".")[0]


@contextmanager
def logging_to(log: Log) -> Iterator[None]:
    """In the running loop: the lines of one turn are written together, and what goes wrong in it is a line."""
    loop = asyncio.get_running_loop()
    log.write_soon(loop.call_soon)
    loop.set_exception_handler(partial(_say_fault, log))
    libraries = _LibraryLines(log, loop)
    logging.getLogger().addHandler(libraries)
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(libraries)
        log.write_now()


def _say_fault(log: Log, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What went wrong in the event loop and nobody waits for, as one line of the log. asyncio would write a traceback
    to standard error; uvloop has one where a connection is given up in the middle of a TLS handshake."""
    error = context.get("exception")
    frames = traceback.extract_tb(error.__traceback__) if error else ()
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    log.error(f"event loop: {printable(context['message'] + (f': {error!r}' if error else ''))}{place}")


class _LibraryLines(logging.Handler):
    """Hands what libraries log or warn of to our log, one line each. Python would write it to standard error as it
    is: of several lines, in no form of ours, and waiting for a full pipe."""

    def __init__(self, log: Log, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        """One record as a line. A traceback is left out, but for its error."""
        try:
            text = record.getMessage()
        except Exception as error:  # noqa: BLE001 - a library's record whose arguments do not fit its text
            text = f"{record.msg!r} ({error!r})"
        if record.exc_info and record.exc_info[1]:
            text += f": {record.exc_info[1]!r}"
        say = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        line = f"{printable(record.name)}: {printable(' '.join(text.split()), _LONGEST_LIBRARY_LINE)}"
        if threading.current_thread() is threading.main_thread():
            say(line)
        else:  # our log belongs to the loop's thread; a loop that is closed has no use for the line
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(say, line)
