"""Metrics and health over HTTP, for whichever of our daemons: pages, and what a peer can take.

    /metrics    what the daemon counts anyway, for Prometheus; no label holds an address or a user
    /healthz    200: the event loop turns, or nobody would answer
    /readyz     200 while Redis answers, else 503

aiohttp speaks HTTP, and prometheus_client writes its text. What peers can take is bounded here, so that the daemon's
work does not notice them: so many connections are accepted in a while and open at a time (`MOST`, `PLACE_KEPT`),
each has `PATIENCE` for the whole of its visit and `LONGEST_REQUEST` to send, and the oldest makes room for the next.
So peers that send slowly, or nothing, keep nobody out; who comes too often waits in the kernel.
"""

from __future__ import annotations

import asyncio
import platform
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from pbs_policy import __version__
from pbs_policy.event_loop import loop_name
from pbs_policy.log import Log
from pbs_policy.postfix.listener import Listener, listener_of
from pbs_policy.service.sockets import open_listeners
from pbs_policy.settings import Settings
from pbs_policy.store.lookups import Lookups
from pbs_policy.visit import Visit

MOST = 64
"""Connections: two Prometheus, a load balancer, a person, and forty who never finish."""

PLACE_KEPT = 0.5
"""Seconds for which each counts, however short its visit: at most 128 in a second, a few per cent of a core."""

PATIENCE = 5.0
"""Seconds for a request to arrive and its answer to be taken."""

LONGEST_REQUEST = 8_192
"""Bytes. Prometheus sends some 300; what others accept as well."""

_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Server": "pbs-policy"}

Page = Callable[[], Awaitable[web.Response]]


class Pages:
    """Made before the event loop runs. Then `start_pages`, and `await stop()`. One request to a connection."""

    most_open = MOST
    """Connections to keep descriptors for."""

    def __init__(self, listeners: Iterable[Listener], settings: Settings, log: Log) -> None:
        """Opens the sockets, and says where they are. Raises ListenError."""
        self._log = log
        self._sockets = open_listeners(listeners, settings)
        for each in self._sockets:
            each.listen(MOST)  # who floods the place keeps others out for as long as these take
            if not listener_of(each).is_local:
                log.warning(
                    f"metrics are told at {listener_of(each)} to whoever can reach it; "
                    "127.0.0.1, [::1] or a unix socket keep them to this machine"
                )
        log.info(f"metrics and health at {' '.join(str(listener_of(each)) for each in self._sockets)}")
        self.pages: dict[str, Page] = {
            "/metrics": self._metrics, "/healthz": self._health, "/readyz": self._readiness,
        }  # fmt: skip
        self.visits: dict[PageVisit, None] = {}  # those that are open, oldest first
        self._arriving: set[asyncio.Task[Any]] = set()
        self._recent = 0  # accepted within PLACE_KEPT
        self._accepting = False

    def start_pages(self, numbers: Collector, is_ready: Callable[[], Awaitable[bool]]) -> None:
        """Answer with `numbers`, and whether Redis answers."""
        self._is_ready = is_ready
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(numbers)
        self._loop = asyncio.get_running_loop()
        self._server = web.Server(self._answer)
        self._go_on()

    async def stop(self) -> None:
        """Accept no more, and end what is open."""
        self._pause()
        for listening in self._sockets:
            listening.close()
        self._sockets = []
        for visit in list(self.visits):
            visit.abort()
        await asyncio.gather(*self._arriving, return_exceptions=True)
        await self._server.shutdown(0.1)  # of 0 aiohttp makes forever

    async def _metrics(self) -> web.Response:
        # Of generate_latest's text any Prometheus reads version 0.0.4.
        content_type = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=generate_latest(self._registry), headers=content_type)

    async def _health(self) -> web.Response:
        return web.Response(text="turns\n")

    async def _readiness(self) -> web.Response:
        if await self._is_ready():
            return web.Response(text="ready\n")
        return web.Response(text="Redis is unavailable\n", status=HTTPStatus.SERVICE_UNAVAILABLE)

    def _go_on(self) -> None:
        self._accepting = True
        for each in self._sockets:
            self._loop.add_reader(each.fileno(), self._accept, each)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            for each in self._sockets:
                self._loop.remove_reader(each.fileno())

    def _accept(self, listening: socket.socket) -> None:
        self._recent += 1
        self._loop.call_later(PLACE_KEPT, self._give_place_back)
        if self._recent >= MOST:
            self._pause()
        try:
            connection, _ = listening.accept()
        except OSError:
            return  # the peer has gone; or no descriptor is left, and Postfix's connections come first
        connection.setblocking(False)
        if len(self.visits) >= MOST:
            next(iter(self.visits)).abort()
        visit = self._loop.connect_accepted_socket(lambda: PageVisit(self._server, self.visits), connection)
        task = self._loop.create_task(visit)
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    def _give_place_back(self) -> None:
        self._recent -= 1
        if self._recent == MOST - 1:
            self._go_on()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        page = self.pages.get(request.path)
        if page is None:
            response = _says(HTTPStatus.NOT_FOUND, "there are " + " ".join(self.pages))
        elif request.method not in ("GET", "HEAD"):
            response = _says(HTTPStatus.METHOD_NOT_ALLOWED)
        else:
            try:
                response = await page()
            except Exception as error:  # noqa: BLE001 - the next scrape has to find an answer
                self._log.error(f"metrics: {request.path}: {error!r}")
                response = _says(HTTPStatus.INTERNAL_SERVER_ERROR)
        response.headers.update(_HEADERS)
        response.force_close()
        return response


class PageVisit(Visit):
    """One connection, with a bound on how long it may last."""

    __slots__ = ("_end",)

    def __init__(self, server: web.Server, visits: dict[PageVisit, None]) -> None:
        super().__init__(server, visits, LONGEST_REQUEST, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        self._end = asyncio.get_running_loop().call_later(PATIENCE, self.abort)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._end.cancel()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # the loop looks at what comes back
        """The peer sends no more. What it has asked is still answered: True keeps our half open until then."""
        super().eof_received()
        return True


class DaemonNumbers(Collector):
    """What every daemon tells of itself."""

    def __init__(self, lookups: Lookups, log: Log) -> None:
        self._lookups = lookups
        self._log = log
        self._started = time.time()
        self._build = {"version": __version__, "python": platform.python_version(), "event_loop": loop_name()}

    def collect(self) -> Iterator[Metric]:
        """Every metric."""
        for name, meaning, number in (
            ("redis_reconnects", "Connections to Redis that took the place of a lost one.",
             self._lookups.connections - 1),
            ("log_lines_lost", "Lines that journal, syslog or standard error did not take.", self._log.lost),
            ("cpu_seconds", "Processor time of the service, in seconds.", time.process_time()),
        ):  # fmt: skip
            yield CounterMetricFamily(f"pbs_policy_{name}", meaning, max(0, number))
        meaning = "When the service started, in Unix seconds."
        yield GaugeMetricFamily("pbs_policy_start_time_seconds", meaning, self._started)
        yield InfoMetricFamily("pbs_policy_build", "What runs here.", self._build)


def _says(status: HTTPStatus, more: str = "") -> web.Response:
    return web.Response(status=status, text=f"{status.phrase}{': ' * bool(more)}{more}\n")
