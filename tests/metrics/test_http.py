"""The pages over HTTP, and peers that want to harm: bounded in number, time and size."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from typing import Any

import pytest
import uvloop
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from pbs_policy import pages
from pbs_policy.log import Log
from pbs_policy.pages import LONGEST_REQUEST, MOST, Pages
from pbs_policy.postfix.listener import Listener
from pbs_policy.settings import load

pytestmark = pytest.mark.usefixtures("run")

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine on both loops; what it left behind on the loop fails the test."""

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        faults: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.get_loop().set_exception_handler(lambda _, fault: faults.append(fault))
            runner.run(asyncio.wait_for(coroutine, 30))
        assert faults == []

    return run


class Site:
    """The pages of some daemon, and what it logged."""

    def __init__(self) -> None:
        self._output = BytesIO()
        settings, _ = load(None, {}, [])
        self.pages = Pages([Listener(host="127.0.0.1", port=0)], settings, Log(self._output))
        self.pages.pages = {"/metrics": self._numbers, "/broken": self._broken}
        self.port = int(self.log().rpartition(":")[2])

    def log(self) -> str:
        return self._output.getvalue().decode()

    async def _numbers(self) -> web.Response:
        return web.Response(text="some numbers\n")

    async def _broken(self) -> web.Response:
        raise RuntimeError("it broke")

    async def send(self, data: bytes, *, ends: bool = False) -> bytes:
        """What is answered to these bytes, up to the end of the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            await writer.drain()
            if ends:
                writer.write_eof()
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    async def get(self, path: str = "/metrics") -> bytes:
        """What is answered to a GET."""
        return await self.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    opened = Site()
    opened.pages.start_pages(CollectorRegistry(), lambda: asyncio.sleep(0, True))
    try:
        yield opened
    finally:
        await opened.pages.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until this holds; whoever runs the test ends it in time."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.001)


def status_of(answer: bytes) -> int:
    """The status of the one answer that this must be."""
    head, _, body = answer.partition(b"\r\n\r\n")
    found = re.fullmatch(rb"HTTP/1\.[01] (\d{3}) [^\r\n]+(?:\r\n[A-Za-z-]+: [^\r\n]*)+", head)
    assert found, answer
    assert b"HTTP/1" not in body
    return int(found[1])


async def test_a_page_is_answered_whole_and_the_connection_ends() -> None:
    async with site() as opened:
        head, _, body = (await opened.get("/metrics?x=1")).partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ") for line in lines)
        del headers["Date"]
        assert (status, body) == ("HTTP/1.1 200 OK", b"some numbers\n")
        assert headers == {
            "Content-Type": "text/plain; charset=utf-8", "Content-Length": "13", "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff", "Connection": "close", "Server": "pbs-policy",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.0\r\n\r\n", 200),
        (b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nx=1", 405),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nx", 405),
        (b"request=smtpd_access_policy\n\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * LONGEST_REQUEST, 431),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * LONGEST_REQUEST, 431),
        (b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n", 500),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 3, 200),
    ],
)
async def test_each_request_has_its_status(request_: bytes, status: int) -> None:
    async with site() as opened:
        assert status_of(await opened.send(request_)) == status
        assert ("error: metrics: /broken: RuntimeError('it broke')\n" in opened.log()) is (b"broken" in request_)


async def test_to_head_there_is_no_body() -> None:
    async with site() as opened:
        answer = await opened.send(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"Content-Length: 13\r\n" in answer
        assert answer.endswith(b"\r\n\r\n")


async def test_a_request_may_come_in_pieces_and_its_sender_may_send_no_more() -> None:
    async with site() as opened:
        reader, writer = await asyncio.open_connection("127.0.0.1", opened.port)
        for each in b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n":
            writer.write(bytes([each]))
            await asyncio.sleep(0)
        writer.write_eof()
        assert status_of(await reader.read()) == 200
        writer.close()


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n"])
async def test_who_does_not_finish_is_left_in_time(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(pages, "PATIENCE", 0.05)
    async with site() as opened:
        assert await opened.send(said) == b""
        monkeypatch.setattr(pages, "PATIENCE", 60)
        assert status_of(await opened.get()) == 200


async def test_the_oldest_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PLACE_KEPT", 0.01)
    monkeypatch.setattr(pages, "PATIENCE", 3600.0)
    async with site() as opened:
        idle = []
        for _ in range(MOST + 1):
            idle.append(await asyncio.open_connection("127.0.0.1", opened.port))
            await until(lambda: len(opened.pages.visits) >= min(len(idle), MOST))
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(idle[0][0].read(), 5) == b""
        assert len(opened.pages.visits) <= MOST
        assert status_of(await opened.get()) == 200
        for _, writer in idle:
            writer.close()


async def test_a_place_is_kept_for_a_while_however_short_the_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PLACE_KEPT", 3600.0)
    async with site() as opened:
        for _ in range(MOST):
            assert status_of(await opened.get()) == 200
        one_more = asyncio.create_task(opened.get())
        done, _ = await asyncio.wait([one_more], timeout=0.1)
        assert not done
        one_more.cancel()


async def test_its_end_ends_what_is_open() -> None:
    async with site() as opened:
        reader, writer = await asyncio.open_connection("127.0.0.1", opened.port)
        writer.write(b"GET /metrics HTTP/1.1\r\n")
        await until(lambda: bool(opened.pages.visits))
        await opened.pages.stop()
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert not opened.pages.visits
        writer.close()


@settings(deadline=None, max_examples=60)
@given(data=st.one_of(st.binary(max_size=200), st.text("GET /\r\n HTP1.", max_size=60).map(str.encode)))
def test_whatever_is_sent_is_answered_with_one_reply_or_none(data: bytes) -> None:
    async def scenario() -> None:
        async with site() as opened:
            answer = await opened.send(data, ends=True)
            assert answer == b"" or status_of(answer) in range(200, 500)
            assert "error" not in opened.log()

    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        patch.setattr(pages, "PATIENCE", 0.05)
        runner.run(asyncio.wait_for(scenario(), 30))
