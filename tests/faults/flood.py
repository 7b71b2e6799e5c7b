"""What it costs others when peers send requests without waiting for answers: their waiting, and the watchdog's."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Bar
from benchmarks.processes import PINNED, before_others, on_cores, place
from pbs_policy.demo.daemons import wait_until
from tests.faults.asking import MAY_RELAY, Asking
from tests.faults.clients import LOGGED_IN
from tests.faults.peers import peers
from tests.faults.stage import Stage
from tests.manager import Manager

WATCHDOG = 30.0
"""Seconds, as in the unit: a sign of life each second."""

SECONDS = 15.0
"""Of a flood, where it is measured."""


@dataclass(frozen=True)
class Flooded:
    """Under a flood: how long others waited (the p99, and the slowest), of so many; the longest time without a sign
    of life; in seconds. `harm`: answers that must never be."""

    p99: float
    slowest: float
    asked: int
    silence: float
    harm: int


def flood(directory: Path, redis_url: str, how_many: int, seconds: float) -> Flooded:
    """`how_many` connections that pipeline, for so long, at a service of their own on the table of `redis_url`. The
    service has a core of its own, and with those who ask it goes before all else: what else there is on this machine
    would be seen in the waiting, and not the service."""
    settings = {"redis_url": redis_url, "log_decisions": "none"}
    with before_others(), Manager(directory, settings, watchdog=WATCHDOG) as service, _signs(service) as heard:
        place(service.pid, PINNED.server)
        listener = service.listeners[0]
        assert wait_until(lambda: service.ask(LOGGED_IN[0]) == "OK")
        with on_cores(PINNED.others), Asking(listener, directory / "asked", rate=200, connections=10) as asking:
            began = time.monotonic()
            with peers("flood", listener, how_many):
                flooded = time.monotonic()
                time.sleep(seconds)
                ended = time.monotonic()
            # A sign that did not come until now counts as well.
            wait_until(lambda: heard[-1] > ended, seconds=60)
    asked = [each for each in asking.asked() if flooded <= each.sent < ended]
    waited = sorted(each.answered - each.sent for each in asked)
    moments = [began, *(each for each in heard if each > began)]
    harm = sum(each.is_wrong_ok or each.answer == "wrong" for each in asked)
    assert any(each.answer == "OK" and each.group == MAY_RELAY for each in asked), "nobody was permitted"
    silence = max(later - earlier for earlier, later in itertools.pairwise(moments))
    return Flooded(waited[int(len(waited) * 0.99)], waited[-1], len(waited), silence, harm)


def measure(stage: Stage, say: Callable[[str], None]) -> list[Bar]:
    """The bars on floods of a few and of many peers."""
    bars = []
    for how_many in (10, 150):
        say(f"a flood of {how_many} connections")
        directory = stage.directory / f"flood-{how_many}"
        directory.mkdir()
        seen = flood(directory, stage.redis.url, how_many, SECONDS)
        what = f"{how_many} connections that wait for no answer"
        waited = f"{seen.p99 * 1000:.1f} ms, the slowest of {seen.asked:,} {seen.slowest * 1000:.0f} ms"
        bars += [
            Bar(f"{what}: others' p99", "at most 20 ms", waited, seen.p99 <= 0.02 and not seen.harm),
            Bar(f"{what}: the watchdog's longest silence", "at most 2 s", f"{seen.silence:.2f} s", seen.silence <= 2),
        ]
    return bars


@contextmanager
def _signs(service: Manager) -> Iterator[list[float]]:
    """When a sign of life was heard, from now on."""
    heard = [time.monotonic()]
    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            service.messages.clear()
            service.listen(0.1)
            if any(each.startswith("WATCHDOG=1") for each in service.messages):
                heard.append(time.monotonic())

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        over.set()
        thread.join()
