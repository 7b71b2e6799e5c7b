"""Redis as tests have it: redis-py to prepare and to look with; and on the same Redis, fake or real, the program's
own client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import finalize

import fakeredis
from redis import Redis, RedisError, ResponseError

from pbs_policy.store.question import Command
from pbs_policy.store.redis_client import Connector, Line, RedisClient, StoreRefused, StoreUnavailable
from pbs_policy.store.redis_url import Login, RedisUrl
from pbs_policy.table.login_table import LoginTable


def connect(url: RedisUrl, user: str = "", password: str = "") -> Redis:
    """A client of redis-py, for a TCP port or a unix socket."""
    host, port = url.server or ("", 0)
    return Redis(
        host=host, port=port, unix_socket_path=url.path or None, db=url.db,
        username=user or None, password=password or None, protocol=2,
    )  # fmt: skip


def client_on(redis: Redis) -> RedisClient:
    """The program's client of the Redis that `redis` asks, as the same user."""
    if isinstance(redis, fakeredis.FakeRedis):
        return RedisClient(_FakeConnector(redis))
    place = redis.connection_pool.connection_kwargs
    places = ((place["host"], place["port"]),) if place.get("host") else ()
    url = RedisUrl(places, place.get("path") or "", place["db"])
    login = Login(place.get("username") or "", place.get("password") or "")
    return RedisClient(Connector(url, login, even_replica=True))


def table_on(redis: Redis, prefix: str, **options: Any) -> LoginTable:
    """The login table on this Redis."""
    return LoginTable(client_on(redis), prefix, **options)


class _FakeConnector(Connector):
    def __init__(self, redis: fakeredis.FakeRedis) -> None:
        self._redis = redis

    def open(self) -> Line:
        return _FakeLine(self._redis)


class _FakeLine(Line):
    """A connection inside the process: fakeredis parses the commands and gives replies as they are on the wire."""

    def __init__(self, redis: fakeredis.FakeRedis) -> None:
        self._pool = redis.connection_pool
        try:
            self._connection: Any = self._pool.get_connection()
        except RedisError as error:
            raise StoreUnavailable(str(error)) from error
        self._close = finalize(self, _give_back, self._pool, self._connection)

    def write(self, commands: Sequence[Command]) -> None:
        try:
            for command in commands:
                self._connection.send_command(*command)
        except RedisError as error:
            raise StoreUnavailable(str(error)) from error

    def read(self, count: int) -> list[Any]:
        replies, refusals = [], []
        for _ in range(count):
            try:
                replies.append(_as_sent(self._connection.read_response()))
            except ResponseError as error:
                refusals.append(str(error))
            except RedisError as error:
                raise StoreUnavailable(str(error)) from error
        if refusals:
            raise StoreRefused(refusals[0])
        return replies

    def read_arrived(self) -> list[Any]:
        replies = []
        while self._connection.can_read(0):
            replies += self.read(1)
        return replies


def _give_back(pool: Any, connection: Any) -> None:
    connection.disconnect()
    pool.release(connection)


def _as_sent(reply: Any) -> Any:
    """fakeredis makes a dict of what stands on the wire as a list."""
    return [part for pair in reply.items() for part in pair] if isinstance(reply, dict) else reply
