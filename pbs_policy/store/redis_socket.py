"""One open connection to Redis for the command line: a socket, and a reader of its replies."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from weakref import finalize

from pbs_policy.store.question import Command
from pbs_policy.store.resp import NOTHING_YET, NotRedis, ReplyError, pack, reader

TIMEOUT = 0.5
"""Seconds for a connection and for a reply: an administrator's command says what is wrong instead of hanging."""

_PIECE = 1 << 16  # bytes read at once: a batch of a listing takes three
_PIECES = 64  # read at once of what is published: whoever watches has a screen to draw as well


class StoreUnavailable(Exception):
    """Redis cannot be asked: refused, mute, or it answers with an error. The message says which and where."""


class StoreRefused(StoreUnavailable):
    """Redis answered, and with an error: its own words are the message."""


class ConnectionLost(StoreUnavailable):
    """The connection was closed: what was asked may be asked on a new one."""


class Line:
    """One open connection to `place`, which is named in errors. Until `ends_at` (by the monotonic clock) everything
    must be done, if that is given. It is closed when nobody has it any more."""

    def __init__(self, connection: socket.socket, place: str, ends_at: float | None = None) -> None:
        self._socket = connection
        # And no `__del__`: in a ring of objects the socket's own may come first, and warn.
        self._close: Callable[[], object] = finalize(self, connection.close)
        self.place = place
        self._ends_at = ends_at
        self._refusals = _Refusals()
        self._reader = reader(self._refusals.note)

    def write(self, commands: Sequence[Command]) -> None:
        """Send these. Raises ConnectionLost, StoreUnavailable."""
        try:
            self._socket.settimeout(time_left(self._ends_at))
            self._socket.sendall(b"".join(map(pack, commands)))
        except OSError as error:
            raise self._fault(error) from error

    def read(self, count: int) -> list[Any]:
        """As many replies. Raises StoreRefused for the first error among them, ConnectionLost, StoreUnavailable."""
        gets = self._reader.gets
        replies: list[Any] = []
        try:
            while len(replies) < count:
                reply = gets()
                if reply is NOTHING_YET:
                    self._feed()
                else:
                    replies.append(reply)
        except OSError as error:
            raise self._fault(error) from error
        except (NotRedis, TypeError, MemoryError) as error:
            raise StoreUnavailable(f"{self.place}: what answers there does not speak Redis' protocol") from error
        self._refusals.raise_first()
        return replies

    def read_arrived(self) -> list[Any]:
        """The replies that are here already. Raises as `read` does."""
        self._socket.setblocking(False)
        try:
            with suppress(BlockingIOError):
                for _ in range(_PIECES):
                    self._feed()
        except ConnectionResetError as error:
            raise self._fault(error) from error
        finally:
            self._socket.settimeout(TIMEOUT)
        replies = []
        while (reply := self._reader.gets()) is not NOTHING_YET:
            replies.append(reply)
        return replies

    def close(self) -> None:
        """Close it."""
        self._close()

    def _feed(self) -> None:
        if self._ends_at is not None:
            self._socket.settimeout(time_left(self._ends_at))
        piece = self._socket.recv(_PIECE)
        if not piece:
            raise ConnectionResetError("the connection was closed")
        self._reader.feed(piece)

    def _fault(self, error: OSError) -> StoreUnavailable:
        if isinstance(error, TimeoutError):
            return StoreUnavailable(f"{self.place}: no answer within {TIMEOUT} s")
        return ConnectionLost(f"{self.place}: {error.strerror or error}")


class _Refusals(list[str]):
    """The errors that Redis has answered."""

    def note(self, text: str) -> Exception:
        self.append(text)
        return ReplyError(text)

    def raise_first(self) -> None:
        if self:
            first = self[0]
            self.clear()
            raise StoreRefused(first)


def time_left(ends_at: float | None) -> float:
    """Seconds for the next step on the way to `ends_at`. Raises TimeoutError where none are left."""
    if ends_at is None:
        return TIMEOUT
    left = ends_at - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, TIMEOUT)
