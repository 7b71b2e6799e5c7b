"""Peers that do the service harm, many at a time, as a process of their own.

    python -m tests.faults.peers KIND LISTENER HOW_MANY

It says `ready` when all are there, goes on until standard input ends, and then says what it did, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pbs_policy.postfix.listener import Listener
from tests.service import request

_BEGUN = request("192.0.2.10")[:60]  # the beginning of a request
TCP_REPAIR = 19
"""linux/tcp.h: a socket closed in this state says nothing to its peer, as a host that has lost its power."""


@contextmanager
def peers(kind: str, listener: Listener, how_many: int) -> Iterator[dict[str, int]]:
    """Run them for as long as the context lasts; what they did is in the dictionary afterwards."""
    command = [sys.executable, "-m", "tests.faults.peers", kind, str(listener), str(how_many)]
    did: dict[str, int] = {}
    top = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=top) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n", "the peers did not get ready"
            yield did
            out, _ = process.communicate(timeout=300)  # which ends its standard input
            did.update(json.loads(out))
        finally:
            process.kill()


def connect(listener: Listener) -> socket.socket:
    opened = socket.create_connection((listener.host, listener.port), timeout=60)
    opened.settimeout(0.2)
    return opened


def has_ended() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def idle(listener: Listener, how_many: int) -> dict[str, int]:
    """Connections on which nothing is ever said."""
    held = [connect(listener) for _ in range(how_many)]
    _say_ready()
    sys.stdin.read()
    return {"connections": len(held)}


def drip(listener: Listener, how_many: int) -> dict[str, int]:
    """Slow-loris: each sends a byte of a request a second; whom the service has had enough of comes again."""
    held = [connect(listener) for _ in range(how_many)]
    sent = [0] * how_many
    closed = 0
    _say_ready()
    while True:
        for number, each in enumerate(held):
            if number % 100 == 0:
                if has_ended():
                    return {"connections": how_many, "closed": closed, "bytes": sum(sent)}
                time.sleep(100 / how_many)
            try:
                each.send(_BEGUN[sent[number] % len(_BEGUN) :][:1])
                sent[number] += 1
            except OSError:
                closed += 1
                with suppress(OSError):
                    held[number] = connect(listener)


def vanish(listener: Listener, how_many: int) -> dict[str, int]:
    """Half-open connections: a third has asked and never reads, a third has begun a request, a third said nothing.

    Then their host is gone, without a word to the service.
    """
    held = [connect(listener) for _ in range(how_many)]
    for number, each in enumerate(held):
        if number % 3:
            each.sendall(_BEGUN if number % 3 == 1 else request("192.0.2.10"))
        each.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        each.close()
    _say_ready()
    sys.stdin.read()
    return {"connections": how_many}


def hold(listener: Listener, how_many: int) -> dict[str, int]:
    """More connections than the service may have descriptors, opened again when it closes them."""
    held: list[socket.socket] = []
    closed = opened = 0
    _say_ready()
    while not has_ended():
        for each in select.select(held, [], [], 0)[0] if held else ():
            held.remove(each)
            each.close()
            closed += 1
        while len(held) < how_many:
            with suppress(OSError):
                held.append(connect(listener))
                opened += 1
        time.sleep(0.2)
    return {"opened": opened, "closed": closed}


def endless(listener: Listener, how_many: int) -> dict[str, int]:
    """Peers that send for ever, and never a newline."""
    data = b"x" * 65_536
    sent = connections = 0
    held: list[socket.socket | None] = [None] * how_many
    _say_ready()
    while not has_ended():
        for number, each in enumerate(held):
            try:
                if each is None:
                    each = held[number] = connect(listener)
                    connections += 1
                sent += each.send(data)
            except TimeoutError:
                continue
            except OSError:
                held[number] = None
        time.sleep(0.005)
    return {"connections": connections, "bytes": sent}


def garbage(listener: Listener, how_many: int) -> dict[str, int]:
    """`how_many` bytes of garbage: random, or the beginning of a request, or attributes without end, or requests that
    are none, or requests that are, whose answers nobody reads. It goes on until all are sent."""
    chosen = random.Random(2)
    kinds = [
        chosen.randbytes(65_536),
        _BEGUN + chosen.randbytes(65_000),
        b"request=smtpd_access_policy\n" + b"a=b\n" * 16_000,
        b"request=junk\n\n" * 5_000,
        request("198.51.100.1") * 400,
        request("192.0.2.10").replace(b"\n", b"\r\n") * 300,
    ]
    _say_ready()
    sent = connections = 0
    while sent < how_many:
        connections += 1
        try:
            with connect(listener) as opened:
                data = kinds[connections % len(kinds)]
                for _ in range(16):
                    sent += opened.send(data)
        except OSError:
            continue
        if has_ended():
            break
    sys.stdin.read()
    return {"connections": connections, "bytes": sent}


def flood(listener: Listener, how_many: int) -> dict[str, int]:
    """Requests without a pause, and no waiting for answers, which are read and thrown away: a third is answered
    without Redis for its address, a third for want of one, and a third takes a round to Redis."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # behind those who measure
    kinds = [
        b"request=smtpd_access_policy\nclient_address=%s\n\n" % each * 2_000
        for each in (b"127.0.0.1", b"unknown", b"198.51.100.1")
    ]
    watching = selectors.DefaultSelector()
    watching.register(sys.stdin, selectors.EVENT_READ)
    for number in range(how_many):
        opened = connect(listener)
        opened.setblocking(False)
        watching.register(opened, selectors.EVENT_READ | selectors.EVENT_WRITE, number)
    sent = [0] * how_many
    read = 0
    _say_ready()
    while True:
        for key, events in watching.select():
            if key.data is None:
                return {"connections": how_many, "requests": sum(sent) // 50, "answers": read // 14}
            assert isinstance(key.fileobj, socket.socket)
            with suppress(BlockingIOError):
                if events & selectors.EVENT_READ:
                    read += len(key.fileobj.recv(1 << 20))
                if events & selectors.EVENT_WRITE:
                    data = kinds[key.data % 3]
                    sent[key.data] += key.fileobj.send(data[sent[key.data] % len(data) :])


def _say_ready() -> None:
    print("ready", flush=True)


KINDS = {each.__name__: each for each in (idle, drip, vanish, hold, endless, garbage, flood)}

if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(KINDS[sys.argv[1]](Listener.parse(sys.argv[2]), int(sys.argv[3]))))
