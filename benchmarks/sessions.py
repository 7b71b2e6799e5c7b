"""How long `pbs-policy record` takes to renew 20,000 open sessions, and what relay checks notice of it."""

from __future__ import annotations

import json
import os
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.figures import Bar, Section, median, table
from benchmarks.filling import LOGGED_IN, NOT_LOGGED_IN, fill, user_number
from benchmarks.policy_client import PolicyClient
from benchmarks.processes import PINNED, before_others, cpu_seconds, on_cores, place
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.service import PrivateService
from pbs_policy.store.connect import RedisClient, connect
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import Keys

WANTED = 2.0
"""Seconds."""

LATEST = 0.001
"""Seconds."""

_PAUSE = 12  # seconds between two rounds
_MOST = 60  # seconds to wait for a round
_AT_A_TIME = 1_000  # keys that are compared in one go
_KEYS = Keys("pbs:")


class PrivateRecorder(PrivateService):
    """The recorder, with a doveadm that prints a file, and writes down when it is asked."""

    daemon = "record"

    def __init__(self, directory: Path, redis_url: str, number: int) -> None:
        super().__init__(directory, {"redis_url": redis_url, "renew_sessions": f"{_PAUSE}s"})
        rows = [{"username": user, "service": "imap", "pid": "7", "ip": address} for address, user in _names(number)]
        (directory / "who").write_text(json.dumps(rows))
        self._asked = directory / "asked"
        program = directory / "doveadm"
        asked, new = self._asked, directory / "new"
        program.write_text(f"#!/bin/sh\ndate +%s.%N >{new}\nmv {new} {asked}\nexec cat {directory}/who\n")
        program.chmod(0o755)
        self.environment = dict(os.environ, PATH=f"{directory}:{os.environ['PATH']}")

    def asked_at(self) -> float:
        """When doveadm was asked last, by time.time; 0 for never."""
        return float(self._asked.read_text()) if self._asked.exists() else 0.0


class Round(NamedTuple):
    """From the question to doveadm to the last login in Redis, seconds; processor time; relay checks' 99th percentile
    meanwhile and beforehand, seconds; how many keys are wrong afterwards."""

    seconds: float
    cpu: float
    during: float
    before: float
    wrong: int


def run(bench: Bench) -> Section:
    """The cell."""
    with before_others():
        return _run(bench)


def _run(bench: Bench) -> Section:
    redis = bench.redis("redis")
    place(redis.pid, PINNED.server)
    number, rounds = bench.pick(20_000, 2_000), bench.pick(9, 2)
    fill(redis.socket_path, LOGGED_IN, number)
    with on_cores(PINNED.server):
        service = bench.service("service", redis.url)
    with on_cores(PINNED.others):
        recorder = bench.stack.enter_context(PrivateRecorder(bench.directory / "recorder", redis.url, number))
    with (
        connect(RedisUrl.parse(f"unix://{redis.socket_path}"), "", "") as client,
        PolicyClient(service.target) as peer,
        on_cores(PINNED.server),
    ):
        _measure(redis, recorder, client, peer, number)  # the first one reads the settings, too
        found = [_measure(redis, recorder, client, peer, number) for _ in range(rounds)]
    return _section(found, number)


def _section(found: list[Round], number: int) -> Section:
    seconds, cpu = median(each.seconds for each in found), median(each.cpu for each in found)
    during, before = median(each.during for each in found), median(each.before for each in found)
    wrong = sum(each.wrong for each in found)
    section = Section("Sessions", [_INTRODUCTION.format(number=number, rounds=len(found))])
    row = [f"{seconds:.2f}", f"{max(each.seconds for each in found):.2f}", f"{cpu:.2f}", f"{before * 1e6:.0f}",
           f"{during * 1e6:.0f}", str(wrong)]  # fmt: skip
    head = ["s", "longest", "CPU s", "p99 of a check, µs: without", "meanwhile", "keys wrong"]
    section.blocks.append(table(head, [row]))
    right = not wrong
    what = f"{number} sessions renewed"
    section.bars.append(Bar(what, f"under {WANTED:.0f} s", f"{seconds:.2f} s", seconds < WANTED and right))
    what = "the 99th percentile of a relay check meanwhile"
    section.bars.append(Bar(what, f"under {LATEST * 1e6:.0f} µs", f"{during * 1e6:.0f} µs", during < LATEST))
    return section


_INTRODUCTION = """\
doveadm's part is played by a program that prints {number} sessions, each of another user and address, whose logins
stand in the table. The time is that from the question to the last login in Redis. Service, Redis and a client that
asks the service again and again share one core; the recorder has the other. Medians of {rounds} rounds, after
each of which every key and value is compared."""


def _measure(
    redis: PrivateRedis, recorder: PrivateRecorder, client: RedisClient, peer: PolicyClient, number: int
) -> Round:
    last = _KEYS.login(str(IPv4Address(LOGGED_IN) + number - 1))
    asked_before = -1.0
    while asked_before != recorder.asked_at():  # a round that began meanwhile, or is not over, is none to measure
        asked_before = recorder.asked_at()
        time.sleep(_PAUSE / 4)
        fill(redis.socket_path, LOGGED_IN, number)  # as the script writes them: renewed ones are told from these
    used, deadline = cpu_seconds(recorder.pid), time.monotonic() + _MOST
    waits: dict[bool, list[float]] = {False: [], True: []}
    began = 0.0
    while time.monotonic() < deadline:
        started = time.monotonic()
        peer.ask(NOT_LOGGED_IN)
        waits[bool(began)].append(time.monotonic() - started)
        if not began:
            asked_at = recorder.asked_at()
            began = asked_at if asked_at > asked_before else 0.0
        elif len(waits[True]) % 20 == 0 and b"-session " in client.ask([(b"GET", last)])[0]:
            break
    seconds = time.time() - began
    return Round(
        seconds, cpu_seconds(recorder.pid) - used, _p99(waits[True]), _p99(waits[False]), _count_wrong(client, number)
    )


def _names(number: int) -> list[tuple[str, str]]:
    return [(str(IPv4Address(LOGGED_IN) + each), user_number(each).decode()) for each in range(number)]


def _p99(waits: list[float]) -> float:
    return sorted(waits)[len(waits) * 99 // 100] if waits else 0.0


def _count_wrong(client: RedisClient, number: int) -> int:
    """How many keys were not renewed, or hold another value than they should."""
    wrong = 0
    names = _names(number)
    for first in range(0, number, _AT_A_TIME):
        some = names[first : first + _AT_A_TIME]
        for user_of in (lambda _: b"", str.encode):
            keys = [_KEYS.login(address, user_of(user)) for address, user in some]
            (values,) = client.ask([(b"MGET", *keys)])
            wrong += sum(
                value is None or value.split(b" ", 1)[1] != b"imap-session " + user.encode()
                for value, (_, user) in zip(values, some, strict=True)
            )
    return wrong
