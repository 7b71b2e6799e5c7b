"""What a watcher costs the service: the full load with nobody watching, with `pbs-policy watch`, and with one that
has stopped reading, in turn within each round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bench import Bench, Service
from benchmarks.figures import Bar, CannotRun, Section, at_most, median, megabytes, percent, ratio, table, thousands
from benchmarks.filling import LOGGED_IN, NOT_LOGGED_IN, RUN
from benchmarks.load import Disturbances, Load, Measured, seeded
from benchmarks.processes import PINNED, cpu_seconds, on_cores, place, rss
from pbs_policy.decision.candidate import Candidate
from pbs_policy.decision.rules import NO_LOGIN, OK, Decision
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.postfix.protocol import as_request
from pbs_policy.service.events import INTERVAL, MOST, Events
from pbs_policy.store.connect import connect
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.store.resp import pack
from pbs_policy.table.keys import Keys

NOBODY, WATCHED, STALLED = "nobody watches", "watched", "watched by one that stands still"
CONNECTIONS = 100
EVENTS = 10_000
"""Decisions a second from which on the bar holds."""

GROWTH = 2_000_000
"""Bytes that the service may gain from the first round to the last: what malloc and the collector take at times."""

_ALONE = 100  # intervals of which the least is taken: whatever else ran can only have made them longer
_FORGOTTEN = 1.3  # seconds until a service that looks once a second no longer publishes


def run(bench: Bench) -> Section:
    """The cell."""
    redis = bench.filled_redis("redis", LOGGED_IN, RUN)
    service = bench.service("service", redis.url)
    seconds, warm_up = bench.pick((3.0, 0.3), (1.2, 0.2))
    runs = (f"{LOGGED_IN}/{RUN}", f"{NOT_LOGGED_IN}/{RUN}")
    load = Load(bench.programs.loadgen, service.target, runs, ("OK", "DUNNO"), CONNECTIONS, seconds, warm_up)
    disturbances = Disturbances(bench.pick(20, 2))
    rounds = bench.pick(7, 2)
    series: dict[str, list[Measured]] = {name: [] for name in (NOBODY, WATCHED, STALLED)}
    sizes: dict[str, list[int]] = {name: [] for name in series}
    heard, used = list[float](), list[float]()
    place(redis.pid, PINNED.others)
    place(service.pid, PINNED.server)
    for name in series:  # what is allocated once
        with _watcher(service, redis, name, bench.directory):
            disturbances.measure(load, service.pid, redis.pid, PINNED)
    for number in range(1, rounds + 1):
        bench.say(f"watching: round {number} of {rounds}")
        for name, repetitions in series.items():
            with _watcher(service, redis, name, bench.directory) as watcher:
                begun, lines, cpu = time.monotonic(), watcher.count(), watcher.cpu()
                repetitions.append(disturbances.measure(seeded(load, number), service.pid, redis.pid, PINNED))
                elapsed = time.monotonic() - begun
                if name == WATCHED:
                    heard.append((watcher.count() - lines) / elapsed)
                    used.append((watcher.cpu() - cpu) / elapsed)
                sizes[name].append(rss(service.pid))
    section = Section("Watching", [_INTRODUCTION.format(rounds=rounds, most=round(MOST / INTERVAL))])
    rows = [
        [
            name, thousands(median(each.outcome.rate for each in repetitions)),
            f"{median(_cost(each) for each in repetitions):.2f}",
            f"{median(each.outcome.p50 for each in repetitions):.0f}",
            f"{median(each.outcome.p99 for each in repetitions):.0f}",
            percent(median(each.server for each in repetitions)), megabytes(median(sizes[name])),
        ]
        for name, repetitions in series.items()
    ]  # fmt: skip
    head = ["", "thousand requests/s", "service's CPU µs a request", "p50 µs", "p99 µs", "CPU server", "RSS MB"]
    section.blocks += [table(head, rows), disturbances.sentence()]
    said = f"The watcher heard {median(heard):,.0f} decisions a second, with {percent(median(used))} CPU."
    section.blocks.append(said)
    alone = _cost_alone()
    needed = EVENTS * INTERVAL * median(_cost(each) for each in series[NOBODY]) / 1e6
    section.blocks.append(
        f"By itself, without the noise of a whole load: noting {EVENTS:,} decisions a second, and putting together "
        f"what is published of them, takes {alone / INTERVAL:.2%} of a core (the least of {_ALONE} intervals)."
    )
    what = f"noting and publishing {EVENTS:,} decisions a second, of the service's own CPU for as many requests"
    section.bars.append(Bar(what, "at most 5.0%", f"{alone / needed:.1%}", alone <= 0.05 * needed))
    for name in (WATCHED, STALLED):
        cost = ratio(*([_cost(each) for each in series[of]] for of in (name, NOBODY)))
        bar = at_most(f"CPU of the service a request, {name}", 1.05, cost)
        reached = median(each.outcome.rate for each in series[name])
        if reached < EVENTS:
            # Every decision is published then, and each costs its part: that is not what the bar is about.
            measured = f"{cost} at {thousands(reached)} thousand/s: too few to judge the bar"
            bar = Bar(bar.what, f"{bar.wanted} from {thousands(EVENTS)} thousand/s on", measured, None)
        section.bars.append(bar)
        rate = ratio(*([each.outcome.rate for each in series[of]] for of in (name, NOBODY)))
        section.bars.append(Bar(f"rate, {name}", "stated", str(rate), None))
        grown = sizes[name][-1] - sizes[name][0]
        what = f"memory that the service has gained from the first to the last round, {name}, MB"
        section.bars.append(Bar(what, f"at most {megabytes(GROWTH)}", megabytes(grown), grown <= GROWTH))
    return section


_INTRODUCTION = f"""\
{CONNECTIONS} connections, one request outstanding on each, every second asked address logged in. The service alone on
one core; the generator, Redis and the watcher share another, so that the watcher takes from the generator what it
uses itself: the bar is on the service's own processor time for a request. At most {{most:,}} decisions a second are
published. Medians of {{rounds}} rounds."""


def _cost_alone() -> float:
    """Processor seconds for one interval of EVENTS a second, every second one permitted: noted, and packed to be
    published."""
    client_address = LOGGED_IN
    request = as_request(
        f"request=smtpd_access_policy\nclient_address={client_address}\nsender=alice@example.com\n"
        "recipient=bob@example.net\n\n".encode()
    )
    key = Keys("pbs:").login(client_address)
    login = Candidate(key, client_address, b"1700000000 pop3 alice@example.com", b"alice@example.com")
    decisions = (Decision(OK, "login", login), NO_LOGIN)
    events = Events("mail.example.com")
    times = []
    for _ in range(_ALONE):
        begun = time.process_time()
        for _ in range(int(EVENTS * INTERVAL) // 2):
            for decision in decisions:
                events.note(decision, client_address, request)
        lines, _ = events.take()
        pack((b"PUBLISH", b"pbs:events", "\n".join(lines).encode()))
        times.append(time.process_time() - begun)
    return min(times)


def _cost(each: Measured) -> float:
    """Microseconds of the service's processor time for one request."""
    return each.server / each.outcome.rate * 1e6


class _Watcher:
    """A `pbs-policy watch --lines`, or none."""

    def __init__(self, process: subprocess.Popen[bytes] | None, output: Path) -> None:
        self._process = process
        self._output = output

    def count(self) -> int:
        """The decisions that it has shown."""
        return self._output.read_bytes().count(b" action=") if self._process else 0

    def cpu(self) -> float:
        """The processor time that it has used."""
        return cpu_seconds(self._process.pid) if self._process else 0.0


@contextmanager
def _watcher(service: Service, redis: PrivateRedis, name: str, directory: Path) -> Iterator[_Watcher]:
    """One that is heard by the service already, and is forgotten by it afterwards."""
    output = directory / "watched"
    if name == NOBODY:
        yield _Watcher(None, output)
        return
    command = [sys.executable, "-m", "pbs_policy", "-c", str(service.settings_file), "watch", "--lines"]
    with output.open("wb") as file, on_cores(PINNED.others):
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        if not wait_until(lambda: b" is heard" in output.read_bytes(), seconds=10):
            raise CannotRun(f"the watcher does not hear the service: {output.read_text()[:500]}")
        if name == STALLED:
            os.kill(process.pid, signal.SIGSTOP)
        yield _Watcher(process, output)
    finally:
        process.kill()
        process.wait()
        with connect(RedisUrl.parse(redis.url), "", "") as client:
            client.ask([(b"DEL", Keys("pbs:").watching)])
        time.sleep(_FORGOTTEN)
