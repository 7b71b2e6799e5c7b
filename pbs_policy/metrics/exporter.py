"""The service's part in the metrics: what each page says.

/metrics    the numbers of the service, for Prometheus
/healthz    200: the event loop turns, or nobody would answer
/readyz     200 while Redis answers, else 503
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from pbs_policy.log import printable
from pbs_policy.metrics.exposition import CONTENT_TYPE, About, render
from pbs_policy.metrics.http import HttpServer, Reply
from pbs_policy.metrics.numbers import take
from pbs_policy.metrics.redis_sets import ASK_INTERVAL, count_sets
from pbs_policy.service.server import PolicyServer
from pbs_policy.store.connect import StoreUnavailable
from pbs_policy.store.latency import Latency
from pbs_policy.store.redis_line import RedisRefused


class Exporter:
    """Its `latency` is to be given to the lookups; then `start`, and `await stop()`."""

    def __init__(self, about: About, sockets: Sequence[socket.socket]) -> None:
        self.latency = Latency()
        self._about = about
        self._sockets = sockets
        self._redis_sets: int | None = None

    def start(self, server: PolicyServer, watchers: Callable[[], int]) -> None:
        """Answer with the numbers of `server`, of which `watchers` hear the decisions."""
        self._server = server
        self._watchers = watchers
        pages = {"/metrics": self.metrics, "/healthz": self.health, "/readyz": self.readiness}
        self._http = HttpServer(self._sockets, pages, server.log.error)
        self._http.start()
        self._asking = asyncio.create_task(self._ask_on_and_on())

    async def stop(self) -> None:
        """End it."""
        self._asking.cancel()
        await asyncio.gather(self._asking, self._http.stop(), return_exceptions=True)

    async def metrics(self) -> Reply:
        """The page for Prometheus."""
        numbers = take(self._server, self._watchers(), self._redis_sets)
        return Reply(HTTPStatus.OK, render(numbers, self._about), CONTENT_TYPE)

    async def health(self) -> Reply:
        """That the event loop turns shows in the answer."""
        return Reply(HTTPStatus.OK, b"turns\n")

    async def readiness(self) -> Reply:
        """Whether relay attempts are decided now."""
        if await self._redis_answers():
            return Reply(HTTPStatus.OK, b"ready\n")
        return Reply(HTTPStatus.SERVICE_UNAVAILABLE, b"Redis is unavailable\n")

    async def _redis_answers(self) -> bool:
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def settle(values: Sequence[bytes | None] | None, _: Sequence[Any]) -> None:
            if not answered.done():
                answered.set_result(values is not None)

        self._server.lookups.ask_further([self._server.keys.probe], (), settle)
        return await answered

    async def _ask_on_and_on(self) -> None:
        log = self._server.log
        is_told = False
        while True:
            self._redis_sets = None
            try:
                self._redis_sets = await count_sets(self._server.lookups.connector)
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
            await asyncio.sleep(ASK_INTERVAL)
