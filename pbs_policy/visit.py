"""One HTTP connection of a peer who may mean harm: aiohttp's, with a bound on what it sends. How long it may last and
how many there may be is decided where pages and reports are served."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any

from aiohttp import web

_SILENT = logging.Logger("aiohttp")  # a peer's faults are no lines of ours, and our own are told by who answers
_SILENT.disabled = True
_KEPT = 120  # seconds: longer than any of ours may be silent


class Visit(web.RequestHandler):
    """It stands in `visits` while it is open. More than `longest` bytes are answered with `too_long`."""

    __slots__ = ("_longest", "_too_long", "received", "visits")

    def __init__(self, server: web.Server, visits: dict[Any, None], longest: int, too_long: HTTPStatus) -> None:
        super().__init__(
            server, loop=asyncio.get_running_loop(), logger=_SILENT, access_log=_SILENT, lingering_time=0,
            auto_decompress=False, keepalive_timeout=_KEPT,
        )  # fmt: skip
        self.visits = visits
        self.received = 0
        self._longest = longest
        self._too_long = too_long

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.visits[self] = None
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.visits.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.received > self._longest:
            self.refuse(self._too_long)
            return
        try:
            super().data_received(data)
        except Exception:  # noqa: BLE001 - aiohttp 3.8 raises ValueError at what is no URL
            self.refuse(HTTPStatus.BAD_REQUEST)

    def refuse(self, status: HTTPStatus) -> None:
        """End it with this answer."""
        if self.transport is not None:
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            self.transport.write(head.encode())
            self.transport.close()

    def abort(self) -> None:
        """End it now."""
        if self.transport is not None:
            self.transport.abort()
