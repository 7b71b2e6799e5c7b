"""Whether the service stays flat as the login table grows, and what a login costs in Redis' memory."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.bench import Bench, Service, used_memory
from benchmarks.figures import Bar, Section, at_most, median, ratio, table, thousands
from benchmarks.filling import KINDS, MANY_LOGGED_IN, MANY_NOT_LOGGED_IN, Kind, fill, mean_user_size
from benchmarks.load import Disturbances, Load, Measured, seeded
from benchmarks.processes import PINNED, place
from pbs_policy.demo.daemons import PrivateRedis

CONNECTIONS = 16
ALL = "all of them"
FEW = "1,000 of them"


@dataclass(frozen=True)
class Size:
    """A Redis with so many logins, and a service on it."""

    logins: int
    redis: PrivateRedis
    service: Service
    memory: float  # bytes for each login


def run(bench: Bench) -> Section:
    """The cell."""
    counts = bench.pick((1_000, 10_000, 100_000, 1_000_000), (1_000, 100_000))
    sizes = [_start(bench, count) for count in counts]
    rounds = bench.pick(7, 2)
    disturbances = Disturbances(bench.pick(40, 6))
    cells = [(size.logins, asked) for size in sizes for asked in (ALL, FEW)]
    series: dict[tuple[int, str], list[Measured]] = {cell: [] for cell in cells}
    for number in range(1, rounds + 1):
        bench.say(f"table: lookups, round {number} of {rounds}")
        for asked in (ALL, FEW):
            for size in sizes:
                load = seeded(_load(bench, size, asked), number)
                measured = disturbances.measure(load, size.service.pid, size.redis.pid, PINNED)
                series[size.logins, asked].append(measured)
    section = Section("Login table", [_INTRODUCTION.format(connections=CONNECTIONS, rounds=rounds)])
    rows = []
    for (logins, asked), repetitions in series.items():
        outcomes = [each.outcome for each in repetitions]
        figures = [median(each.p50 for each in outcomes), median(each.p99 for each in outcomes)]
        rate = thousands(median(each.rate for each in outcomes))
        rows.append([f"{logins:,}", asked, *(f"{figure:.0f}" for figure in figures), rate])
    section.blocks += [table(["logins", "addresses asked", "p50 µs", "p99 µs", "thousand requests/s"], rows, left=2)]
    section.blocks.append(disturbances.sentence())
    for asked in (ALL, FEW):
        large, small = ([each.outcome.p50 for each in series[count, asked]] for count in (counts[-1], counts[0]))
        what = f"lookup p50 with {counts[-1]:,} logins, times that with {counts[0]:,}, {asked} asked about"
        section.bars.append(at_most(what, 1.10, ratio(large, small)))
    _judge_memory(bench, section, sizes)
    return section


_INTRODUCTION = """\
Lookups through the service at {connections} connections, server pinned, {rounds} repetitions in turn; every second
asked address is logged in. The addresses are drawn from the whole table, or from its first 1,000: what then still
differs is the table's size alone, without the processor's caches and the service's memory of canonical addresses."""


def _start(bench: Bench, count: int) -> Size:
    bench.say(f"table: filling {count:,} logins")
    redis = bench.redis(f"redis-{count}")
    before = used_memory(redis)
    fill(redis.socket_path, MANY_LOGGED_IN, count)
    memory = (used_memory(redis) - before) / count
    service = bench.service(f"service-{count}", redis.url)
    place(redis.pid, PINNED.others)
    place(service.pid, PINNED.server)
    return Size(count, redis, service, memory)


def _load(bench: Bench, size: Size, asked: str) -> Load:
    count = size.logins if asked == ALL else 1_000
    runs = (f"{MANY_LOGGED_IN}/{count}", f"{MANY_NOT_LOGGED_IN}/{count}")
    seconds, warm_up = bench.pick((1.2, 0.3), (0.3, 0.1))
    return Load(
        bench.programs.loadgen, size.service.target, runs, ("OK", "DUNNO"), CONNECTIONS, seconds, warm_up
    )  # fmt: skip


def _judge_memory(bench: Bench, section: Section, sizes: list[Size]) -> None:
    rows = [[f"the two by default, {size.logins:,} logins", f"{size.memory:.0f}", ""] for size in sizes]
    count = bench.pick(1_000_000, 20_000)
    all_three = _memory_of(bench, KINDS, count)
    rows.append([f"all three, {count:,} logins", f"{all_three:.0f}", "written with `sender_match = domain`"])
    for kind in KINDS:
        rows.append([f"`{kind.name}` alone, {count:,}", f"{_memory_of(bench, (kind,), count):.0f}", kind.read_by])
    section.blocks.append(
        "Redis memory (`used_memory`) of a login in bytes, one user behind each address, whose name has "
        f"{mean_user_size(10_000):.0f} bytes in the mean. Redis' own tables grow by doubling, so what a key costs "
        "varies with their number:"
    )
    section.blocks.append(table(["keys", "bytes a login", "read by"], rows))
    worst = max(size.memory for size in sizes if size.logins >= 10_000)
    for what, memory in (("by default, the worst above", worst), ("with `sender_match = domain`", all_three)):
        met = memory <= 600
        section.bars.append(Bar(f"Redis memory of a login {what}, bytes", "at most 600", f"{memory:.0f}", met))


def _memory_of(bench: Bench, kinds: tuple[Kind, ...], count: int) -> float:
    """Bytes that these keys of a login take, in a Redis of their own."""
    bench.say(f"table: memory of {', '.join(kind.name for kind in kinds)}")
    with PrivateRedis(bench.directory / f"redis-kind-{kinds[0].place}-{len(kinds)}") as redis:
        before = used_memory(redis)
        fill(redis.socket_path, MANY_LOGGED_IN, count, kinds)
        return (used_memory(redis) - before) / count
