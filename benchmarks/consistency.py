"""Whether an answer is ever older than what Redis had confirmed before it was asked for.

One policy connection, one connection to Redis: a login is written (SET has returned), the service is asked; the
login is removed (DEL has returned), the service is asked. Meanwhile a load on other connections keeps the service
busy with the same addresses. A DUNNO after the SET is stale, and so is an OK after the DEL. DEFER claims nothing: it
is counted, and is no trial.

A restarted Redis comes back empty, so a DUNNO after a SET is right if Redis restarted between the two: such a trial
is void. An OK after the DEL is stale whatever happened, because nobody else writes these addresses.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address

from benchmarks.bench import Bench
from benchmarks.figures import Bar, Section, plural, table
from benchmarks.filling import LOGGED_IN, RUN
from benchmarks.load import Load
from benchmarks.load import run as run_load
from benchmarks.policy_client import PolicyClient
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.store.connect import RedisClient, connect
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.store.question import Command
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import Keys

LOAD_CONNECTIONS = 4
"""Enough that a round to Redis is always under way when a trial asks; few enough that a trial takes under 1 ms."""

PHASE_SECONDS = 600.0
"""What one phase may take at the most; the trials done by then are what counts, and the bar on their number fails."""

CUT_INTERVAL = 0.1
RESTART_INTERVAL = 1.5


@dataclass
class Counts:
    """What came of one phase."""

    after_set: int = 0
    stale_dunno: int = 0
    after_del: int = 0
    stale_ok: int = 0
    deferred: int = 0
    void: int = 0
    lost: int = 0  # policy connections that the service closed on us
    disturbances: int = 0  # cuts or restarts
    load_requests: int = 0
    load_lost: int = 0
    seconds: float = 0.0


class World:
    """Redis and the service, and how often Redis was restarted: odd while it is being restarted."""

    def __init__(self, bench: Bench) -> None:
        self.redis = bench.redis("redis")
        self.service = bench.service("service", self.redis.url)
        self.generation = 0

    def client(self) -> RedisClient:
        """A connection to Redis of one's own."""
        return connect(RedisUrl.parse(self.redis.url), "", "")


def run(bench: Bench) -> Section:
    """The cell."""
    trials = bench.pick(100_000, 5_000)
    world = World(bench)
    phases: dict[str, Callable[[World, Counts, threading.Event], None] | None] = {
        "undisturbed": None,
        "the service's connections to Redis cut": _cut_connections,
        "Redis restarted, empty": _restart_redis,
    }
    found = {name: _phase(bench, world, name, disturb, trials) for name, disturb in phases.items()}
    head = [
        "meanwhile", "SET, asked", "stale DUNNO", "DEL, asked", "stale OK", "DEFER", "void", "cuts, restarts",
        "our connection lost", "requests of the load", "lost of these", "seconds",
    ]  # fmt: skip
    rows = []
    section = Section("Consistency", [_INTRODUCTION.format(load=LOAD_CONNECTIONS)])
    for name, counts in found.items():
        numbers = [
            counts.after_set, counts.stale_dunno, counts.after_del, counts.stale_ok, counts.deferred, counts.void,
            counts.disturbances, counts.lost, counts.load_requests, counts.load_lost, round(counts.seconds),
        ]  # fmt: skip
        rows.append([name, *(f"{number:,}" for number in numbers)])
        enough = min(counts.after_set, counts.after_del) >= trials
        stale = counts.stale_dunno + counts.stale_ok
        measured = f"{plural(stale, 'stale answer')} of {counts.after_set + counts.after_del:,}"
        what = f"{name}: SET or DEL returned, then asked, {trials:,} times each"
        section.bars.append(Bar(what, "no stale answer", measured, enough and not stale))
        lost = counts.lost + counts.load_lost
        section.bars.append(Bar(f"{name}: connections that the service lost", "0", str(lost), not lost))
    section.blocks.append(table(head, rows))
    return section


_INTRODUCTION = """\
"SET returned, then ask" and "DEL returned, then ask" over one policy connection, the addresses in turn, while {load}
other connections ask about the same addresses as fast as they are answered. Void: Redis was being restarted between
the write and the answer, or did not take the write. DEFER claims nothing and is not stale."""


def _phase(
    bench: Bench,
    world: World,
    name: str,
    disturb: Callable[[World, Counts, threading.Event], None] | None,
    trials: int,
) -> Counts:
    bench.say(f"consistency: {name}")
    counts, done, faults = Counts(), threading.Event(), list[BaseException]()
    load = Load(
        bench.programs.loadgen, world.service.target, (f"{LOGGED_IN}/{RUN}",), ("",), LOAD_CONNECTIONS, 2.0, 0.0
    )  # fmt: skip

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as fault:  # noqa: BLE001 - raised again by the thread that waits for this one
            faults.append(fault)
            done.set()

    works = [lambda: _keep_busy(load, counts, done)]
    if disturb is not None:
        works.append(lambda: disturb(world, counts, done))
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    started = time.monotonic()
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(done.set)
        _try(world, counts, done, trials, started + bench.pick(PHASE_SECONDS, PHASE_SECONDS / 10))
    counts.seconds = time.monotonic() - started
    if faults:
        raise faults[0]
    return counts


def _try(world: World, counts: Counts, done: threading.Event, trials: int, deadline: float) -> None:
    keys, start, number = Keys("pbs:"), int(IPv4Address(LOGGED_IN)), 0
    with world.client() as redis, _Asker(world.service.target, counts) as asker:
        while min(counts.after_set, counts.after_del) < trials and time.monotonic() < deadline and not done.is_set():
            number += 1
            address = str(IPv4Address(start + number % RUN))
            key = keys.login(address)
            generation = world.generation
            if not _is_done(redis, (b"SET", key, b"1700000000 pop3", b"EX", b"600")):
                counts.void += 1
                continue
            action = asker.ask(address)
            if action not in ("OK", "DUNNO"):
                counts.deferred += action != ""
            elif generation % 2 or generation != world.generation:
                counts.void += 1
            else:
                counts.after_set += 1
                counts.stale_dunno += action == "DUNNO"
            if not _is_done(redis, (b"DEL", key)):
                counts.void += 1
                continue
            action = asker.ask(address)
            if action not in ("OK", "DUNNO"):
                counts.deferred += action != ""
            else:
                counts.after_del += 1
                counts.stale_ok += action == "OK"


def _is_done(redis: RedisClient, command: Command) -> bool:
    try:
        redis.ask([command])
    except StoreUnavailable:
        time.sleep(0.005)  # Redis is away; what it did with this command is not known
        return False
    return True


class _Asker:
    """The one policy connection; opened anew, and counted, should the service close it."""

    def __init__(self, target: str, counts: Counts) -> None:
        self._target = target
        self._counts = counts
        self._client = PolicyClient(target)

    def ask(self, address: str) -> str:
        """The action, or "" where the connection was lost."""
        try:
            return self._client.ask(address)
        except OSError:
            self._counts.lost += 1
            self._client.close()
            self._client = PolicyClient(self._target)
            return ""

    def __enter__(self) -> _Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()


def _keep_busy(load: Load, counts: Counts, done: threading.Event) -> None:
    while not done.is_set():
        outcome = run_load(load)
        counts.load_requests += outcome.requests
        counts.load_lost += outcome.errors + outcome.connect_failures


def _cut_connections(world: World, counts: Counts, done: threading.Event) -> None:
    with world.client() as redis:
        while not done.wait(CUT_INTERVAL):
            (clients,) = redis.ask([(b"CLIENT", b"LIST")])
            for number, command in re.findall(rb"^id=(\d+) .* cmd=(\w+)", clients, re.MULTILINE):
                # What the service says to Redis; the trials say SET and DEL, and we say CLIENT.
                if command in (b"mget", b"pttl"):
                    (killed,) = redis.ask([(b"CLIENT", b"KILL", b"ID", number)])  # 0: it is gone already
                    counts.disturbances += killed


def _restart_redis(world: World, counts: Counts, done: threading.Event) -> None:
    redis: PrivateRedis = world.redis
    while not done.wait(RESTART_INTERVAL):
        world.generation += 1
        redis.stop()
        redis.start()
        world.generation += 1
        counts.disturbances += 1
