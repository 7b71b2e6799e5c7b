"""What metrics cost the service, and what a line of log does: its own processor time for a request, in turn."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.bench import Bench, Service
from benchmarks.figures import Bar, Section, median, milliseconds, percent, ratio, table, thousands
from benchmarks.filling import LOGGED_IN, NOT_LOGGED_IN, RUN
from benchmarks.load import Disturbances, Load, Measured, seeded
from benchmarks.processes import PINNED, cpu_seconds, place
from pbs_policy import pages
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.ports import free_port

NOBODY, HALF = "nobody logged in", "every second logged in"
OFF, ON = "without metrics", "with metrics"
SCRAPES = 60
"""No more than are served at once."""
NO_LOG = "log_decisions = none"
PAIRS = 3
"""Of services, with and without metrics, for each figure: where a process happens to have its data in memory makes it
faster or slower than the next one of the same program, by some per cent and for as long as it runs."""
MOST_A_SECOND = int(pages.MOST / pages.PLACE_KEPT)
MOST = 1.03
"""Times the processor time for a request that it may be with metrics."""


class Candidate(NamedTuple):
    """A service, what it is asked, and where its metrics are (0: nowhere)."""

    name: str
    load: Load
    service: Service
    port: int = 0


def run(bench: Bench) -> Section:
    """The cell."""
    redis = bench.filled_redis("redis", LOGGED_IN, RUN)
    place(redis.pid, PINNED.others)
    rounds, pairs = bench.pick(15, 2), bench.pick(PAIRS, 1)
    disturbances = Disturbances(bench.pick(20, 2))
    section = Section("Monitoring", [_INTRODUCTION.format(rounds=rounds, pairs=pairs)])
    rows = []
    scrapes = list[float]()
    for connections, asked in ((16, NOBODY), (100, NOBODY), (16, HALF), (100, HALF)):
        series: dict[str, list[Measured]] = {OFF: [], ON: []}
        for number in range(pairs):
            candidates = _metrics(bench, redis, f"{connections}-{asked.split()[0]}-{number}", connections, asked)
            for name, repetitions in _measure(bench, disturbances, rounds // pairs, candidates).items():
                series[name] += repetitions
            scrapes.append(_scrape(candidates[1]))
        rows += [[str(connections), asked, name, *_columns(each)] for name, each in series.items()]
        cost = ratio(*([_cost(each) for each in series[name]] for name in (ON, OFF)))
        what = f"processor time for a request with metrics, times that without ({connections} connections, {asked})"
        # The median of the ratios within each round: the whole machine has slow rounds, and both stand in each.
        # Beside it the ratio of the best repetitions: whatever disturbs one makes it dearer.
        best = min(map(_cost, series[ON])) / min(map(_cost, series[OFF]))
        measured = f"{cost.of_rounds:.3f} (of the best {best:.3f})"
        section.bars.append(Bar(what, f"at most {MOST:.2f}", measured, cost.of_rounds <= MOST))
    section.blocks.append(table(["connections", "", "", *_HEAD], rows, left=3))
    scrape = median(scrapes)
    section.blocks.append(
        f"A scrape costs the service {milliseconds(scrape)} ms, every 15 s {scrape / 15:.3%} of a core; "
        f"the {MOST_A_SECOND} a second that it answers at the most, {percent(scrape * MOST_A_SECOND)}."
    )
    section.blocks.append("### A line of log for each OK")
    with _syslog(bench.directory / "log") as path:
        series = _measure(bench, disturbances, rounds, _logging(bench, redis, path))
    rows = [[name, *_columns(each), _line(each, series[NO_LOG])] for name, each in series.items()]
    section.blocks.append(table(["", *_HEAD, "µs a line"], rows))
    section.blocks.append(disturbances.sentence())
    return section


_INTRODUCTION = """\
The service alone on one core, one request outstanding on each connection; the candidates in turn. The bar is on the
service's own processor time for a request, from /proc: other guests of the machine take from the rate as they please.
Medians of {rounds} rounds, those of the metrics on {pairs} pairs of services: two processes of one program are not
equally fast. A line of log is written for every second request, at 100 connections; its price is what a request
costs more than without, doubled. Text and JSON go to a file, syslog is a socket that somebody reads."""

_HEAD = ["thousand requests/s", "service's CPU µs a request", "p50 µs", "p99 µs", "CPU server"]


def _columns(repetitions: list[Measured]) -> list[str]:
    return [
        thousands(median(each.outcome.rate for each in repetitions)),
        f"{median(_cost(each) for each in repetitions):.2f}",
        f"{median(each.outcome.p50 for each in repetitions):.0f}",
        f"{median(each.outcome.p99 for each in repetitions):.0f}",
        percent(median(each.server for each in repetitions)),
    ]


def _cost(each: Measured) -> float:
    """Microseconds of the service's processor time for one request."""
    return each.server / each.outcome.rate * 1e6


def _line(these: list[Measured], without: list[Measured]) -> str:
    more = (_cost(this) - _cost(that) for this, that in zip(these, without, strict=True))
    return f"{2 * median(more):.1f}" if these is not without else ""


def _load(bench: Bench, service: Service, connections: int, asked: str) -> Load:
    seconds, warm_up = bench.pick((1.2, 0.2), (0.6, 0.2))
    runs: tuple[str, ...]
    expected: tuple[str, ...]
    if asked == NOBODY:
        runs, expected = (f"{NOT_LOGGED_IN}/{RUN}",), ("DUNNO",)
    else:
        runs, expected = (f"{LOGGED_IN}/{RUN}", f"{NOT_LOGGED_IN}/{RUN}"), ("OK", "DUNNO")
    return Load(bench.programs.loadgen, service.target, runs, expected, connections, seconds, warm_up)


def _metrics(bench: Bench, redis: PrivateRedis, name: str, connections: int, asked: str) -> list[Candidate]:
    port = free_port()
    off = bench.service(f"off-{name}", redis.url)
    on = bench.service(f"on-{name}", redis.url, metrics_listen=f"inet:127.0.0.1:{port}")
    return [
        Candidate(OFF, _load(bench, off, connections, asked), off),
        Candidate(ON, _load(bench, on, connections, asked), on, port),
    ]


def _logging(bench: Bench, redis: PrivateRedis, syslog: Path) -> list[Candidate]:
    variants: dict[str, dict[str, Any]] = {
        NO_LOG: {"log_decisions": "none"},
        "text": {"log_decisions": "permitted"},
        "log_format = json": {"log_decisions": "permitted", "log_format": "json"},
        "log_to = syslog": {"log_decisions": "permitted", "log_to": f"syslog:{syslog}"},
    }
    candidates = []
    for number, (name, settings) in enumerate(variants.items()):
        service = bench.service(f"log-{number}", redis.url, **settings)
        candidates.append(Candidate(name, _load(bench, service, 100, HALF), service))
    return candidates


def _measure(
    bench: Bench, disturbances: Disturbances, rounds: int, candidates: list[Candidate]
) -> dict[str, list[Measured]]:
    series: dict[str, list[Measured]] = {each.name: [] for each in candidates}
    for each in candidates:
        place(each.service.pid, PINNED.server)
    for number in range(1, rounds + 1):
        bench.say(f"monitoring: round {number} of {rounds}: {', '.join(series)}")
        # Which comes first changes from round to round, so that none is always the one behind another.
        for each in candidates if number % 2 else reversed(candidates):
            load = seeded(each.load, number)
            series[each.name].append(disturbances.measure(load, each.service.pid, None, PINNED))
            each.service.empty_log()
    return series


def _scrape(place: Candidate) -> float:
    """Seconds of the service's processor time for one scrape."""
    begun = cpu_seconds(place.service.pid)
    for _ in range(SCRAPES):
        with urllib.request.urlopen(f"http://127.0.0.1:{place.port}/metrics", timeout=30) as page:
            page.read()
    return (cpu_seconds(place.service.pid) - begun) / SCRAPES


@contextmanager
def _syslog(path: Path) -> Iterator[Path]:
    """A socket like syslog's, of which somebody reads."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.settimeout(0.5)
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                with suppress(TimeoutError):
                    listening.recv(8_192)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield path
        finally:
            stop.set()
            reader.join()
