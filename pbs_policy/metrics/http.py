"""As much of HTTP as a scraper needs: GET of a few fixed paths, one request to a connection. No thread.

What a peer can take is bounded, so that the policy service does not notice it: `MOST_OPEN` connections at a time,
each of which keeps its place for `PLACE_KEPT` at least; `PATIENCE` for the whole of one; `LONGEST_HEAD` to keep in
memory. Who comes in between waits in the kernel.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import NamedTuple

MOST_OPEN = 8
"""Two Prometheus, a load balancer, and a person."""

PLACE_KEPT = 0.25
"""Seconds: so that there are 32 answers a second at the most, which cost a few per cent of a core."""

PATIENCE = 5.0
"""Seconds for a request to arrive and its answer to be taken."""

LONGEST_HEAD = 8_192
"""Bytes of a request. Prometheus sends some 300; what others accept as well."""

_PLAIN = "text/plain; charset=utf-8"
_REQUEST = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,1000}) HTTP/1\.[01]\r?\n")
_END = re.compile(rb"\r?\n\r?\n")


class Reply(NamedTuple):
    """What a page says."""

    status: HTTPStatus
    body: bytes
    content_type: str = _PLAIN


Page = Callable[[], Awaitable[Reply]]


class HttpServer:
    """Answers on `sockets` with `pages` by their paths."""

    def __init__(
        self, sockets: Sequence[socket.socket], pages: Mapping[str, Page], report: Callable[[str], None]
    ) -> None:
        """`report` is told of a page that fails."""
        self._sockets = sockets
        self._pages = pages
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = 0
        self._accepting = False
        self._stopped = False

    def start(self) -> None:
        """Begin to accept."""
        if not self._stopped and not self._accepting:
            self._accepting = True
            for each in self._sockets:
                self._loop.add_reader(each.fileno(), self._accept, each)

    async def stop(self) -> None:
        """Accept no more, and end what is open."""
        self._stopped = True
        self._pause()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            for each in self._sockets:
                self._loop.remove_reader(each.fileno())

    def _accept(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # the peer has gone
        except OSError:  # no descriptors: Postfix' connections come first
            self._take_place()
            return
        connection.setblocking(False)
        self._take_place()
        task = self._loop.create_task(self._converse(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _take_place(self) -> None:
        self._open += 1
        if self._open >= MOST_OPEN:
            self._pause()
        self._loop.call_later(PLACE_KEPT, self._give_place_back)

    def _give_place_back(self) -> None:
        # Not before the connections end, either: those that are still open count on.
        if len(self._tasks) < self._open:
            self._open -= 1
            self.start()
        else:
            self._loop.call_later(PLACE_KEPT, self._give_place_back)

    async def _converse(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                method, reply = await self._reply(await self._read_head(connection))
                head = (
                    f"HTTP/1.1 {reply.status.value} {reply.status.phrase}\r\n"
                    f"Content-Type: {reply.content_type}\r\nContent-Length: {len(reply.body)}\r\n"
                    "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
                )
                body = b"" if method == b"HEAD" else reply.body
                await self._loop.sock_sendall(connection, head.encode("ascii") + body)

    async def _read_head(self, connection: socket.socket) -> bytes:
        """The request with all its lines, or what came of it before its end or `LONGEST_HEAD`."""
        head = b""
        while len(head) <= LONGEST_HEAD and not _END.search(head):
            data = await self._loop.sock_recv(connection, LONGEST_HEAD)
            if not data:
                break
            head += data
        return head

    async def _reply(self, head: bytes) -> tuple[bytes, Reply]:
        """The method, and the reply."""
        request = _REQUEST.match(head)
        if len(head) > LONGEST_HEAD:
            return b"", _says(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if request is None or not _END.search(head):
            return b"", _says(HTTPStatus.BAD_REQUEST)
        method, target = request.groups()
        page = self._pages.get(target.partition(b"?")[0].decode("ascii"))
        if page is None:
            return method, _says(HTTPStatus.NOT_FOUND, "there are " + " ".join(self._pages))
        if method not in (b"GET", b"HEAD"):
            return method, _says(HTTPStatus.METHOD_NOT_ALLOWED)
        try:
            return method, await page()
        except Exception as error:  # noqa: BLE001 - the next scrape has to find an answer
            self._report(f"metrics: {target.decode('ascii')}: {error!r}")
            return method, _says(HTTPStatus.INTERNAL_SERVER_ERROR)


def _says(status: HTTPStatus, more: str = "") -> Reply:
    return Reply(status, f"{status.phrase}{': ' * bool(more)}{more}\n".encode("ascii"))
