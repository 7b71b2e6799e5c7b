"""One run of the load generator: what it asked, what it was answered, how fast, and who was busy meanwhile."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.figures import median, percent, plural, thousands
from benchmarks.policy_client import REQUEST
from benchmarks.processes import Placement, on_cores, read_clock

OPENING_RATE = 16 / 0.005
"""Connections a second that the generator opens (OPEN_PER_TICK and TICK_NS in loadgen.c)."""

BUSY = 0.8
"""Share of a core from which on a side counts as busy. On a quiet machine one side is above 0.9."""

FOREIGN = 0.06
"""Share of the cores' time that others may have had. Alone on the machine it is 0 to 2 %."""

ATTEMPTS = 3
"""How often one repetition is run at the most; of those that were all disturbed, the least disturbed counts."""


class WrongAnswers(Exception):
    """The server under load gave answers that are not right. No speed makes up for that."""


@dataclass(frozen=True)
class Load:
    """What to ask whom. `expected` is the one right answer for each of the one or two `runs` of addresses."""

    program: Path
    target: str
    runs: tuple[str, ...]
    expected: tuple[str, ...]
    connections: int = 16
    seconds: float = 1.0
    warm_up: float = 0.3
    seed: int = 1
    mode: str = "policy"

    def command(self) -> list[str]:
        """The generator's command line."""
        asked = ["-r", str(REQUEST)] if self.mode == "policy" else ["-m", "redis"]
        runs = [word for option, run in zip(("-A", "-B"), self.runs, strict=False) for word in (option, run)]
        numbers = {"-c": self.connections, "-d": self.seconds, "-w": self.warm_up, "-s": self.seed}
        options = [word for option, number in numbers.items() for word in (option, str(number))]
        return [str(self.program), "-t", self.target, *asked, *runs, *options]


class Outcome(NamedTuple):
    """The generator's own account; times in microseconds."""

    requests: int
    rate: float
    p50: float
    p99: float
    p999: float
    generator: float  # its share of a core
    actions_by_run: list[dict[str, int]]
    errors: int
    connect_failures: int

    def count(self, action: str) -> int:
        """How often this was the answer."""
        return sum(actions.get(action, 0) for actions in self.actions_by_run)


def run(load: Load, *, lead: Callable[[subprocess.Popen[bytes]], Any] = lambda _: None) -> Outcome:
    """Run the generator to its end; `lead` is called when it has started. Its own limits keep it from hanging."""
    process = subprocess.Popen(load.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        lead(process)
        output, complaint = process.communicate(timeout=30 + load.warm_up + load.seconds)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        raise WrongAnswers(f"{load.target}: {complaint.decode(errors='replace').strip()}")
    said = json.loads(output)
    return Outcome(
        said["requests"], said["rate"], said["p50_us"], said["p99_us"], said["p999_us"],
        said["cpu_seconds"] / said["seconds"], said["actions_by_run"], said["errors"], said["connect_failures"],
    )  # fmt: skip


def check_answers(load: Load, outcome: Outcome) -> None:
    """Raises WrongAnswers unless every answer was the right one. DEFER, which claims nothing, is judged elsewhere."""
    for run_of_addresses, expected, actions in zip(load.runs, load.expected, outcome.actions_by_run, strict=True):
        wrong = {action: count for action, count in actions.items() if count and action not in (expected, "DEFER")}
        if wrong:
            raise WrongAnswers(f"{load.target} on {run_of_addresses}: expected {expected}, had {actions}")
    if outcome.errors or outcome.connect_failures:
        lost = f"{plural(outcome.errors, 'request')} lost, {outcome.connect_failures} times not connected"
        raise WrongAnswers(f"{load.target}: {lost}")


class Measured(NamedTuple):
    """One repetition: the outcome, and shares of one core (`foreign`: of all that were used)."""

    outcome: Outcome
    server: float
    redis: float
    foreign: float
    disturbance: str

    @property
    def busier(self) -> float:
        """The share of its core that the busier side had."""
        return max(self.server, self.outcome.generator + self.redis)

    @property
    def lost(self) -> float:
        """How much of the cores went to others: what /proc shows of it, and what it does not."""
        return self.foreign + max(0.0, 1.0 - self.busier)


def measure(load: Load, server: int, redis: int | None, placement: Placement) -> Measured:
    """One repetition against the process `server`, whose Redis is the process `redis`, if it has one."""
    clocks = []

    def wait_for_full_load(_: object) -> None:
        time.sleep(load.warm_up + load.connections / OPENING_RATE)
        clocks.append(read_clock(server, redis, placement.cores))

    with on_cores(placement.others):
        outcome = run(load, lead=wait_for_full_load)
    clocks.append(read_clock(server, redis, placement.cores))
    check_answers(load, outcome)
    seconds, of_server, of_redis, own, busy = (now - then for then, now in zip(*clocks, strict=True))
    of_others = busy - of_server - of_redis - own - outcome.generator * seconds
    foreign = max(0.0, of_others) / seconds / len(placement.cores)
    measured = Measured(outcome, of_server / seconds, of_redis / seconds, foreign, "")
    return measured._replace(disturbance=_disturbance(load, measured, placement))


def _disturbance(load: Load, measured: Measured, placement: Placement) -> str:
    if measured.outcome.count("DEFER"):
        return "Redis was not asked in time"
    if measured.foreign > FOREIGN:
        return "other processes had the cores"
    # A single connection leaves both sides waiting for each other, and without pinning nobody owns a core.
    is_pinned = not placement.server & placement.others
    if is_pinned and load.connections >= 16 and measured.busier < BUSY:
        return "neither side was busy"
    return ""


class Disturbances:
    """How many repetitions were disturbed, and how many may still be run again in this cell."""

    def __init__(self, repeats_left: int) -> None:
        self._left = repeats_left
        self._repeated = 0
        self._kept = 0

    def measure(self, load: Load, server: int, redis: int | None, placement: Placement) -> Measured:
        """One repetition, run again while it was disturbed. Raises WrongAnswers if Redis never was asked in time."""
        attempts = [measure(load, server, redis, placement)]
        while attempts[-1].disturbance and len(attempts) < ATTEMPTS:
            # A DEFER is no answer to count on: such a repetition is run again whatever is left.
            if self._left <= 0 and not attempts[-1].outcome.count("DEFER"):
                break
            self._left -= 1
            self._repeated += 1
            attempts.append(measure(load, server, redis, placement))
        if not attempts[-1].disturbance:
            return attempts[-1]
        self._kept += 1
        best = min(attempts, key=lambda each: (each.outcome.count("DEFER"), each.lost))
        if best.outcome.count("DEFER"):
            raise WrongAnswers(f"{load.target}: {plural(best.outcome.count('DEFER'), 'DEFER')} with Redis running")
        return best

    def sentence(self) -> str:
        """What a reader has to know of the noise."""
        return (
            f"Noise: {plural(self._repeated, 'repetition')} run again because others had more than {FOREIGN:.0%} of "
            f"the cores or neither side was busy; {self._kept} disturbed to the end and counted all the same."
        )


HEAD = ["thousand requests/s", "range", "p50 µs", "p99 µs", "p99.9 µs", "CPU server", "generator", "Redis", "foreign"]


def cells(repetitions: Sequence[Measured]) -> list[str]:
    """The columns of HEAD: medians over the repetitions."""
    outcomes = [each.outcome for each in repetitions]
    rates = [each.rate for each in outcomes]
    return [
        thousands(median(rates)),
        f"{thousands(min(rates))}-{thousands(max(rates))}",
        f"{median(each.p50 for each in outcomes):.0f}",
        f"{median(each.p99 for each in outcomes):.0f}",
        f"{median(each.p999 for each in outcomes):.0f}",
        percent(median(each.server for each in repetitions)),
        percent(median(each.generator for each in outcomes)),
        percent(median(each.redis for each in repetitions)),
        percent(median(each.foreign for each in repetitions)),
    ]


def seeded(load: Load, seed: int) -> Load:
    """The same load with other addresses drawn: equal for all candidates of one round."""
    return replace(load, seed=seed)
