"""How the service's connection to Redis is opened: TCP, TLS, a unix socket; the login; and the first answer, without
which there is no connection. Where the master has to be found, and whether it still is one, is asked in a thread of
`connect.MasterFinder`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from pbs_policy.store.connect import (
    REPLICA,
    TIMEOUT,
    MasterFinder,
    is_replica,
    log_in,
    tls_context,
)
from pbs_policy.store.errors import NotTheMaster, StoreUnavailable
from pbs_policy.store.question import Command
from pbs_policy.store.redis_line import RedisLine, RedisRefused
from pbs_policy.store.redis_url import NOBODY, Login, Place, RedisUrl, TlsFiles, written

WATCH_INTERVAL = 1.0
"""Seconds between two looks at who the master is, while there is a connection: one command on one of their own."""


class Connector:
    """Opens connections to the Redis of `url`, logs in, and makes sure that it answers and is a master.

    A connection is given up as soon as another server is known to be the master, or its own to be none. In a Cluster
    that is answered to the first command (MOVED); elsewhere it is asked each WATCH_INTERVAL: a former master that
    Sentinel cannot reach takes itself for the master, and whom somebody has demoted answers on as before.
    """

    def __init__(
        self, url: RedisUrl, user: str, password: str, probe: Command, tls: TlsFiles, sentinel: Login = NOBODY
    ) -> None:
        """`probe` is a command that this user may say, with a key of the table."""
        self._url = url
        self._login = Login(user, password)
        self._probe = probe
        self._tls = tls_context(tls) if url.tls else None
        self._finder = MasterFinder(url, self._login, tls, sentinel, probe)

    async def open(self) -> RedisLine:
        """A connection that has answered. Raises OSError, TimeoutError, RedisRefused or StoreUnavailable."""
        async with asyncio.timeout(TIMEOUT):
            place = await self._find_master() if self._url.names_master else self._url.place
            line = await self._open_line(place)
            try:
                for command in log_in(self._login, self._url.db):
                    await line.greet(*command)
                # A least-privilege user may not PING; and a mute Redis shows itself here.
                await line.greet(*self._probe)
                if await _belongs_to_a_replica(line):
                    raise RedisRefused(f"{self._url.path or written(place)}: {REPLICA}")
            except BaseException:
                line.close()
                raise
        line.place = self._url.path or written(place)
        if not self._url.cluster:
            watch = asyncio.create_task(self._watch(line, place))
            line.lost.add_done_callback(lambda _: watch.cancel())
        return line

    async def _watch(self, line: RedisLine, place: Place) -> None:
        """Give `line` up once `place` is known not to be the master. Who cannot be asked says nothing about that."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            try:
                master = await self._find_master()
            except NotTheMaster:
                line.give_up(f"{line.place}: {REPLICA}")
                return
            except StoreUnavailable:
                continue
            if master != place:
                line.give_up(f"{line.place} is not the master, {written(master)} is")
                return

    async def _find_master(self) -> Place:
        return await asyncio.to_thread(self._finder.find)

    def close(self) -> None:
        """End the connections by which it was asked who the master is."""
        self._finder.close()

    async def _open_line(self, place: Place) -> RedisLine:
        line = RedisLine(asyncio.get_running_loop())
        if self._url.path:
            await asyncio.get_running_loop().create_unix_connection(lambda: line, self._url.path)
        else:
            await asyncio.get_running_loop().create_connection(lambda: line, *place, ssl=self._tls)
        return line


async def _belongs_to_a_replica(line: RedisLine) -> bool:
    with suppress(RedisRefused):  # what is no Redis and yet speaks its protocol may not know the command
        return is_replica(await line.greet(b"HELLO", b"2"))
    return False
