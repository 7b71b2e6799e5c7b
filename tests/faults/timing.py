"""What faults cost in time and memory, with nothing else going on: a mute Redis, and ten thousand connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Bar, median
from benchmarks.load import Disturbances, Load
from benchmarks.processes import PINNED, build, on_cores, place, rss
from pbs_policy.demo.daemons import wait_until
from tests.faults.asking import Asked, Asking
from tests.faults.clients import STRANGERS
from tests.faults.observing import back_after
from tests.faults.peers import peers
from tests.faults.stage import Stage, action
from tests.stores import pause, resume

MUTE_SECONDS = 4.0
PEERS = 10_000
PAIRS = 7
"""Measurements without and with them."""


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
        pause(stage.redis)
        time.sleep(MUTE_SECONDS)
        end = time.monotonic()
        resume(stage.redis)
        assert wait_until(lambda: action(stage) == "OK")
        time.sleep(0.3)
    asked = asking.asked()
    before = [each for each in asked if each.sent < begin - 0.2]
    first = [each for each in asked if begin <= each.sent < begin + 1]
    later = [each for each in asked if begin + 1 <= each.sent < end]
    return Mute(p99(before), p99(first), p99(later), back_after(asked, end))


@dataclass(frozen=True)
class Crowd:
    """PEERS connections that come and go, PAIRS times: others' p99 before they are there and while they are, in µs;
    and what each of them takes of the service's memory, in bytes."""

    p99s: Sequence[tuple[float, float]]
    memory: float

    @property
    def ratio(self) -> float:
        """Of p99 with them to that without, the median of all pairs."""
        return median(among / without for without, among in self.p99s)


def crowd(stage: Stage, kind: str, loadgen: Path) -> Crowd:
    """What PEERS connections of this kind are to 16 others. The service has a core of its own: whoever else wants the
    cores of this machine, the peers' own process among them, would be seen in p99 and not the service. The two
    measurements of a pair follow each other, so that a slow minute meets both."""
    service = stage.service.pid
    place(service, PINNED.server)
    load = Load(loadgen, str(stage.service.listeners[0]), (f"{STRANGERS[0]}/256",), ("DUNNO",), 16, 2.0)
    undisturbed = Disturbances(PAIRS * 2)

    def others_p99() -> float:
        return undisturbed.measure(load, service, None, PINNED).outcome.p99

    others_p99()  # what is done for the first time is slower
    alone, resident = _descriptors(service), rss(service)
    p99s, memory = [], 0.0
    for _ in range(PAIRS):
        without = others_p99()
        with on_cores(PINNED.others), peers(kind, stage.service.listeners[0], PEERS):
            # Whom the service has had enough of comes again: a few of those are always missing.
            assert wait_until(lambda: _descriptors(service) >= alone + PEERS * 0.99, seconds=60)
            memory = memory or (rss(service) - resident) / PEERS  # later ones are given what the first ones left
            p99s.append((without, others_p99()))
        assert wait_until(lambda: _descriptors(service) <= alone, seconds=60)
    return Crowd(p99s, memory)


def _descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


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
    crowds = {}
    for kind in ("idle", "drip"):
        say(f"{PEERS} connections, {kind}")
        # Another service for each: memory that the last ones have left is used again, and would not be seen.
        with stage.other_service():
            assert wait_until(lambda: action(stage) == "OK")
            crowds[kind] = crowd(stage, kind, loadgen)
    idle = crowds["idle"]
    without, among = (median(each) for each in zip(*idle.p99s, strict=True))
    bars += [
        Bar(f"{PEERS:,} idle connections: others' p99, to that without them", "at most 1.5",
            f"{idle.ratio:.2f}, median of {PAIRS} pairs ({without:.0f} µs, {among:.0f} µs)", idle.ratio <= 1.5),
        Bar(f"{PEERS:,} idle connections: memory of each, the most", "at most 8 kB", f"{idle.memory / 1000:.1f} kB",
            idle.memory <= 8_000),
        Bar(f"{PEERS:,} connections with a byte a second: others' p99, to that without them", "",
            f"{crowds['drip'].ratio:.2f}", None),
    ]  # fmt: skip
    return bars
