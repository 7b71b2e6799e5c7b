"""One worker's part in the metrics: it posts its numbers, and answers whoever asks for those of all workers.

/metrics    the numbers of all workers together, for Prometheus
/healthz    200 while all workers turn, 503 where one has not for `board.STALE`
/readyz     200 while Redis answers this worker, and no worker's circuit is open; else 503
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from pbs_policy.log import printable
from pbs_policy.metrics.board import POST_INTERVAL, Board, Post, total
from pbs_policy.metrics.exposition import CONTENT_TYPE, About, render
from pbs_policy.metrics.http import HttpServer, Reply
from pbs_policy.metrics.numbers import Numbers, take
from pbs_policy.metrics.redis_sets import ASK_INTERVAL, count_sets
from pbs_policy.service.server import PolicyServer
from pbs_policy.store.latency import Latency
from pbs_policy.store.redis_line import RedisRefused
from pbs_policy.store.redis_master import MasterUnknown


class Exporter:
    """Made in its worker, whose `latency` is to be given to the lookups; then `start`, and `await stop()`."""

    def __init__(self, board: Board, index: int, about: About, sockets: Sequence[socket.socket]) -> None:
        self.latency = Latency()
        self._board = board
        self._index = index
        self._about = about
        self._sockets = sockets
        self._redis_sets: int | None = None
        predecessor = board.read(index)
        self._before = [predecessor.numbers] if predecessor else []

    def start(self, server: PolicyServer, watchers: Callable[[], int]) -> None:
        """Post the numbers of `server`, of which `watchers` hear the decisions, and answer."""
        self._server = server
        self._watchers = watchers
        pages = {"/metrics": self.metrics, "/healthz": self.health, "/readyz": self.readiness}
        self._http = HttpServer(self._sockets, pages, server.log.error)
        self._http.start()
        self._post()
        self._posting = asyncio.create_task(self._post_on_and_on())
        # One of the workers asks for all of them.
        self._asking = asyncio.create_task(self._ask_on_and_on()) if self._index == 0 else None

    async def stop(self) -> None:
        """End it, with a last post: a worker that takes this one's place goes on from there."""
        tasks = [task for task in (self._posting, self._asking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self._http.stop(), return_exceptions=True)
        self._post()

    async def metrics(self) -> Reply:
        """The page for Prometheus."""
        self._post()
        return Reply(HTTPStatus.OK, render(total(self._board.read_all()), self._about), CONTENT_TYPE)

    async def health(self) -> Reply:
        """Whether all workers turn; that this one does shows in its answer."""
        stuck = [post for post in self._board.read_all() if not post.is_fresh and post.worker != self._index]
        return _verdict([f"worker {post.worker} has not turned for {post.age:.0f} s" for post in stuck], "turns")

    async def readiness(self) -> Reply:
        """Whether relay attempts are decided now."""
        faults = [] if await self._redis_answers() else ["Redis is unavailable"]
        others = (post for post in self._board.read_all() if post.worker != self._index)
        faults += [f"Redis is unavailable to worker {post.worker}" for post in others if _is_unavailable_to(post)]
        return _verdict(faults, "ready")

    async def _redis_answers(self) -> bool:
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def settle(values: Sequence[bytes | None] | None, _: Sequence[Any]) -> None:
            if not answered.done():
                answered.set_result(values is not None)

        self._server.lookups.ask_further([self._server.keys.probe], (), settle)
        return await answered

    def _post(self) -> None:
        self._board.post(self._index, self._numbers())

    def _numbers(self) -> Numbers:
        return take(self._server, self._watchers(), self._redis_sets).with_counters_of(self._before)

    async def _post_on_and_on(self) -> None:
        while True:
            await asyncio.sleep(POST_INTERVAL)
            try:
                self._post()
            except Exception as error:  # noqa: BLE001 - were this task to end, the worker would seem not to turn
                self._server.log.error(f"metrics: {error!r}")

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
            except (OSError, TimeoutError, MasterUnknown):
                pass  # what that means is said by the lookups
            except Exception as error:  # noqa: BLE001 - as above
                log.error(f"metrics: {error!r}")
            await asyncio.sleep(ASK_INTERVAL)


def _is_unavailable_to(post: Post) -> bool:
    return post.is_fresh and bool(post.numbers.gauges.get("circuits_open"))


def _verdict(faults: Sequence[str], well: str) -> Reply:
    status = HTTPStatus.SERVICE_UNAVAILABLE if faults else HTTPStatus.OK
    return Reply(status, "".join(f"{line}\n" for line in faults or [well]).encode("ascii"))
