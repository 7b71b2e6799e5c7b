"""Redis as the command line asks it: one connection, synchronous, over a socket. (The service has its
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

from pbs_policy.store.question import Command
from pbs_policy.store.redis_master import (
    REPLICA,
    ROLE,
    MasterUnknown,
    Step,
    is_elsewhere,
    is_replica,
    log_in,
    search,
    without_password,
)
from pbs_policy.store.redis_socket import TIMEOUT, ConnectionLost, Line, StoreRefused, StoreUnavailable, time_left
from pbs_policy.store.redis_url import NOBODY, Login, written
from pbs_policy.table.keys import Keys

if TYPE_CHECKING:
    from pbs_policy.settings import Settings
    from pbs_policy.store.redis_url import Place, RedisUrl, TlsFiles

__all__ = ["ConnectionLost", "Line", "RedisClient", "StoreRefused", "StoreUnavailable", "connect", "connect_by"]


def connect(url: RedisUrl, user: str, password: str) -> RedisClient:
    """A client of the one Redis at `url`. Nothing is sent before the first command."""
    return RedisClient(Connector(url, Login(user, password)))


def connect_by(
    settings: Settings, *, within: float | None = None, even_replica: bool = False, probe: Command = ()
) -> RedisClient:
    """A client of the Redis that `settings` name, as their user. Nothing is sent before the first command; `within`
    seconds from now everything must be done, if that is given. Raises SettingsError for an unreadable password."""
    return RedisClient(_connector(settings, probe, within, even_replica=even_replica))


def find_master_by(settings: Settings) -> Place:
    """The master that the servers of `settings` name or are. Raises StoreUnavailable, SettingsError."""
    return _connector(settings).find_master()


def _connector(
    settings: Settings, probe: Command = (), within: float | None = None, *, even_replica: bool = False
) -> Connector:
    login = Login(settings.redis_user, settings.redis_password())
    return Connector(
        settings.redis_url, login, settings.redis_tls, settings.sentinel_login(),
        probe=probe or (b"GET", Keys(settings.key_prefix).probe), within=within, even_replica=even_replica,
    )  # fmt: skip


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
            if not isinstance(error, ConnectionLost) and not is_elsewhere(str(error)):
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


class Connector:
    """Opens connections to the Redis of `url`, and logs in.

    `probe` is how a node of a Cluster is asked for the master: a command that this user may say, with a key of the
    table. A replica is refused as the service does, but `even_replica` takes it, where it is looked at for itself.
    """

    def __init__(
        self,
        url: RedisUrl,
        login: Login,
        tls: TlsFiles | None = None,
        sentinel: Login = NOBODY,
        *,
        probe: Command = (b"GET", b""),
        within: float | None = None,
        even_replica: bool = False,
    ) -> None:
        self._url = url
        self._login = login
        self._tls = tls
        self._sentinel = sentinel
        self._probe = probe
        self._ends_at = None if within is None else time.monotonic() + within
        self._even_replica = even_replica

    def open(self) -> Line:
        """A connection on which commands may follow. Raises StoreUnavailable."""
        url = self._url
        line = self._open_line(url.server or (("", 0) if url.path else self.find_master()), self._ends_at)
        greetings = log_in(self._login, url.db)
        try:
            line.write([*greetings, ROLE])
            line.read(len(greetings))
            with suppress(StoreRefused):  # what is no Redis and yet speaks its protocol may not know the command
                if is_replica(line.read(1)[0]) and not self._even_replica:
                    raise StoreUnavailable(f"{line.place}: {REPLICA}")
        except StoreRefused as error:
            line.close()
            raise StoreRefused(without_password(str(error), greetings)) from None
        except BaseException:
            line.close()
            raise
        return line

    def find_master(self) -> Place:
        """The master's place, asked for. Raises StoreUnavailable."""
        ends_at = self._ends_at or time.monotonic() + TIMEOUT
        steps = search(self._url, self._url.places, self._login, self._sentinel, self._probe)
        try:
            step = next(steps)
            while True:
                step = steps.send(self._carry_out(step, ends_at))
        except StopIteration as found:
            place: Place = found.value
            return place
        except MasterUnknown as error:
            whose = f"no Sentinel names the master {self._url.master}: " if self._url.master else ""
            raise StoreUnavailable(f"{whose}{error}") from error

    def _carry_out(self, step: Step, ends_at: float) -> Any:
        """What came of a step."""
        now = time.monotonic()
        commands = [*step.login, step.question]
        try:
            line = self._open_line(step.place, now + (ends_at - now) * step.share)
            try:
                line.write(commands)
                return line.read(len(commands))[-1]
            finally:
                line.close()
        except StoreUnavailable as error:
            text = str(error).removeprefix(f"{written(step.place)}: ")
            return StoreUnavailable(without_password(text, step.login))

    def _open_line(self, place: Place, ends_at: float | None) -> Line:
        url = self._url
        name = url.path or written(place)
        connection: socket.socket | None = None
        try:
            if url.path:
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                connection.settimeout(time_left(ends_at))
                connection.connect(url.path)
            else:
                connection = socket.create_connection(place, time_left(ends_at))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if url.tls:
                connection = self._wrapped(connection, place[0])
        except (OSError, ValueError) as error:
            if connection is not None:
                connection.close()
            what = f"no answer within {TIMEOUT} s" if isinstance(error, TimeoutError) else _reason(error)
            raise StoreUnavailable(f"{name}: {what}") from error
        return Line(connection, name, ends_at)

    def _wrapped(self, connection: socket.socket, host: str) -> socket.socket:
        import ssl

        files = self._tls
        context = ssl.create_default_context(cafile=(files.ca if files else "") or None)
        if files and files.certificate:
            context.load_cert_chain(files.certificate, files.key or None)
        return context.wrap_socket(connection, server_hostname=host)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
