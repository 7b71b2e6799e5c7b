"""Redis through redis-py: how it is reached (TCP, TLS, a unix socket, the master that Sentinels or a Cluster name),
and how long that may take. The command line, doctor, watch and demo ask by a `RedisClient`; the service has its own
pipelined connection (`lookups`) and asks a `MasterFinder` where that has to go.

redis-py would retry a refused connection for 4 s and a mute one for 58 s. Here a connection that was lost is opened
once more, and nothing is tried again after a time-out. Only a master is asked: a replica may be behind, or cut off
for long, and would still permit what was revoked. HELLO tells which it is, and every ACL user may say it. For the
same reason a Sentinel is asked for the address alone, and a node of a Cluster for a key: `Sentinel.discover_master`
and `RedisCluster` need rights to more commands (SENTINEL MASTERS, CLUSTER SLOTS, COMMAND).
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Self

from pbs_policy.store.errors import NotTheMaster, StoreRefused, StoreUnavailable
from pbs_policy.store.in_time import TcpConnection, TlsConnection, UnixConnection, expect
from pbs_policy.store.question import Command
from pbs_policy.store.raised import errors_of, said
from pbs_policy.store.redis_url import NOBODY, Login, Place, RedisUrl, TlsFiles, written
from pbs_policy.store.replies import is_elsewhere
from pbs_policy.store.resp import redis
from pbs_policy.table.keys import Keys

if TYPE_CHECKING:
    from pbs_policy.settings import Settings

TIMEOUT = 0.5
"""Seconds for a connection and for a reply, and for all that a request of Postfix may wait for Redis: Postfix waits
2 s for us in the example main.cf, and an administrator's command says what is wrong instead of hanging."""

_ANSWER = 4
"""Times TIMEOUT: all that may pass until the answers to a question are complete, however they trickle in. A thousand
keys and their values have to come through a slow line."""

REPLICA = "it is a replica, which may be behind"

_MOST_HEARD = 5_000  # messages taken at once: whoever watches has a screen to draw as well

# What redis-py says on its own account at each connection (its name, RESP3) takes rights that our ACL users lack.
_KNOWN = signature(getattr(redis.connection, "AbstractConnection", redis.Connection)).parameters
_SILENT = {"driver_info": None} if "driver_info" in _KNOWN else {"lib_name": None, "lib_version": None}
_SAYS_NOTHING: dict[str, Any] = {name: value for name, value in {**_SILENT, "protocol": 2}.items() if name in _KNOWN}


def connect(url: RedisUrl, user: str, password: str) -> RedisClient:
    """A client of the Redis at `url`. Nothing is sent before the first command."""
    return RedisClient(MasterFinder(url, Login(user, password)))


def connect_by(
    settings: Settings, *, within: float | None = None, even_replica: bool = False, probe: Command = ()
) -> RedisClient:
    """A client of the Redis that `settings` name, as their user. Nothing is sent before the first command; `within`
    seconds from now everything must be done, if that is given. `probe` is for a user who may not GET
    (`MasterFinder`). Raises SettingsError for an unreadable password."""
    login = Login(settings.redis_user, settings.redis_password())
    finder = MasterFinder(
        settings.redis_url, login, settings.redis_tls, settings.sentinel_login(),
        probe or (b"GET", Keys(settings.key_prefix).probe), even_replica=even_replica,
    )  # fmt: skip
    return RedisClient(finder, within)


class RedisClient:
    """Asks in pipelines, and raises StoreUnavailable where Redis cannot be asked.

    What was asked on a connection that is lost is asked again on a new one, once: so only commands that may be said
    twice. Not to be shared between threads.
    """

    def __init__(self, finder: MasterFinder, within: float | None = None) -> None:
        self._url = finder.url
        self._finder = finder
        self._ends_at = None if within is None else time.monotonic() + within
        self._redis: redis.Redis | None = None
        self._where = str(self._url)

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to `commands`, sent in one go. The first error among them is raised when all are read."""
        try:
            return self._say(commands)
        except StoreUnavailable as error:
            # Whoever was the master when it was found names another one now.
            if not (self._url.names_master and is_elsewhere(str(error))):
                raise
        self.close()
        return self._say(commands)

    def rewrite(
        self, key: bytes, reads: Sequence[Command], command: Callable[[Sequence[Any]], Command | None]
    ) -> bool:
        """Say what `command` makes of the replies to `reads`, if anything. False where somebody else has written
        `key` meanwhile: then nothing was done."""
        with self._asking() as server, server.pipeline() as pipe:
            pipe.watch(key)
            write = command([pipe.execute_command(*each) for each in reads])
            pipe.multi()
            if write:
                pipe.execute_command(*write)
            try:
                pipe.execute()
            except redis.WatchError:
                return False
        return True

    def subscribe(self, channel: bytes) -> Subscription:
        """What is published on `channel` from now on."""
        with self._asking() as server:
            pubsub = server.pubsub(ignore_subscribe_messages=True)
            pubsub.subscribe(channel)
        return Subscription(pubsub, self._where)

    def find_master(self) -> Place:
        """The master that the servers at `url` name or are. Raises StoreUnavailable."""
        return self._finder.find()

    def another(self) -> RedisClient:
        """A client of the same Redis with a connection of its own."""
        another = copy(self)
        another._redis = None
        return another

    def close(self) -> None:
        """Close the connection, if there is one; the next command opens another."""
        server, self._redis = self._redis, None
        if server is not None:
            server.close()
            server.connection_pool.disconnect()

    def _say(self, commands: Sequence[Command]) -> list[Any]:
        with self._asking() as server:
            pipe = server.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)
            replies = pipe.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, redis.RedisError):
                    raise reply
            return list(replies)

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        if self._ends_at is not None and time.monotonic() >= self._ends_at:
            raise StoreUnavailable(f"{self._where}: no answer within the time that there was")
        if self._redis is None:
            url = self._url
            place = self._finder.find() if url.names_master else url.place
            self._where = url.path or written(place)
            self._redis = self._finder.client_of(place)
        with errors_of(self._where, TIMEOUT):
            yield self._redis

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Subscription:
    """What is published on a channel. `arrived` raises StoreUnavailable where the connection is lost."""

    def __init__(self, pubsub: redis.client.PubSub, where: str) -> None:
        self._pubsub = pubsub
        self._where = where

    def arrived(self) -> list[bytes]:
        """The messages received so far, `_MOST_HEARD` at most; never blocks."""
        messages: list[bytes] = []
        expect(self._pubsub.connection)
        with errors_of(self._where, TIMEOUT):
            for _ in range(_MOST_HEARD):
                message = self._pubsub.get_message(timeout=0)
                if message is None:
                    break
                messages.append(message["data"])
        return messages

    def close(self) -> None:
        """Close its connection."""
        with suppress(redis.RedisError):
            self._pubsub.close()


class MasterFinder:
    """Finds the server that logins are written to, and makes clients of it. `find` blocks for TIMEOUT at most, plus
    what the name server takes.

    `probe` is how a node of a Cluster is asked: a command that this user may say, with a key of the table, which is
    all in one hash slot (`redis_url.in_one_slot`). A replica is refused, but `even_replica` takes it, where it is
    looked at for itself.
    """

    def __init__(
        self, url: RedisUrl, login: Login, tls: TlsFiles | None = None, sentinel: Login = NOBODY,
        probe: Command = (b"GET", b""), *, even_replica: bool = False,
    ) -> None:  # fmt: skip
        self.url = url
        self._login = login
        self._sentinel = sentinel
        self._probe = probe
        self._even_replica = even_replica
        self._tls = tls_context(tls or TlsFiles()) if url.tls else None
        self._places = list(url.places) or [url.place]
        self._asked: dict[Place, redis.Redis] = {}  # their connections are kept for the next time

    def client_of(self, place: Place) -> redis.Redis:
        """A client of redis-py for the server there, which logs in and refuses a replica at each connection."""
        return self._client(
            place, self._login, TIMEOUT, self.url.db, within=_ANSWER * TIMEOUT, must_be_master=not self._even_replica
        )

    def find(self) -> Place:
        """The master's place. Raises StoreUnavailable with the last reason there was."""
        trouble: StoreUnavailable | None = None
        for place in list(self._places):
            try:
                master = self._ask(place)
            except StoreUnavailable as error:
                # The Cluster's word for all of it says more than that one of its nodes is down.
                if trouble is None or "CLUSTERDOWN" not in str(trouble):
                    trouble = error
                continue
            self._places.sort(key=lambda each: each != place)  # who answered is asked first the next time
            return master
        whose = f"no Sentinel names the master {self.url.master}: Sentinel " if self.url.master else ""
        raise type(trouble or StoreUnavailable())(f"{whose}{trouble}") from trouble

    def close(self) -> None:
        """Close the connections that were kept."""
        for each in self._asked.values():
            each.connection_pool.disconnect()
        self._asked.clear()

    def _ask(self, place: Place) -> Place:
        """The master that one place names, or is."""
        url = self.url
        share = TIMEOUT / (len(self._places) + 1)  # the first may be the one that is gone, the master wants its own
        if place not in self._asked:
            login = self._sentinel if url.master else self._login
            self._asked[place] = self._client(place, login, share if url.names_master else TIMEOUT)
        client: Any = self._asked[place]
        where = url.path or written(place)
        with errors_of(where, TIMEOUT):
            if url.master:
                named = client.execute_command(b"SENTINEL", b"get-master-addr-by-name", url.master)
                if (found := _place_in(named)) is None:
                    raise StoreUnavailable(f"{where}: knows no master {url.master}")
                return found
            if url.cluster:
                try:
                    client.execute_command(*self._probe)
                except (redis.exceptions.MovedError, redis.exceptions.AskError) as moved:
                    return moved.host or place[0], moved.port
            elif is_replica(client.execute_command(b"HELLO", b"2")):
                raise NotTheMaster(f"{where}: {REPLICA}")
        return place

    def _client(
        self,
        place: Place,
        login: Login,
        seconds: float,
        db: int = 0,
        *,
        within: float | None = None,
        must_be_master: bool = False,
    ) -> redis.Redis:
        options: dict[str, Any] = {
            "connection_class": TcpConnection, "within": within or seconds,
            "db": db, "username": login.user or None, "password": login.password or None,
            "socket_timeout": seconds,
            "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 1, (redis.ConnectionError,)),
            "redis_connect_func": partial(_greet, login=login, must_be_master=must_be_master), **_SAYS_NOTHING,
        }  # fmt: skip
        if self.url.path:
            options |= {"connection_class": UnixConnection, "path": self.url.path}
        else:
            options |= {"host": place[0], "port": place[1], "socket_connect_timeout": seconds}
            options |= {"connection_class": TlsConnection, "context": self._tls} if self._tls else {}
        client = redis.Redis(connection_pool=redis.ConnectionPool(**options))
        client.response_callbacks.clear()  # replies as they were sent: each caller knows its command
        return client


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """Whom to trust, and who we are. Raises SettingsError for a file that cannot be used."""
    with _faults_of(f"redis_tls_ca_file: {files.ca}"):
        context = ssl.create_default_context(cafile=files.ca or None)
    if files.certificate:
        key = f" with redis_tls_key_file: {files.key}" if files.key else ""
        with _faults_of(f"redis_tls_cert_file: {files.certificate}{key}"):
            context.load_cert_chain(files.certificate, files.key or None)
    return context


@contextmanager
def _faults_of(what: str) -> Iterator[None]:
    from pbs_policy.settings.sources import SettingsError

    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError([f"{what}: {error.strerror or error}"]) from error


def log_in(login: Login, db: int = 0) -> list[Command]:
    """What is said first on a connection."""
    commands: list[Command] = []
    if login.password:
        words = [each.encode("utf-8", "surrogateescape") for each in (login.user, login.password) if each]
        commands.append((b"AUTH", *words))
    if db:
        commands.append((b"SELECT", b"%d" % db))
    return commands


def without_password(text: str, command: Command) -> str:
    """An error that was answered to `command`: a server that knows no AUTH repeats what came with it."""
    repeats = command[0] == b"AUTH" and command[-1][:8].decode("utf-8", "replace") in text
    return "an error that repeats the password" if repeats else text


def is_replica(hello: Any) -> bool:
    """Whether the reply to HELLO is that of a replica."""
    if not isinstance(hello, list):
        return True  # whatever it is, it is not known to be a master
    roles = [value for name, value in zip(hello[::2], hello[1::2], strict=False) if name == b"role"]
    return any(role != b"master" for role in roles)


def _greet(connection: Any, *, login: Login, must_be_master: bool) -> None:
    try:
        connection.on_connect()
    except (redis.ResponseError, redis.AuthenticationError) as error:
        raise StoreRefused(without_password(said(error), log_in(login)[0] if login.password else (b"",))) from None
    # Before its first reply a server's TLS sends tickets, which redis-py takes for data that nobody asked for.
    if must_be_master or isinstance(connection, TlsConnection):
        connection.send_command(b"HELLO", b"2")
        with suppress(redis.ResponseError):  # what is no Redis and yet speaks its protocol may not know the command
            hello = connection.read_response()
            if must_be_master and is_replica(hello):
                raise NotTheMaster(REPLICA)


def _place_in(reply: Any) -> Place | None:
    """The place that a Sentinel's reply names, if it does."""
    if not isinstance(reply, list) or [type(each) for each in reply] != [bytes, bytes]:
        return None
    host, port = reply[0].decode("utf-8", "replace"), reply[1]
    is_port = port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536
    return (host, int(port)) if host and is_port else None
