"""How the service's connection to Redis is opened: TCP, TLS, a unix socket; to the master, where there are others;
the login; and the first answer, without which there is no connection. And how it is left when the master is another.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Any

from pbs_policy.store.redis_line import TIMEOUT, Line, RedisRefused
from pbs_policy.store.redis_master import REPLICA, ROLE, MasterUnknown, Step, is_replica, log_in, search
from pbs_policy.store.redis_url import NOBODY, Login, Place, RedisUrl, TlsFiles, written

WATCH_INTERVAL = 1.0
"""Seconds between two looks at who the master is, while there is a connection: one command on one of their own."""

_SOCKET: Place = ("", 0)  # in place of a place, with a unix socket


class Connector:
    """Opens connections to the Redis of `url`, logs in, and makes sure that it answers and is a master.

    A connection is given up as soon as another server is known to be the master, or its own to be none. In a Cluster
    that is answered to the first command (MOVED); elsewhere it is asked each WATCH_INTERVAL: a former master that
    Sentinel cannot reach takes itself for the master, and whom somebody has demoted answers on as before.
    """

    def __init__(
        self, url: RedisUrl, user: str, password: str, probe_key: bytes, tls: TlsFiles, sentinel: Login = NOBODY
    ) -> None:
        self._url = url
        self._login = Login(user, password)
        self._sentinel = sentinel
        self._probe_key = probe_key
        self._tls = _tls_context(tls) if url.tls else None
        self._places = list(url.places) or [_SOCKET]
        self._asked: tuple[Place, Line] | None = None  # the connection of the last step, for the next one

    async def open(self) -> Line:
        """A connection that has answered. Raises OSError, TimeoutError, RedisRefused or MasterUnknown."""
        async with asyncio.timeout(TIMEOUT):
            place = self._url.server or (_SOCKET if self._url.path else await self._find_master())
            line = await self._open_line(place)
            try:
                for command in log_in(self._login, self._url.db):
                    await line.greet(*command)
                # A least-privilege user may GET and not PING; and a mute Redis shows itself here.
                await line.greet(b"GET", self._probe_key)
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

    async def _watch(self, line: Line, place: Place) -> None:
        """Give `line` up once `place` is known not to be the master. Who cannot be asked says nothing about that."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            try:
                async with asyncio.timeout(TIMEOUT):
                    master = await self._find_master()
            except MasterUnknown as error:
                if place in error.replicas:
                    line.give_up(f"{line.place}: {REPLICA}")
                continue
            except Exception:  # noqa: BLE001, S112 - were this task to end, nobody would look again
                continue
            if master != place:
                line.give_up(f"{line.place} is not the master, {written(master)} is")

    async def _find_master(self) -> Place:
        """Raises MasterUnknown, and TimeoutError where the time is over."""
        steps = search(self._url, self._places, self._login, self._sentinel, (b"GET", self._probe_key))
        try:
            step = next(steps)
            while True:
                step = steps.send(await self._carry_out(step))
        except StopIteration as found:
            if self._url.master or self._url.cluster:  # several servers are in an order that is meant
                self._places.remove(step.place)
                self._places.insert(0, step.place)
            place: Place = found.value
            return place

    async def _carry_out(self, step: Step) -> Any:
        """What came of a step. Its connection is kept for the next one, which mostly asks the same place again."""
        line: Line | None = None
        try:
            async with asyncio.timeout(TIMEOUT * step.share):
                line = self._take_asked(step.place)
                if line is None:
                    line = await self._open_line(step.place)
                    for command in step.login:
                        await line.greet(*command)
                outcome = await line.greet(*step.question)
                self.close()
                self._asked, line = (step.place, line), None
                return outcome
        except (OSError, RedisRefused, TimeoutError) as error:
            return error
        finally:
            if line is not None:
                line.close()

    def _take_asked(self, place: Place) -> Line | None:
        """The connection of the last step, where that was to this place. Nobody else has it meanwhile."""
        asked, self._asked = self._asked, None
        if asked is None:
            return None
        if asked[0] == place and not asked[1].lost.done():
            return asked[1]
        asked[1].close()
        return None

    def close(self) -> None:
        """End the connection by which it was asked who the master is."""
        if self._asked is not None:
            self._asked[1].close()
            self._asked = None

    async def _open_line(self, place: Place) -> Line:
        line = Line(asyncio.get_running_loop())
        if self._url.path:
            await asyncio.get_running_loop().create_unix_connection(lambda: line, self._url.path)
        else:
            await asyncio.get_running_loop().create_connection(lambda: line, *place, ssl=self._tls)
        return line


async def _belongs_to_a_replica(line: Line) -> bool:
    with suppress(RedisRefused):  # what is no Redis and yet speaks its protocol may not know the command
        return is_replica(await line.greet(*ROLE))
    return False


def _tls_context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.ca or None)
    if files.certificate:
        context.load_cert_chain(files.certificate, files.key or None)
    return context
