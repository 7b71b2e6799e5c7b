"""The numbers of one process at one moment, and of several together: counted elsewhere, taken and added up here."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import NamedTuple, Self

from pbs_policy.service.server import PolicyServer
from pbs_policy.service.stats import flatten

DECISIONS = "decisions "
"""A counter for each `<action> <reason>` begins with it."""

LATENCY = "latency "
"""A counter for each bucket of `latency.BOUNDS` begins with it, and its number follows."""


class Numbers(NamedTuple):
    """By name: `counters` only grow, of `gauges` several processes have the sum, of `highest` the highest."""

    counters: dict[str, float]
    gauges: dict[str, float]
    highest: dict[str, float]

    @classmethod
    def none(cls) -> Self:
        """Of no process."""
        return cls({}, {}, {})

    def serialise(self) -> bytes:
        """As one line of JSON."""
        return json.dumps(self, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """What `serialise` wrote."""
        return cls(*json.loads(data))

    def with_counters_of(self, others: Iterable[Numbers]) -> Numbers:
        """The same, the counters of others added."""
        counters = dict(self.counters)
        for other in others:
            for name, number in other.counters.items():
                counters[name] = counters.get(name, 0) + number
        return self._replace(counters=counters)

    def with_states_of(self, others: Iterable[Numbers]) -> Numbers:
        """The same with the gauges and the highest numbers of others."""
        gauges, highest = dict(self.gauges), dict(self.highest)
        for other in others:
            for name, number in other.gauges.items():
                gauges[name] = gauges.get(name, 0) + number
            for name, number in other.highest.items():
                highest[name] = max(highest.get(name, number), number)
        return self._replace(gauges=gauges, highest=highest)


def take(server: PolicyServer, watchers: int, redis_sets: int | None) -> Numbers:
    """What `server` has counted and does now; `watchers` hear its decisions, `redis_sets` is of `count_sets`."""
    lookups, latency = server.lookups, server.latency
    counters = {DECISIONS + name: float(number) for name, number in flatten(server.counts).items()}
    if latency is not None:
        counters |= {f"{LATENCY}{index}": float(number) for index, number in enumerate(latency.buckets)}
        counters["latency_seconds"] = latency.total
    counters["redis_reconnects"] = max(0, lookups.connections - 1)
    counters["log_lines_lost"] = server.log.lost
    counters["cpu_seconds"] = time.process_time()
    gauges = {
        "workers": 1,
        "connections": len(server.connections),
        "lookups_in_flight": lookups.in_flight,
        "circuits_open": int(lookups.circuit_is_open),
    }
    highest = {"watchers": float(watchers)}
    if redis_sets is not None:
        highest["redis_sets"] = redis_sets
    return Numbers(counters, {name: float(number) for name, number in gauges.items()}, highest)
