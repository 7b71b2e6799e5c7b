"""What faults cost in time and memory, with nothing else going on: a mute Redis, and ten thousand connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Bar, median
from benchmarks.load import Load, run
from benchmarks.processes import build, rss
from pbs_policy.demo.daemons import wait_until
from tests.faults.asking import Asked, Asking
from tests.faults.clients import STRANGERS
from tests.faults.observing import back_after
from tests.faults.peers import peers
from tests.faults.stage import Stage, action

MUTE_SECONDS = 4.0
PEERS = 10_000


@dataclass(frozen=True)
class Mute:
    """One time that Redis was mute: p99 before it, of the first second, and of the rest; and when it was back; in
    seconds."""

    before: float
    first: float
    later: float
    back: float


def p99(asked: Sequence[Asked]) -> float:
    """Of the times to the answer, in seconds."""
    times = sorted(each.answered - each.sent for each in asked)
    return times[int(len(times) * 0.99)] if times else 0.0


def mute(stage: Stage) -> Mute:
    """Redis stopped for MUTE_SECONDS, while a thousand requests a second are sent."""
    assert wait_until(lambda: action(stage) == "OK")
    asking = Asking(stage.service.listeners[0], stage.directory / "asked", rate=1_000, connections=100)
    with asking:
        time.sleep(2.0)
        begin = time.monotonic()
        stage.redis.pause()
        time.sleep(MUTE_SECONDS)
        end = time.monotonic()
        stage.redis.resume()
        assert wait_until(lambda: action(stage) == "OK")
        time.sleep(0.3)
    asked = asking.asked()
    before = [each for each in asked if each.sent < begin - 0.2]
    first = [each for each in asked if begin <= each.sent < begin + 1]
    later = [each for each in asked if begin + 1 <= each.sent < end]
    return Mute(p99(before), p99(first), p99(later), back_after(asked, end))


@dataclass(frozen=True)
class Crowd:
    """One round with many connections: others' p99 without and with them, and the memory of each, in bytes."""

    without: float
    among: float
    memory: float


def crowd(stage: Stage, kind: str, loadgen: Path) -> Crowd:
    """The p99 of 16 other connections, before PEERS connections of this kind are there, and while they are."""
    load = Load(loadgen, str(stage.service.listeners[0]), (f"{STRANGERS[0]}/256",), ("DUNNO",), 16, 2.0)
    without = run(load).p99
    resident = rss(stage.service.pid)
    with peers(kind, stage.service.listeners[0], PEERS):
        time.sleep(0.5)
        memory = (rss(stage.service.pid) - resident) / PEERS
        among = run(load).p99
    return Crowd(without, among, memory)


def measure(stage: Stage, rounds: int, say: Callable[[str], None]) -> list[Bar]:
    """The bars on time and memory; medians of so many rounds."""
    mutes = []
    for number in range(rounds):
        say(f"a mute Redis, {number + 1} of {rounds}")
        mutes.append(mute(stage))
    before, first, later = (median(getattr(each, name) for each in mutes) for name in ("before", "first", "later"))
    back = max(each.back for each in mutes)
    bars = [
        Bar("a mute Redis: p99 of answers, first second", "at most 0.6 s", f"{first:.3f} s", first <= 0.6),
        Bar("a mute Redis: p99 of answers, later", "at most 5 ms",
            f"{later * 1000:.1f} ms (before it was mute: {before * 1000:.1f} ms)", later <= 0.005),
        Bar("a mute Redis: `OK` again after its return, the slowest", "within 1 s", f"{back:.2f} s", back <= 1),
    ]  # fmt: skip
    loadgen = build(stage.directory).loadgen
    crowds: dict[str, list[Crowd]] = {"idle": [], "drip": []}
    for number in range(rounds):
        for kind, found in crowds.items():
            say(f"{PEERS} connections, {kind}, {number + 1} of {rounds}")
            # Another service for each: memory that the last round has left is used again, and would not be seen.
            with stage.other_service():
                assert wait_until(lambda: action(stage) == "OK")
                found.append(crowd(stage, kind, loadgen))
    ratios = {kind: median(each.among / each.without for each in found) for kind, found in crowds.items()}
    memory = max(each.memory for each in crowds["idle"])
    without, among = (median(getattr(each, name) for each in crowds["idle"]) for name in ("without", "among"))
    bars += [
        Bar(f"{PEERS:,} idle connections: others' p99, to that without them", "at most 1.5",
            f"{ratios['idle']:.2f} ({without:.0f} µs, {among:.0f} µs)", ratios["idle"] <= 1.5),
        Bar(f"{PEERS:,} idle connections: memory of each, the most", "at most 8 kB", f"{memory / 1000:.1f} kB",
            memory <= 8_000),
        Bar(f"{PEERS:,} connections with a byte a second: others' p99, to that without them", "",
            f"{ratios['drip']:.2f}", None),
    ]  # fmt: skip
    return bars
