"""How many of Dovecot's reports `pbs-policy record` takes on one core, with the login table right at the end."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.figures import Bar, Section, median, percent, table
from benchmarks.filling import LOGGED_IN
from benchmarks.processes import PINNED, cpu_seconds, on_cores, place
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.demo.ports import free_port
from pbs_policy.demo.service import PrivateService
from pbs_policy.store.connect import RedisClient, connect
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import Keys

WANTED = 2_000
"""Reports a second."""

_AT_A_TIME = 500  # keys that are compared in one go


class PrivateRecorder(PrivateService):
    """The recorder on a port that is known beforehand."""

    daemon = "record"

    def __init__(self, directory: Path, settings: Mapping[str, str], port: int) -> None:
        listen = {"reports_listen": f"inet:127.0.0.1:{port}", "reports_check_passwords": "yes"}
        super().__init__(directory, {**listen, **settings})
        self.port = port


class Run(NamedTuple):
    """Reports a second, the share of a core that the recorder had, and how many keys are missing or wrong."""

    rate: float
    cpu: float
    wrong: int


def run(bench: Bench) -> Section:
    """The cell."""
    redis = bench.redis("redis")
    place(redis.pid, PINNED.others)
    repetitions, number = bench.pick(5, 1), bench.pick(20_000, 2_000)
    section = Section("Reports", [_INTRODUCTION.format(number=number, repetitions=repetitions)])
    rows = []
    for connections in (1, 16, 100):
        runs = [_measure(bench, redis, connections, number) for _ in range(repetitions)]
        rate, cost = median(each.rate for each in runs), median(each.cpu / each.rate for each in runs)
        wrong = sum(each.wrong for each in runs)
        share = percent(median(each.cpu for each in runs))
        rows.append([str(connections), f"{rate:.0f}", f"{cost * 1e6:.0f}", share, f"{1 / cost:.0f}", str(wrong)])
    head = ["connections", "reports/s", "CPU µs a report", "CPU", "reports/s of a whole core", "keys wrong"]
    section.blocks.append(table(head, rows))
    on_a_core, wrong = min(int(row[4]) for row in rows), sum(int(row[5]) for row in rows)
    what = "reports a second on one core, the table right at the end"
    measured = f"{on_a_core}, {wrong} keys wrong"
    section.bars.append(Bar(what, f"at least {WANTED}", measured, on_a_core >= WANTED and not wrong))
    return section


_INTRODUCTION = """\
The recorder alone on one core; Dovecot's part is played by a program that sends one report after the other on each
connection, as Dovecot does, {number} in all, each of another address and user. Medians of {repetitions} rounds. Then
every key and value is compared with what was reported. What a whole core takes is reckoned from the recorder's own
processor time: other guests of the machine take from the rate as they please."""


def _measure(bench: Bench, redis: PrivateRedis, connections: int, number: int) -> Run:
    with connect(RedisUrl.parse(f"unix://{redis.socket_path}"), "", "") as client:
        for key in client.ask([(b"KEYS", b"*")])[0]:
            client.ask([(b"DEL", key)])
        with on_cores(PINNED.server):
            recorder = PrivateRecorder(bench.directory / "recorder", {"redis_url": redis.url}, free_port())
            recorder.start()
        try:
            with on_cores(PINNED.others):
                bodies = [_report(each) for each in range(number)]
                before, began = cpu_seconds(recorder.pid), time.monotonic()
                _send(recorder.port, bodies, connections)
                seconds = time.monotonic() - began
                wait_until(lambda: client.ask([(b"DBSIZE",)])[0] >= 2 * number, seconds=10)
                used = cpu_seconds(recorder.pid) - before
            return Run(number / seconds, used / seconds, _count_wrong(client, number))
        finally:
            recorder.close()


def _names(number: int) -> tuple[str, str]:
    return str(IPv4Address(LOGGED_IN) + number), f"user{number}@example.com"


def _report(number: int) -> bytes:
    address, user = _names(number)
    fields = {
        "user": user, "remote": address, "protocol": "imap", "mech": "PLAIN", "master_user": "", "proxied": "no",
        "nologin": "no", "success": True, "policy_reject": False, "tls": True,
    }  # fmt: skip
    body = json.dumps(fields).encode()
    head = "POST /?command=report HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: dovecot/auth-policy-client\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _send(port: int, reports: list[bytes], connections: int) -> None:
    """Send all, one after the other on each connection. Raises ConnectionError for an answer that is not 200."""
    waiting = iter(reports)
    with selectors.DefaultSelector() as selector:
        for _ in range(connections):
            peer = socket.create_connection(("127.0.0.1", port), 30)
            selector.register(peer, selectors.EVENT_READ)
            peer.sendall(next(waiting))
        open_ones = connections
        while open_ones:
            for key, _ in selector.select():
                peer = key.fileobj  # type: ignore[assignment]  # as registered
                answer = peer.recv(4_096)
                if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"}\n"):
                    raise ConnectionError(f"answered {answer!r}")
                report = next(waiting, None)
                if report is None:
                    selector.unregister(peer)
                    peer.close()
                    open_ones -= 1
                else:
                    peer.sendall(report)


def _count_wrong(client: RedisClient, number: int) -> int:
    """How many of the keys are not there, or hold another value than they should, or something else is there."""
    keys = Keys("pbs:")
    wrong = abs(int(client.ask([(b"DBSIZE",)])[0]) - 2 * number)
    for first in range(0, number, _AT_A_TIME):
        names = [_names(each) for each in range(first, min(first + _AT_A_TIME, number))]
        asked = [key for address, user in names for key in (keys.login(address), keys.login(address, user.encode()))]
        values, *left = client.ask([(b"MGET", *asked), *[(b"TTL", key) for key in asked]])
        users = [user for _, user in names for _ in range(2)]
        for user, value, seconds in zip(users, values, left, strict=True):
            is_right = value is not None and value.split(b" ", 1)[1:] == [b"imap-report " + user.encode()]
            wrong += not (is_right and 0 < seconds <= 1_800)
    return wrong
