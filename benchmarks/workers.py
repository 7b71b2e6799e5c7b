"""More processes: what a second worker gains on this machine, and what it costs when one is killed under load."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from benchmarks.bench import Bench, Service
from benchmarks.figures import Bar, CannotRun, Section, median, percent, plural, ratio, table, thousands
from benchmarks.filling import LOGGED_IN, NOT_LOGGED_IN, RUN
from benchmarks.load import Disturbances, Load, Measured, Outcome, seeded
from benchmarks.load import run as run_load
from benchmarks.processes import CORES, UNPINNED, tree
from pbs_policy import settings
from pbs_policy.postfix.listener import Listener

CONNECTIONS = 100
_RESTART_SECONDS = 5.0  # for the killed worker to be replaced


def run(bench: Bench) -> Section:
    """The cell."""
    if "workers" not in settings.defaults():
        raise CannotRun("This version has no setting `workers`: it serves from one process.")
    redis = bench.filled_redis("redis", LOGGED_IN, RUN)
    services = {number: bench.service(f"workers-{number}", redis.url, workers=str(number)) for number in (1, 2)}
    runs = (f"{LOGGED_IN}/{RUN}", f"{NOT_LOGGED_IN}/{RUN}")
    seconds, warm_up = bench.pick((1.5, 0.3), (0.4, 0.1))
    load = Load(bench.programs.loadgen, "", runs, ("OK", "DUNNO"), CONNECTIONS, seconds, warm_up)
    disturbances = Disturbances(bench.pick(30, 4))
    connections = bench.pick((16, 100, 1000), (100,))
    rounds = bench.pick(5, 2)
    series: dict[tuple[int, int], list[Measured]] = {(count, each): [] for count in connections for each in services}
    for number in range(1, rounds + 1):
        bench.say(f"workers: round {number} of {rounds}")
        for count, workers in series:
            service = services[workers]
            this = replace(seeded(load, number), connections=count, target=service.target)
            series[count, workers].append(disturbances.measure(this, service.pid, redis.pid, UNPINNED))
    section = Section("Workers", [f"Unpinned, on {plural(len(CORES), 'core')} shared with the generator and Redis."])
    rows = []
    for (count, workers), repetitions in series.items():
        rates = [each.outcome.rate for each in repetitions]
        p99 = median(each.outcome.p99 for each in repetitions)
        server = percent(median(each.server for each in repetitions))
        rows.append([str(count), str(workers), thousands(median(rates)), f"{p99:.0f}", server])
    head = ["connections", "workers", "thousand requests/s", "p99 µs", "CPU server"]
    section.blocks += [table(head, rows, left=0), disturbances.sentence()]
    for count in connections:
        one, two = ([each.outcome.rate for each in series[count, workers]] for workers in (1, 2))
        what = f"rate of 2 workers, of one worker's, {count} connections"
        section.bars.append(Bar(what, "stated", str(ratio(two, one)), None))
    _kill_one(bench, section, services[2], replace(load, target=services[2].target, seconds=bench.pick(4.0, 1.5)))
    return section


def _kill_one(bench: Bench, section: Section, service: Service, load: Load) -> None:
    """Kill a worker in the middle of a run; every request that is lost has to be one that it had in flight."""
    bench.say("workers: one is killed under load")
    before = _workers(service)
    victim, held = 0, 0

    def kill(_: object) -> None:
        nonlocal victim, held
        time.sleep(load.warm_up + load.connections / 3_200 + load.seconds / 3)
        held, victim = max((_held(pid, load.target), pid) for pid in before)
        os.kill(victim, signal.SIGKILL)

    outcome = run_load(load, lead=kill)
    deadline = time.monotonic() + _RESTART_SECONDS
    while len(_workers(service)) < len(before) and time.monotonic() < deadline:
        time.sleep(0.05)
    restarted = len(_workers(service)) == len(before) and victim not in _workers(service)
    after = run_load(load)
    wrong = _wrong(load, outcome) + _wrong(load, after)
    section.blocks.append(
        f"One of {len(before)} workers was killed (-9) under load, while it held {held} of {load.connections} "
        f"connections: {plural(outcome.errors, 'request')} lost, {outcome.connect_failures} attempts to connect "
        f"refused, {plural(wrong, 'wrong answer')}; it was {'' if restarted else 'not '}replaced. In the "
        f"{load.seconds:.0f} s with the kill there were {thousands(outcome.rate)} thousand requests/s, in the "
        f"{load.seconds:.0f} s after them {thousands(after.rate)}, with {plural(after.errors, 'request')} lost."
    )
    met = outcome.errors <= held and not outcome.connect_failures and not wrong and not after.errors and restarted
    lost = f"{outcome.errors} lost, {outcome.connect_failures} refused"
    what = "a killed worker costs its own connections' requests in flight and nothing else"
    section.bars.append(Bar(what, f"at most {held} lost, 0 refused", lost, met))


def _workers(service: Service) -> list[int]:
    return [pid for pid in tree(service.pid) if pid != service.pid]


def _held(pid: int, target: str) -> int:
    """How many connections to `target` a process has accepted: proc(5), /proc/net/tcp, 01 is ESTABLISHED."""
    place = f"0100007F:{Listener.parse(target).port:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    accepted = {f"socket:[{row[9]}]" for row in rows if row[1] == place and row[3] == "01"}
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed since it was listed
            count += str(link.readlink()) in accepted
    return count


def _wrong(load: Load, outcome: Outcome) -> int:
    """Answers that claim what is not so; DEFER claims nothing, but Redis was there all the time."""
    answers = zip(load.expected, outcome.actions_by_run, strict=True)
    return sum(count for right, actions in answers for action, count in actions.items() if action != right)
