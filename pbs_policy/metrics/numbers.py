"""The numbers of the service at one moment: counted elsewhere, taken here."""

from __future__ import annotations

import time
from typing import NamedTuple

from pbs_policy.service.server import PolicyServer
from pbs_policy.service.stats import flatten

DECISIONS = "decisions "
"""A counter for each `<action> <reason>` begins with it."""

LATENCY = "latency "
"""A counter for each bucket of `latency.BOUNDS` begins with it, and its number follows."""


class Numbers(NamedTuple):
    """By name: `counters` only grow."""

    counters: dict[str, float]
    gauges: dict[str, float]


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
        "connections": len(server.connections),
        "lookups_in_flight": lookups.in_flight,
        "circuits_open": int(lookups.circuit_is_open),
        "watchers": watchers,
    }
    if redis_sets is not None:
        gauges["redis_sets"] = redis_sets
    return Numbers(counters, {name: float(number) for name, number in gauges.items()})
