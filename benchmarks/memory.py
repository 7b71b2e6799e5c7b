"""Resident memory of the service: idle, with a thousand connections, with a million logins in the table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from benchmarks.bench import Bench
from benchmarks.figures import Bar, Section, megabytes, table
from benchmarks.filling import LOGGED_IN, MANY_LOGGED_IN, MANY_NOT_LOGGED_IN, RUN
from benchmarks.load import Load, check_answers
from benchmarks.load import run as run_load
from benchmarks.policy_client import PolicyClient
from benchmarks.processes import rss

CONNECTIONS = 1_000
BAR = 60_000_000

_SETTLED = 0.3  # seconds for the service to accept and to answer what is under way


def run(bench: Bench) -> Section:
    """The cell."""
    few = bench.filled_redis("redis-few", LOGGED_IN, RUN)
    service = bench.service("service-few", few.url)
    steps = [("idle", rss(service.pid))]
    bench.say(f"memory: {CONNECTIONS} connections")
    with _clients(service.target, CONNECTIONS) as clients:
        time.sleep(_SETTLED)
        steps.append((f"{CONNECTIONS:,} connections that have asked nothing", rss(service.pid)))
        for client in clients:
            client.ask(LOGGED_IN)
        steps.append((f"{CONNECTIONS:,} connections that have each asked once", rss(service.pid)))
    seconds = bench.pick(5.0, 1.0)
    load = Load(bench.programs.loadgen, service.target, (f"{LOGGED_IN}/{RUN}",), ("OK",), CONNECTIONS, seconds)
    check_answers(load, run_load(load))
    peak = rss(service.pid, peak=True)
    steps.append((f"the most ever, after {seconds:.0f} s of load on {CONNECTIONS:,} connections", peak))

    count = bench.pick(1_000_000, 20_000)
    bench.say(f"memory: {count:,} logins")
    many = bench.filled_redis("redis-many", MANY_LOGGED_IN, count)
    other = bench.service("service-many", many.url)
    steps.append((f"another, {count:,} logins in the table, idle", rss(other.pid)))
    runs = (f"{MANY_LOGGED_IN}/{count}", f"{MANY_NOT_LOGGED_IN}/{count}")
    load = replace(load, target=other.target, runs=runs, expected=("OK", "DUNNO"))
    check_answers(load, run_load(load))
    peak = rss(other.pid, peak=True)
    steps.append((f"the most ever of that one, after {seconds:.0f} s of load about all of them", peak))
    worst = max(size for _, size in steps)
    return Section(
        "Memory of the service",
        [table(["resident memory", "MB"], [[name, megabytes(size)] for name, size in steps])],
        [Bar(f"RSS with {CONNECTIONS:,} connections, MB, the largest", "under 60", megabytes(worst), worst < BAR)],
    )


@contextmanager
def _clients(target: str, count: int) -> Iterator[list[PolicyClient]]:
    with ExitStack() as stack:
        clients = []
        for _ in range(count):
            clients.append(stack.enter_context(PolicyClient(target)))
        yield clients
