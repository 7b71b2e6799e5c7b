"""The numbers as Prometheus reads them: the only module that knows the names of the metrics, and imports
prometheus_client, which it uses for nothing but the format."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pbs_policy import __version__
from pbs_policy.metrics.numbers import DECISIONS, LATENCY, Numbers
from pbs_policy.store.latency import BOUNDS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `render` makes: any Prometheus reads it."""

_FROM_THE_START = ("OK login", "OK permit", "DUNNO no_login", "DEFER_IF_REJECT unavailable")
"""Decisions that are there as 0 before the first: the increase from nothing to one is then seen as one."""

_COUNTERS = {
    "redis_reconnects": (
        "pbs_policy_redis_reconnects",
        "Connections to Redis that took the place of a lost one.",
    ),
    "log_lines_lost": (
        "pbs_policy_log_lines_lost",
        "Lines of the log that journal, syslog or standard error did not take.",
    ),
    "cpu_seconds": (
        "pbs_policy_cpu_seconds",
        "Processor time of the service, in seconds.",
    ),
}
_GAUGES = {
    "connections": ("pbs_policy_connections", "Open connections from Postfix."),
    "lookups_in_flight": ("pbs_policy_lookups_in_flight", "Questions that wait for Redis at this moment."),
    "circuits_open": (
        "pbs_policy_circuits_open",
        "1 where Redis is unavailable: relay attempts are deferred at once (on_unavailable).",
    ),
    "watchers": ("pbs_policy_watchers", "How many `pbs-policy watch` hear the decisions."),
}


@dataclass(frozen=True, slots=True)
class About:
    """What does not change while the service runs."""

    started: float
    """Unix seconds."""
    event_loop: str


def render(numbers: Numbers, about: About) -> bytes:
    """The page for Prometheus, in its text format."""
    return generate_latest(_Collector(numbers, about))


class _Collector(Collector):
    def __init__(self, numbers: Numbers, about: About) -> None:
        self._numbers = numbers
        self._about = about

    def collect(self) -> Iterator[Metric]:
        """Every metric."""
        counters, states = self._numbers
        yield self._decisions()
        yield self._latency()
        for name, (metric, meaning) in _COUNTERS.items():
            yield CounterMetricFamily(metric, meaning, value=counters.get(name, 0))
        for name, (metric, meaning) in _GAUGES.items():
            yield GaugeMetricFamily(metric, meaning, value=states.get(name, 0))
        if "redis_sets" in states:
            yield CounterMetricFamily(
                "pbs_policy_redis_set_commands",
                "SET commands that Redis has carried out since it started, for whomever: the post-login script sends "
                "two for each login (three with sender_match = domain), Dovecot's last_login plugin one.",
                value=states["redis_sets"],
            )
        yield from self._about_the_service()

    def _decisions(self) -> Metric:
        family = CounterMetricFamily(
            "pbs_policy_decisions", "Requests of Postfix that were answered.", labels=["action", "reason"]
        )
        counted = {
            name.removeprefix(DECISIONS): number
            for name, number in self._numbers.counters.items()
            if name.startswith(DECISIONS)
        }
        for name, number in sorted((dict.fromkeys(_FROM_THE_START, 0.0) | counted).items()):
            family.add_metric(name.split(" ", 1), number)
        return family

    def _latency(self) -> Metric:
        counters = self._numbers.counters
        counts = accumulate(counters.get(f"{LATENCY}{index}", 0) for index in range(len(BOUNDS) + 1))
        names = [*map(str, BOUNDS), "+Inf"]
        return HistogramMetricFamily(
            "pbs_policy_request_seconds",
            "How long requests that needed Redis waited for their answer; at most a turn of the loop too long.",
            buckets=list(zip(names, counts, strict=True)),
            sum_value=counters.get("latency_seconds", 0),
        )

    def _about_the_service(self) -> Iterator[Metric]:
        about = self._about
        yield GaugeMetricFamily(
            "pbs_policy_start_time_seconds", "When the service started, in Unix seconds.", value=about.started
        )
        build = {"version": __version__, "python": platform.python_version(), "event_loop": about.event_loop}
        yield InfoMetricFamily("pbs_policy_build", "What runs here.", value=build)
