"""The policy service's metrics, where `metrics_listen` is set; without it this module is not loaded. Only `Numbers`
here, `pages` and the recorder know the metrics' names.
"""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from pbs_policy.log import Log, printable
from pbs_policy.pages import DaemonNumbers, Pages
from pbs_policy.service.server import PolicyServer
from pbs_policy.service.stats import flatten
from pbs_policy.settings import Settings
from pbs_policy.store.connect import TIMEOUT
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.store.question import Question
from pbs_policy.store.redis_connector import Connector
from pbs_policy.store.redis_line import RedisRefused

SETS_INTERVAL = 15.0
"""Seconds between two questions for the SET commands: as often as Prometheus usually comes."""

class Metrics(Pages):
    """The policy service's; its `waits` are told of by the server."""

    def __init__(self, settings: Settings, log: Log) -> None:
        """Opens the sockets, and says where they are. Raises ListenError."""
        super().__init__(settings.metrics_listen, settings, log)
        self.waits = Waits()

    def start(self, server: PolicyServer, watchers: Callable[[], int]) -> None:
        """Answer with the numbers of `server`, of which `watchers` hear the decisions."""
        self._lookups = server.lookups
        self._probe = Question([server.keys.probe])
        self._numbers = Numbers(server, watchers, self.waits)
        self.start_pages(self._numbers, self._has_redis)
        self._counting = asyncio.create_task(self._count_sets())

    async def stop(self) -> None:
        """End it."""
        self._counting.cancel()
        await asyncio.gather(self._counting, super().stop(), return_exceptions=True)

    async def _has_redis(self) -> bool:
        return await self._lookups.put(self._probe) is not None

    async def _count_sets(self) -> None:
        """Ask Redis again and again how many SET commands it has had: each login that is recorded is one to three of
        them, and the service does not see logins."""
        log, is_told = self._log, False
        while True:
            self._numbers.redis_sets = None
            try:
                self._numbers.redis_sets = await count_sets(self._lookups.connector)
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


class Numbers(DaemonNumbers):
    """What `server` has counted and does now, read when somebody asks."""

    def __init__(self, server: PolicyServer, watchers: Callable[[], int], waits: Waits) -> None:
        super().__init__(server.lookups, server.log)
        self._server = server
        self._waits = waits
        self._watchers = watchers
        self.redis_sets: int | None = None

    def collect(self) -> Iterator[Metric]:
        """Every metric."""
        server, lookups = self._server, self._server.lookups
        yield self._decisions()
        yield self._request_seconds()
        yield from super().collect()
        for name, meaning, state in (
            ("connections", "Open connections from Postfix.", len(server.connections)),
            ("lookups_in_flight", "Questions that wait for Redis at this moment.", lookups.in_flight),
            ("circuits_open", "1 where Redis is unavailable: on_unavailable holds.", lookups.circuit_is_open),
            ("watchers", "How many `pbs-policy watch` hear the decisions.", self._watchers()),
        ):
            yield GaugeMetricFamily(f"pbs_policy_{name}", meaning, state)
        if self.redis_sets is not None:
            yield CounterMetricFamily(
                "pbs_policy_redis_set_commands",
                "SET commands that Redis has carried out since it started, for whomever: the post-login script sends "
                "two for each login (three with sender_match = domain), Dovecot's last_login plugin one.",
                self.redis_sets,
            )

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
