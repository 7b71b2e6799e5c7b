"""A server of the tests' own in place of Redis, which counts what it is asked and misbehaves on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any, cast

import hiredis
import pytest

from pbs_policy.log import Log
from pbs_policy.store import lookups, redis_connector, redis_line
from pbs_policy.store.lookups import Lookups
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import GONE

DEADLINE = 1.0
"""Seconds for Redis, where that is what a test is about: they pass once in each."""

PROBE = b"pbs:probe"

Values = list[bytes | None] | None
Found = tuple[Values, list[int]]
Run = Callable[[Coroutine[Any, Any, None]], None]

UNAVAILABLE: Found = (None, [])


class Session:
    """Lookups at one server, and the count of the answers to each question."""

    def __init__(self, url: str, *, user: str = "", password: str = "") -> None:
        self._output = BytesIO()
        self.lookups = Lookups(RedisUrl.parse(url), user, password, PROBE, Log(self._output))
        self._answers: list[list[Found]] = []

    def ask(self, keys: Sequence[bytes], ends: Sequence[bytes] = ()) -> asyncio.Future[Found]:
        """Ask, and have the answer as a future."""
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        answers: list[Found] = []
        self._answers.append(answers)

        def answer(values: Sequence[bytes | None] | None, left: Sequence[int]) -> None:
            found = (None if values is None else list(values), list(left))
            answers.append(found)
            if not future.done():
                future.set_result(found)

        if ends:
            self.lookups.ask_further(keys, [(b"PTTL", key) for key in ends], answer)
        else:
            self.lookups.ask(keys, answer)
        assert not answers, "answered from within ask"
        return future

    async def value(self, key: bytes) -> bytes | None:
        """The value of one key; a lookup that is unavailable fails the test."""
        values, _ = await self.ask([key])
        assert values is not None
        return values[0]

    async def is_available(self) -> bool:
        values, _ = await self.ask([b"any"])
        return values is not None

    def log(self) -> str:
        return self._output.getvalue().decode()

    def errors(self) -> int:
        return self.log().count("error: ")

    def check(self) -> None:
        assert {len(answers) for answers in self._answers} <= {1}, "a question had no answer, or more than one"


@asynccontextmanager
async def session(url: str, **login: str) -> AsyncIterator[Session]:
    opened = Session(url, **login)
    await opened.lookups.open()
    try:
        yield opened
    finally:
        await opened.lookups.close()
    opened.check()


async def eventually(condition: Callable[[], Awaitable[bool] | bool], seconds: float = 20) -> bool:
    """Ask on the loop until the condition holds, at most for so many seconds; whether it held."""
    deadline = time.monotonic() + seconds
    while not (found if isinstance(found := condition(), bool) else await found):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.005)
    return True


class Peer(asyncio.Protocol):
    """One connection to `Server`, the `number`th."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.reader = hiredis.Reader()
        self.segments = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.number = len(self.server.peers)
        self.server.peers.append(self)
        self.transport.write(self.server.banner)
        self.server.welcome(self)

    def data_received(self, data: bytes) -> None:
        self.segments += 1
        self.reader.feed(data)
        while (command := self.reader.gets()) is not False:
            if command == [b"GET", PROBE] and not self.server.script_for_probe:
                self.transport.write(b"$-1\r\n")
                continue
            if command[0] == b"HELLO":
                self.transport.write(b"*2\r\n$4\r\nrole\r\n$%d\r\n%s\r\n" % (len(self.server.role), self.server.role))
                continue
            self.server.commands.append((self.number, command))
            self.server.script(self, command)


class Server:
    """Speaks as much of Redis' protocol as lookups need. `script` is called for each command, and may write anything
    to the peer's transport; the default answers from `data`."""

    def __init__(self, data: Mapping[bytes, bytes] | None = None) -> None:
        self.data = dict(data or {})
        self.banner = b""
        self.role = b"master"
        self.script: Callable[[Peer, list[bytes]], None] = self.answer
        self.script_for_probe = False
        self.welcome: Callable[[Peer], None] = lambda _: None
        self.peers: list[Peer] = []
        self.commands: list[tuple[int, list[bytes]]] = []

    def reply(self, command: list[bytes]) -> bytes:
        if command[0] == b"MGET":
            return b"*%d\r\n" % (len(command) - 1) + b"".join(map(self._bulk, command[1:]))
        if command[0] == b"GET":
            return self._bulk(command[1])
        if command[0] in (b"AUTH", b"SELECT"):
            return b"+OK\r\n"
        if command[0] == b"PTTL":
            return b":%d\r\n" % (60_000 if command[1] in self.data else GONE)
        return b"-ERR unknown command\r\n"

    def _bulk(self, key: bytes) -> bytes:
        value = self.data.get(key)
        return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)

    def answer(self, peer: Peer, command: list[bytes]) -> None:
        peer.transport.write(self.reply(command))

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[str]:
        """Listen, and give the URL."""
        listening = await asyncio.get_running_loop().create_server(lambda: Peer(self), "127.0.0.1", port)
        try:
            yield f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0"
        finally:
            listening.close()
            for peer in self.peers:
                peer.transport.abort()
            await asyncio.sleep(0)


def mute(_: Peer, __: list[bytes]) -> None:
    """A script that never answers."""


def wait_for_redis(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (redis_line, lookups, redis_connector):
        monkeypatch.setattr(module, "TIMEOUT", seconds)


