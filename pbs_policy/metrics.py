"""Metrics and health over HTTP, where `metrics_listen` is set; without it this module is not loaded.

    /metrics    what the service counts anyway, for Prometheus; no label holds an address or a user
    /healthz    200: the event loop turns, or nobody would answer
    /readyz     200 while Redis answers, else 503

aiohttp speaks HTTP, and prometheus_client writes its text. What peers can take is bounded here, so that the policy
service does not notice them: so many connections are accepted in a while and open at a time (`MOST`, `PLACE_KEPT`),
each has `PATIENCE` for the whole of its visit and `LONGEST_REQUEST` to send, and the oldest makes room for the next.
So peers that send slowly, or nothing, keep nobody out; who comes too often waits in the kernel.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import re
import socket
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from itertools import accumulate
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pbs_policy import __version__
from pbs_policy.log import Log, printable
from pbs_policy.postfix.listener import listener_of
from pbs_policy.service.server import PolicyServer
from pbs_policy.service.sockets import open_listeners
from pbs_policy.service.stats import flatten
from pbs_policy.settings import Settings
from pbs_policy.store.connect import TIMEOUT
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.store.question import Question
from pbs_policy.store.redis_connector import Connector
from pbs_policy.store.redis_line import RedisRefused

MOST = 64
"""Connections: two Prometheus, a load balancer, a person, and forty who never finish."""

PLACE_KEPT = 0.5
"""Seconds for which each counts, however short its visit: at most 128 in a second, a few per cent of a core."""

PATIENCE = 5.0
"""Seconds for a request to arrive and its answer to be taken."""

LONGEST_REQUEST = 8_192
"""Bytes. Prometheus sends some 300; what others accept as well."""

SETS_INTERVAL = 15.0
"""Seconds between two questions for the SET commands: as often as Prometheus usually comes."""

_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Server": "pbs-policy"}
_SILENT = logging.Logger("aiohttp")  # a peer's faults are no lines of ours, and our own are reported in `_answer`
_SILENT.disabled = True

Page = Callable[[], Awaitable[web.Response]]


class Metrics:
    """Made before the event loop runs; its `waits` are told of by the server. Then `start`, and `await stop()`."""

    most_open = MOST
    """Connections to keep descriptors for."""

    def __init__(self, settings: Settings, event_loop: str, log: Log) -> None:
        """Opens the sockets, and says where they are. Raises ListenError."""
        self.waits = Waits()
        self._event_loop = event_loop
        self._log = log
        self._sockets = open_listeners(settings.metrics_listen, settings)
        for each in self._sockets:
            each.listen(MOST)  # who floods the place keeps others out for as long as these take
            if not listener_of(each).is_local:
                log.warning(
                    f"metrics are told at {listener_of(each)} to whoever can reach it; "
                    "127.0.0.1, [::1] or a unix socket keep them to this machine"
                )
        log.info(f"metrics and health at {' '.join(str(listener_of(each)) for each in self._sockets)}")

    def start(self, server: PolicyServer, watchers: Callable[[], int]) -> None:
        """Answer with the numbers of `server`, of which `watchers` hear the decisions."""
        self._server = server
        self._numbers = Numbers(server, watchers, self._event_loop, self.waits)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._numbers)
        pages = {"/metrics": self._metrics, "/healthz": self._health, "/readyz": self._readiness}
        self._http = HttpServer(self._sockets, pages, self._log.error)
        self._http.start()
        self._counting = asyncio.create_task(self._count_sets())

    async def stop(self) -> None:
        """End it."""
        self._counting.cancel()
        await asyncio.gather(self._counting, self._http.stop(), return_exceptions=True)

    async def _metrics(self) -> web.Response:
        # Of generate_latest's text any Prometheus reads version 0.0.4.
        content_type = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=generate_latest(self._registry), headers=content_type)

    async def _health(self) -> web.Response:
        return web.Response(text="turns\n")

    async def _readiness(self) -> web.Response:
        if await self._server.lookups.put(Question([self._server.keys.probe])) is not None:
            return web.Response(text="ready\n")
        return web.Response(text="Redis is unavailable\n", status=HTTPStatus.SERVICE_UNAVAILABLE)

    async def _count_sets(self) -> None:
        """Ask Redis again and again how many SET commands it has had: each login that is recorded is one to three of
        them, and the service does not see logins."""
        log, is_told = self._log, False
        while True:
            self._numbers.redis_sets = None
            try:
                self._numbers.redis_sets = await count_sets(self._server.lookups.connector)
            except RedisRefused as error:
                if not is_told:
                    trouble = printable(str(error))
                    log.warning(
                        f"Redis does not say how many SET commands it has had, so metrics lack them: {trouble}"
                    )
                    is_told = True
            except (OSError, TimeoutError, StoreUnavailable):
                pass  # what that means is said by the lookups
            except Exception as error:  # noqa: BLE001 - were this task to end, nobody would ask again
                log.error(f"metrics: {error!r}")
            await asyncio.sleep(SETS_INTERVAL)


async def count_sets(connector: Connector) -> int:
    """SET commands since that Redis, the master, started: asked on a connection of its own, so that no relay attempt
    waits behind a long answer. Raises what `connector` does, and RedisRefused where the ACL user may not ask."""
    line = await connector.open()
    try:
        async with asyncio.timeout(TIMEOUT):
            answer = await line.greet(b"INFO", b"commandstats")
    finally:
        line.close()
    calls = re.search(rb"^cmdstat_set:calls=(\d{1,18}),", answer, re.MULTILINE)
    return int(calls[1]) if calls else 0


# --- Prometheus ---------------------------------------------------------------------------------------------------

_FROM_THE_START = ("OK login", "OK permit", "DUNNO no_login", "DEFER_IF_REJECT unavailable")
"""Decisions that are there as 0 before the first: the increase from nothing to one is then seen as one."""


BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper ends of the buckets, in seconds. One more holds what took longer."""


class Waits:
    """How long requests waited for their decision. Those that are answered without Redis are not among them."""

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def note(self, seconds: float) -> None:
        """One request waited for so long."""
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class Numbers(Collector):
    """What `server` has counted and does now, read when somebody asks. Only this class knows the metrics' names."""

    def __init__(
        self, server: PolicyServer, watchers: Callable[[], int], event_loop: str, waits: Waits
    ) -> None:
        self._server = server
        self._waits = waits
        self._watchers = watchers
        self._started = time.time()
        self._build = {"version": __version__, "python": platform.python_version(), "event_loop": event_loop}
        self.redis_sets: int | None = None

    def collect(self) -> Iterator[Metric]:
        """Every metric."""
        server, lookups = self._server, self._server.lookups
        yield self._decisions()
        yield self._request_seconds()
        for name, meaning, number in (
            ("redis_reconnects", "Connections to Redis that took the place of a lost one.", lookups.connections - 1),
            ("log_lines_lost", "Lines that journal, syslog or standard error did not take.", server.log.lost),
            ("cpu_seconds", "Processor time of the service, in seconds.", time.process_time()),
        ):
            yield CounterMetricFamily(f"pbs_policy_{name}", meaning, max(0, number))
        for name, meaning, state in (
            ("connections", "Open connections from Postfix.", len(server.connections)),
            ("lookups_in_flight", "Questions that wait for Redis at this moment.", lookups.in_flight),
            ("circuits_open", "1 where Redis is unavailable: on_unavailable holds.", lookups.circuit_is_open),
            ("watchers", "How many `pbs-policy watch` hear the decisions.", self._watchers()),
            ("start_time_seconds", "When the service started, in Unix seconds.", self._started),
        ):
            yield GaugeMetricFamily(f"pbs_policy_{name}", meaning, state)
        if self.redis_sets is not None:
            yield CounterMetricFamily(
                "pbs_policy_redis_set_commands",
                "SET commands that Redis has carried out since it started, for whomever: the post-login script sends "
                "two for each login (three with sender_match = domain), Dovecot's last_login plugin one.",
                self.redis_sets,
            )
        yield InfoMetricFamily("pbs_policy_build", "What runs here.", self._build)

    def _decisions(self) -> Metric:
        family = CounterMetricFamily(
            "pbs_policy_decisions", "Requests of Postfix that were answered.", labels=["action", "reason"]
        )
        for name, number in sorted((dict.fromkeys(_FROM_THE_START, 0) | flatten(self._server.counts)).items()):
            family.add_metric(name.split(" ", 1), number)
        return family

    def _request_seconds(self) -> Metric:
        names = [*map(str, BOUNDS), "+Inf"]
        return HistogramMetricFamily(
            "pbs_policy_request_seconds",
            "How long requests that needed Redis waited for their answer.",
            buckets=list(zip(names, accumulate(self._waits.buckets), strict=True)),
            sum_value=self._waits.total,
        )


# --- HTTP ---------------------------------------------------------------------------------------------------------


class HttpServer:
    """Answers on `sockets` with `pages` by their paths, one request to a connection."""

    def __init__(
        self, sockets: Sequence[socket.socket], pages: Mapping[str, Page], report: Callable[[str], None]
    ) -> None:
        """`report` is told of a page that fails."""
        self._sockets = sockets
        self._pages = pages
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._server = web.Server(self._answer)
        self._arriving: set[asyncio.Task[Any]] = set()
        self._recent = 0  # accepted within PLACE_KEPT
        self._accepting = False
        self.visits: dict[Visit, None] = {}  # those that are open, oldest first

    def start(self) -> None:
        """Begin to accept."""
        if not self._accepting:
            self._accepting = True
            for each in self._sockets:
                self._loop.add_reader(each.fileno(), self._accept, each)

    async def stop(self) -> None:
        """Accept no more, and end what is open."""
        self._pause()
        self._sockets = ()
        for each in list(self.visits):
            each.abort()
        await asyncio.gather(*self._arriving, return_exceptions=True)
        await self._server.shutdown(0.1)  # of 0 aiohttp makes forever

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
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._visit, connection))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    def _give_place_back(self) -> None:
        self._recent -= 1
        if self._recent == MOST - 1:
            self.start()

    def _visit(self) -> Visit:
        return Visit(self.visits, self._server, self._loop)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        page = self._pages.get(request.path)
        if page is None:
            response = _says(HTTPStatus.NOT_FOUND, "there are " + " ".join(self._pages))
        elif request.method not in ("GET", "HEAD"):
            response = _says(HTTPStatus.METHOD_NOT_ALLOWED)
        else:
            try:
                response = await page()
            except Exception as error:  # noqa: BLE001 - the next scrape has to find an answer
                self._report(f"metrics: {request.path}: {error!r}")
                response = _says(HTTPStatus.INTERNAL_SERVER_ERROR)
        response.headers.update(_HEADERS)
        response.force_close()
        return response


class Visit(web.RequestHandler):
    """One connection: aiohttp's, with a bound on what it may send and how long it may last."""

    __slots__ = ("_end", "_received", "_visits")

    def __init__(self, visits: dict[Visit, None], server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server, loop=loop, logger=_SILENT, access_log=_SILENT, lingering_time=0, auto_decompress=False
        )
        self._visits = visits
        self._received = 0
        self._end = loop.call_later(PATIENCE, self.abort)

    def abort(self) -> None:
        """End it now."""
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._visits[self] = None
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._end.cancel()
        self._visits.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received <= LONGEST_REQUEST:
            super().data_received(data)
        elif self.transport is not None:
            self.transport.write(_TOO_LONG)
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]  # the loop looks at what comes back
        """The peer sends no more. What it has asked is still answered: True keeps our half open until then."""
        super().eof_received()
        return True


def _says(status: HTTPStatus, more: str = "") -> web.Response:
    return web.Response(status=status, text=f"{status.phrase}{': ' * bool(more)}{more}\n")
