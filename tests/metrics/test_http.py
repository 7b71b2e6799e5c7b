"""As much of HTTP as a scraper needs, and peers that want to harm: bounded in number, time and size."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from pbs_policy.metrics import http
from pbs_policy.metrics.http import LONGEST_HEAD, MOST_OPEN, HttpServer, Page, Reply

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
    """A server with some pages, and what it reported."""

    def __init__(self, listening: socket.socket) -> None:
        self.port: int = listening.getsockname()[1]
        self.reports: list[str] = []
        self.pages: dict[str, Page] = {"/metrics": self._numbers, "/broken": self._broken}
        self.server = HttpServer([listening], self.pages, self.reports.append)

    async def _numbers(self) -> Reply:
        return Reply(HTTPStatus.OK, b"some numbers\n")

    async def _broken(self) -> Reply:
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
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        opened = Site(listening)
        opened.server.start()
        try:
            yield opened
        finally:
            await opened.server.stop()


def test_a_page_is_answered_whole_and_the_connection_ends(run: Run) -> None:
    async def scenario() -> None:
        async with site() as opened:
            assert await opened.get("/metrics?x=1") == (
                b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 13\r\n"
                b"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
                b"some numbers\n"
            )

    run(scenario())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.0\n\n", b"200 OK"),
        (b"GET /other HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET /metrics\r\n\r\n", b"400 Bad Request"),
        (b"\r\n\r\n", b"400 Bad Request"),
        (b"request=smtpd_access_policy\n\n", b"400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * LONGEST_HEAD, b"431 Request Header Fields Too Large"),
        (b"GET /broken HTTP/1.1\r\n\r\n", b"500 Internal Server Error"),
    ],
)
def test_each_request_has_its_status(run: Run, request_: bytes, status: bytes) -> None:
    async def scenario() -> None:
        async with site() as opened:
            assert (await opened.send(request_)).startswith(b"HTTP/1.1 " + status + b"\r\n")
            assert opened.reports == (["metrics: /broken: RuntimeError('it broke')"] if b"broken" in request_ else [])

    run(scenario())


def test_to_head_there_is_no_body(run: Run) -> None:
    async def scenario() -> None:
        async with site() as opened:
            answer = await opened.send(b"HEAD /metrics HTTP/1.1\r\n\r\n")
            assert b"Content-Length: 13\r\n" in answer
            assert answer.endswith(b"\r\n\r\n")

    run(scenario())


def test_a_request_may_come_in_pieces_and_one_that_ends_early_is_a_bad_one(run: Run) -> None:
    async def scenario() -> None:
        async with site() as opened:
            reader, writer = await asyncio.open_connection("127.0.0.1", opened.port)
            for each in b"GET /metrics HTTP/1.1\r\n\r\n":
                writer.write(bytes([each]))
                await asyncio.sleep(0)
            assert b"200 OK" in await reader.read()
            writer.close()
            assert b"400 Bad" in await opened.send(b"GET /metrics HTTP/1.1\r\n", ends=True)

    run(scenario())


def test_who_says_nothing_is_left_in_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PATIENCE", 0.05)

    async def scenario() -> None:
        async with site() as opened:
            assert await opened.send(b"GET /metrics HTTP/1.1\r\n") == b""
            monkeypatch.setattr(http, "PATIENCE", 60)
            assert b"200 OK" in await opened.get()

    run(scenario())


def test_more_than_a_few_wait_in_the_kernel_until_a_place_is_free(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PLACE_KEPT", 0.01)

    async def scenario() -> None:
        async with site() as opened:
            idle = [await asyncio.open_connection("127.0.0.1", opened.port) for _ in range(MOST_OPEN)]
            waiting = asyncio.create_task(opened.get())
            for _ in range(50):
                await asyncio.sleep(0.002)
                assert len(opened.server._tasks) <= MOST_OPEN
            assert not waiting.done()
            idle[0][1].close()
            assert b"200 OK" in await waiting
            for _, writer in idle:
                writer.close()

    run(scenario())


def test_a_place_is_kept_for_a_while_however_short_the_visit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PLACE_KEPT", 3600.0)

    async def scenario() -> None:
        async with site() as opened:
            for _ in range(MOST_OPEN):
                assert b"200 OK" in await opened.get()
            one_more = asyncio.create_task(opened.get())
            done, _ = await asyncio.wait([one_more], timeout=0.1)
            assert not done
            one_more.cancel()

    run(scenario())


@settings(deadline=None, max_examples=60)
@given(data=st.one_of(st.binary(max_size=200), st.text("GET /\r\n HTP1.", max_size=60).map(str.encode)))
def test_whatever_is_sent_is_answered_with_one_reply_or_none(data: bytes) -> None:
    async def scenario() -> None:
        async with site() as opened:
            answer = await opened.send(data, ends=True)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
            assert answer.count(b"HTTP/1.1 ") <= 1
            assert opened.reports == []

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(scenario(), 30))
