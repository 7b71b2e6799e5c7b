"""Redis as the command line asks it: one connection, synchronous, over a socket and hiredis. (The service has its
own, which waits for nobody: `redis_line`.)

A connection is opened with the first command, and once more where it was lost; `Connector` is the one place that
knows how. It imports only what the URL needs: redis-py in its place takes 0.2 s before the first command.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import hiredis

from pbs_policy.question import Command
from pbs_policy.resp import pack

if TYPE_CHECKING:
    from pbs_policy.redis_url import Place, RedisUrl, TlsFiles

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


def connect(
    url: RedisUrl, user: str, password: str, tls: TlsFiles | None = None, *, within: float | None = None
) -> RedisClient:
    """A client of the Redis at `url`. Nothing is sent before the first command; `within` seconds from now everything
    must be done, if that is given."""
    return RedisClient(Connector(url, user, password, tls, within))


class RedisClient:
    """Asks on one connection, and raises StoreUnavailable where that cannot be had.

    A connection that is lost is opened once more, and all that waits for an answer is asked again, unless it is
    `ask_once`: so only commands that may be said twice. Nothing is tried again after a time-out.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._line: Line | None = None
        self._waiting: Sequence[Command] = ()

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to `commands`, sent in one go. An error among them is raised when all are read."""
        self.send(commands)
        return self.receive()

    def ask_once(self, commands: Sequence[Command]) -> list[Any]:
        """The same on the connection that there is, for what builds on what was said before. Raises ConnectionLost
        where there is none any more, or nobody knows what became of it."""
        if self._line is None:
            raise ConnectionLost("the connection was closed")
        return self._say(commands)

    def send(self, commands: Sequence[Command]) -> None:
        """Send `commands`, whose replies are then to be had from `receive`, before anything else is asked."""
        is_old = self._line is not None
        self._waiting = commands
        try:
            self._opened().write(commands)
        except ConnectionLost as error:
            self._drop(error)
            if not is_old:
                raise
            self._opened().write(commands)

    def receive(self) -> list[Any]:
        """The replies to what was sent last."""
        commands, self._waiting = self._waiting, ()
        try:
            return self._opened().read(len(commands))
        except StoreUnavailable as error:
            self._drop(error)
            # A master that has become a replica since it was found: whoever is asked for it names another now.
            if not isinstance(error, ConnectionLost) and not str(error).startswith("READONLY"):
                raise
        self.close()
        return self._say(commands)

    def heard(self) -> list[Any]:
        """What was published on the channels that were subscribed to and has arrived, without waiting for more; of a
        lot, some."""
        try:
            return self._opened().read_arrived()
        except StoreUnavailable as error:
            self._drop(error)
            raise

    def another(self) -> RedisClient:
        """A client of the same Redis with a connection of its own."""
        return RedisClient(self._connector)

    def close(self) -> None:
        """Close the connection, if there is one; the next command opens another."""
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _say(self, commands: Sequence[Command]) -> list[Any]:
        line = self._opened()
        try:
            line.write(commands)
            return line.read(len(commands))
        except StoreUnavailable as error:
            self._drop(error)
            raise

    def _opened(self) -> Line:
        if self._line is None:
            self._line = self._connector.open()
        return self._line

    def _drop(self, error: StoreUnavailable) -> None:
        """After an error on a connection: it stays only where every reply was read."""
        if not isinstance(error, StoreRefused):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A command ends without a word to the clients it had.
        self.close()


class Line:
    """One open connection to `place`, which is named in errors. Until `ends_at` (by the monotonic clock) everything
    must be done, if that is given."""

    def __init__(self, connection: socket.socket, place: str, ends_at: float | None = None) -> None:
        self._socket = connection
        self._place = place
        self._ends_at = ends_at
        self._refusals = _Refusals()
        self._reader = hiredis.Reader(replyError=self._refusals.note)

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
                if reply is False:
                    self._feed()
                else:
                    replies.append(reply)
        except OSError as error:
            raise self._fault(error) from error
        except (hiredis.ProtocolError, TypeError, MemoryError) as error:
            raise StoreUnavailable(f"{self._place}: what answers there does not speak Redis' protocol") from error
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
        while (reply := self._reader.gets()) is not False:
            replies.append(reply)
        return replies

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _feed(self) -> None:
        if self._ends_at is not None:
            self._socket.settimeout(time_left(self._ends_at))
        piece = self._socket.recv(_PIECE)
        if not piece:
            raise ConnectionResetError("the connection was closed")
        self._reader.feed(piece)

    def _fault(self, error: OSError) -> StoreUnavailable:
        if isinstance(error, TimeoutError):
            return StoreUnavailable(f"{self._place}: no answer within {TIMEOUT} s")
        return ConnectionLost(f"{self._place}: {error.strerror or error}")


class _Refusals(list[str]):
    """The errors that Redis has answered."""

    def note(self, text: str) -> Exception:
        self.append(text)
        return hiredis.ReplyError(text)

    def raise_first(self) -> None:
        if self:
            first = self[0]
            self.clear()
            raise StoreRefused(first)


class Connector:
    """Opens connections to the Redis of `url`, and logs in."""

    def __init__(
        self, url: RedisUrl, user: str, password: str, tls: TlsFiles | None = None, within: float | None = None
    ) -> None:
        self._url = url
        self._login: Sequence[bytes] = ()
        if password:
            self._login = [text.encode("utf-8", "surrogateescape") for text in (user, password) if text]
        self._tls = tls
        self._ends_at = None if within is None else time.monotonic() + within

    def open(self) -> Line:
        """A connection on which commands may follow. Raises StoreUnavailable."""
        url = self._url
        line = self._find_master() if url.master else self._open_line((url.host, url.port))
        greetings: list[Command] = [(b"AUTH", *self._login)] if self._login else []
        if url.db:
            greetings.append((b"SELECT", b"%d" % url.db))
        try:
            if greetings:
                line.write(greetings)
                line.read(len(greetings))
        except StoreRefused as error:
            line.close()
            if self._login and self._login[-1][:8] in str(error).encode("utf-8", "surrogateescape"):
                raise StoreRefused("AUTH: an error that repeats the password") from None  # it knows no AUTH
            raise
        except BaseException:
            line.close()
            raise
        return line

    def _find_master(self) -> Line:
        """A connection to the master that the first Sentinel names which knows it."""
        name, trouble = self._url.master, "none answers"
        for place in self._url.sentinels:
            try:
                line = self._open_line(place)
                try:
                    line.write([(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name.encode())])
                    (found,) = line.read(1)
                finally:
                    line.close()
            except StoreUnavailable as error:
                trouble = str(error)
                continue
            if found:
                return self._open_line((found[0].decode(), int(found[1])))
            trouble = f"{_written(place)} knows no master of this name"
        raise StoreUnavailable(f"no Sentinel names the master {name}: {trouble}")

    def _open_line(self, place: Place) -> Line:
        url = self._url
        name = url.path or _written(place)
        connection: socket.socket | None = None
        try:
            if url.path:
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                connection.settimeout(time_left(self._ends_at))
                connection.connect(url.path)
            else:
                connection = socket.create_connection(place, time_left(self._ends_at))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if url.tls:
                connection = self._wrapped(connection, place[0])
        except (OSError, ValueError) as error:
            if connection is not None:
                connection.close()
            what = f"no answer within {TIMEOUT} s" if isinstance(error, TimeoutError) else _reason(error)
            raise StoreUnavailable(f"{name}: {what}") from error
        return Line(connection, name, self._ends_at)

    def _wrapped(self, connection: socket.socket, host: str) -> socket.socket:
        import ssl

        files = self._tls
        context = ssl.create_default_context(cafile=(files.ca if files else "") or None)
        if files and files.certificate:
            context.load_cert_chain(files.certificate, files.key or None)
        return context.wrap_socket(connection, server_hostname=host)


def time_left(ends_at: float | None) -> float:
    """Seconds for the next step on the way to `ends_at`. Raises TimeoutError where none are left."""
    if ends_at is None:
        return TIMEOUT
    left = ends_at - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, TIMEOUT)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _written(place: Place) -> str:
    return f"{place[0]}:{place[1]}"
