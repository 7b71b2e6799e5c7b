"""Redis as tests have it: redis-py to prepare and to look with; and on the same Redis, fake or real, the program's
own client."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Sequence
from typing import Any

import fakeredis
from redis import Redis

from pbs_policy.address import ClientAddresses, Target
from pbs_policy.demo.daemons import PrivateDaemon
from pbs_policy.store.connect import MasterFinder, RedisClient
from pbs_policy.store.question import Command
from pbs_policy.store.redis_url import NOBODY, Login, Place, RedisUrl
from pbs_policy.table.login_table import LoginTable, set_command
from pbs_policy.table.records import Record, serialise_record


def connect(url: RedisUrl, user: str = "", password: str = "") -> Redis:
    """A client of redis-py, for a TCP port or a unix socket."""
    host, port = url.server or ("", 0)
    return Redis(
        host=host, port=port, unix_socket_path=url.path or None, db=url.db,
        username=user or None, password=password or None, protocol=2,
    )  # fmt: skip


_MOST_OPEN = 20  # a test of many examples makes a client for each; one that is closed opens anew when it is asked
_opened: deque[RedisClient] = deque()


def client_on(redis: Redis) -> RedisClient:
    """The program's client of the Redis that `redis` asks, as the same user. It is closed when the test ends."""
    client = _FakeClient(_FakeFinder(redis)) if isinstance(redis, fakeredis.FakeRedis) else _client_on(redis)
    _opened.append(client)
    if len(_opened) > _MOST_OPEN:
        _opened.popleft().close()
    return client


def close_clients() -> None:
    """Close what `client_on` made."""
    while _opened:
        _opened.popleft().close()


def _client_on(redis: Redis) -> RedisClient:
    place = redis.connection_pool.connection_kwargs
    places = ((place["host"], place["port"]),) if place.get("host") else ()
    url = RedisUrl(places, place.get("path") or "", place["db"])
    login = Login(place.get("username") or "", place.get("password") or "")
    return RedisClient(MasterFinder(url, login, even_replica=True))


def table_on(redis: Redis, prefix: str, **options: Any) -> LoginTable:
    """The login table on this Redis."""
    return LoginTable(client_on(redis), prefix, **options)


class Clock:
    """The time, as the test has it."""

    def __init__(self, time: float) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time


def carry_out(redis: Redis, commands: Sequence[Command]) -> list[Any]:
    """The reply to each command; an error is an exception among them."""
    pipeline: Any = redis.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    replies: list[Any] = pipeline.execute(raise_on_error=False)
    return replies


def target(text: str) -> Target:
    """The address or network that an administrator names so."""
    return ClientAddresses().parse_target(text)


def write_login(
    table: LoginTable, client_address: str, record: Record, ttl: float, *, with_domain: bool = False
) -> None:
    """Record a login for `ttl` seconds, as the post-login script does."""
    keys = table.login_keys(client_address, record.user, with_domain=with_domain)
    table.write([set_command(key, serialise_record(record), ttl) for key in keys])


def pause(server: PrivateDaemon) -> None:
    """Make it mute: connections are still accepted by the kernel, and no answer ever comes."""
    os.kill(server.pid, signal.SIGSTOP)


def resume(server: PrivateDaemon) -> None:
    """Let it go on; it then answers what it was asked meanwhile."""
    os.kill(server.pid, signal.SIGCONT)


class _FakeClient(RedisClient):
    """Asks inside the process."""

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """fakeredis makes a dict of what stands on the wire as a list."""
        return [sum(each.items(), ()) if isinstance(each, dict) else each for each in super().ask(commands)]


class _FakeFinder(MasterFinder):
    def __init__(self, redis: fakeredis.FakeRedis) -> None:
        super().__init__(RedisUrl.parse("redis://127.0.0.1"), NOBODY)
        self._fake = redis

    def client_of(self, _: Place) -> Redis:
        client = fakeredis.FakeRedis(connection_pool=self._fake.connection_pool)
        client.response_callbacks.clear()
        return client
