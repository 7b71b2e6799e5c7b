"""Requests a second: the C limit, Redis' own GET, and the service, in turn within each round."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from benchmarks.bench import Bench, Service
from benchmarks.figures import Ratio, Section, at_least, at_most, ratio, table
from benchmarks.filling import KINDS, LOGGED_IN, NOT_LOGGED_IN, RUN, fill
from benchmarks.load import HEAD, Disturbances, Load, Measured, cells, seeded
from benchmarks.processes import PINNED, UNPINNED, Limit, Placement, place

LIMIT = "C limit"
GET = "Redis GET"
NOBODY = "service as shipped, nobody logged in"
HALF = "service as shipped, every second logged in"
UNLOGGED = "every second logged in, log_decisions = none"
BARE = "every second logged in, log_decisions = none, usage_kept = 0"
RULES = "every second logged in, log_decisions = none, sender_match = domain, both caps"
SERVERS = (LIMIT, GET, NOBODY, HALF, UNLOGGED, BARE, RULES)

_SENDER = b"alice@ex.test"  # of the captured request

TRANSPORTS = {"tcp": "TCP", "unix": "unix sockets"}


@dataclass(frozen=True)
class Candidate:
    """One server and what it is asked. `redis` is the process behind it, none where it is itself the server."""

    transport: str
    name: str
    load: Load
    server: int
    redis: int | None = None
    service: Service | None = None


Series = dict[tuple[str, str, int, str], list[Measured]]  # by placement, transport, connections, candidate


def run(bench: Bench) -> Section:
    """The cell."""
    candidates, backing = _start(bench)
    connections = bench.pick((1, 16, 100, 1000), (16, 100))
    rounds = bench.pick(5, 2)
    schedule = [(PINNED, "tcp"), (PINNED, "unix"), (UNPINNED, "tcp")]
    disturbances = Disturbances(bench.pick(100, 10))
    series: Series = defaultdict(list)
    for number in range(1, rounds + 1):
        for placement, transport in schedule:
            for each in backing:
                place(each, placement.others)
            for candidate in candidates:
                place(candidate.server, placement.server)
            for count in connections:
                bench.say(f"throughput: round {number} of {rounds}: {placement.name}, {transport}, {count} clients")
                for candidate in candidates:
                    if candidate.transport == transport:
                        load = replace(seeded(candidate.load, number), connections=count)
                        measured = disturbances.measure(load, candidate.server, candidate.redis, placement)
                        series[placement.name, transport, count, candidate.name].append(measured)
                        if candidate.service is not None:
                            candidate.service.empty_log()
    section = Section("Throughput", [_INTRODUCTION.format(rounds=rounds)])
    for placement, transport in schedule:
        heading = f"{TRANSPORTS[transport]}, {placement.name}: settings as shipped, then what is switched off or on"
        section.blocks.append(f"### {heading}")
        section.blocks.append(_table(series, placement, transport, connections))
    section.blocks.append(disturbances.sentence())
    _judge(section, series, connections)
    return section


_INTRODUCTION = """\
One request outstanding on each connection, as Postfix does it; a captured request of 29 attributes. Pinned: the
server alone on one core, the generator and the service's Redis on another. With nobody logged in a request costs one
round to Redis, and each `OK` costs two. "As shipped" is no setting but where it listens and where Redis is, so each
`OK` is logged and counted for the report (`log_decisions = permitted`, `usage_kept = 30d`); below it some of that is
switched off, and all else stays as shipped. On unix sockets the service reaches Redis by one as well. Medians of
{rounds} repetitions, the candidates in turn. "Of the limit" is the ratio of medians, in parentheses the median of the
ratios within each round. Shares are of one core: whoever is near 100 % was the limit. "Foreign" is the share of the
cores in use that other processes had."""


def _start(bench: Bench) -> tuple[list[Candidate], list[int]]:
    """The servers; and the pids of the Redis behind the services."""
    bench.say("throughput: starting the servers, filling three Redis")
    backing = bench.filled_redis("redis", LOGGED_IN, RUN)
    asked = bench.filled_redis("redis-asked", LOGGED_IN, RUN)
    of_sender = bench.redis("redis-of-the-sender")
    fill(of_sender.socket_path, LOGGED_IN, RUN, KINDS, lambda _: _SENDER)
    logged_in, stranger = f"{LOGGED_IN}/{RUN}", f"{NOT_LOGGED_IN}/{RUN}"
    seconds, warm_up = bench.pick((1.2, 0.2), (0.4, 0.1))
    base = Load(bench.programs.loadgen, "", (stranger,), ("DUNNO",), seconds=seconds, warm_up=warm_up)
    half = replace(base, runs=(logged_in, stranger), expected=("OK", "DUNNO"))
    candidates: list[Candidate] = []
    for transport in TRANSPORTS:
        unix = transport == "unix"
        limit = Limit(bench.directory / f"limit-{transport}", bench.programs.limit, unix=unix)
        bench.stack.enter_context(limit)
        candidates.append(Candidate(transport, LIMIT, replace(base, target=limit.target), limit.pid))
        if not unix:
            target = f"inet:127.0.0.1:{asked.port}"
            get = replace(half, target=target, expected=("found", "nil"), mode="redis")
            candidates.append(Candidate(transport, GET, get, asked.pid))
        url = f"unix://{backing.socket_path}" if unix else backing.url
        shipped = bench.shipped_service(f"shipped-{transport}", url, unix=unix)
        unlogged = bench.shipped_service(f"unlogged-{transport}", url, unix=unix, log_decisions="none")
        bare = bench.service(f"bare-{transport}", url, unix=unix)
        started = ((NOBODY, base, shipped), (HALF, half, shipped), (UNLOGGED, half, unlogged), (BARE, half, bare))
        for name, load, service in started:
            candidates.append(
                Candidate(transport, name, replace(load, target=service.target), service.pid, backing.pid, service)
            )
    rules = bench.shipped_service(
        "rules",
        of_sender.url,
        log_decisions="none",
        sender_match="domain",
        max_recipients_per_address="1000/1h",
        max_recipients_per_user="1000/1h",
    )
    load = replace(half, target=rules.target)
    candidates.append(Candidate("tcp", RULES, load, rules.pid, of_sender.pid, rules))
    return candidates, [backing.pid, of_sender.pid]


def _rates(repetitions: list[Measured]) -> list[float]:
    return [each.outcome.rate for each in repetitions]


def _table(series: Series, placement: Placement, transport: str, connections: tuple[int, ...]) -> str:
    rows = []
    for count in connections:
        for name in SERVERS:
            repetitions = series.get((placement.name, transport, count, name))
            if repetitions:
                of_limit = ratio(_rates(repetitions), _rates(series[placement.name, transport, count, LIMIT]))
                rows.append([str(count), name, str(of_limit), *cells(repetitions)])
    return table(["connections", "server", "of the limit", *HEAD], rows, left=2)


def _judge(section: Section, series: Series, connections: tuple[int, ...]) -> None:
    def compare(transport: str, count: int, this: str, that: str) -> Ratio:
        return ratio(*(_rates(series[PINNED.name, transport, count, name]) for name in (this, that)))

    def latency(this: str) -> Ratio:
        both = (series[PINNED.name, "tcp", 100, name] for name in (this, LIMIT))
        return ratio(*([each.outcome.p99 for each in repetitions] for repetitions in both))

    for count, name, wanted in ((100, NOBODY, 0.50), (100, UNLOGGED, 0.36), (16, NOBODY, 0.40), (16, UNLOGGED, 0.26)):
        what = f"{name}: rate at {count} connections, of the C limit's (TCP, pinned)"
        section.bars.append(at_least(what, wanted, compare("tcp", count, name, LIMIT)))
    for name in (NOBODY, UNLOGGED):
        what = f"{name}: rate at 100 connections, of Redis' own GET's (TCP, pinned)"
        section.bars.append(at_least(what, 0.50, compare("tcp", 100, name, GET)))
        what = f"{name}: p99 at 100 connections, times the C limit's (TCP, pinned)"
        section.bars.append(at_most(what, 2.0, latency(name)))

    def beside(this: str, that: str) -> str:
        return ", ".join(f"{compare('tcp', count, this, that)} at {count}" for count in connections)

    section.blocks.append(
        f"Of the rate without it (TCP, pinned): the log of each `OK` leaves {beside(HALF, UNLOGGED)}; the report "
        f"{beside(UNLOGGED, BARE)}; `sender_match = domain` and both caps {beside(RULES, UNLOGGED)}."
    )
