"""Faults of peers, who send what they should not, or nothing, or too much, or are too many."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from pbs_policy.demo.daemons import wait_until
from pbs_policy.programs import find_program
from tests.faults.fault import Again, Marks, Scale, fault
from tests.faults.peers import TCP_REPAIR, peers
from tests.faults.stage import Stage, action

DESCRIPTORS = 160


def lacks_repair() -> str:
    """Whether no socket may be closed without a word, which takes CAP_NET_ADMIN."""
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        except OSError as error:
            return f"a connection cannot be made to vanish here (TCP_REPAIR): {error.strerror}"
    return ""


def lacks_prlimit() -> str:
    """Whether there is no prlimit(1)."""
    return "" if find_program("prlimit") else "prlimit is not installed: apt-get install util-linux"


@fault("ten thousand slow peers", "connections that send a byte of a request a second (slow-loris)")
def slow_peers(stage: Stage, scale: Scale, _: Marks) -> Iterator[Again | None]:
    with peers("drip", stage.service.listeners[0], scale.peers):
        yield None


@fault("peers are gone without a word", "half-open: idle, in a request, or with an answer unread", lacks_repair)
def half_open(stage: Stage, scale: Scale, _: Marks) -> Iterator[Again | None]:
    with peers("vanish", stage.service.listeners[0], scale.peers):
        yield None


@fault("no descriptor is left", f"`ulimit -n {DESCRIPTORS}`, and peers that hold 400 connections open", lacks_prlimit)
def no_descriptors(stage: Stage, _: Scale, __: Marks) -> Iterator[Again | None]:
    with stage.other_service("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"):
        with peers("hold", stage.service.listeners[0], 400):
            assert wait_until(lambda: "to make room for others" in stage.service.log_text())
            yield None
        assert wait_until(lambda: action(stage) == "OK")


@fault("peers that never send a newline", "five at a time, for ever")
def endless_lines(stage: Stage, _: Scale, __: Marks) -> Iterator[Again | None]:
    with peers("endless", stage.service.listeners[0], 5) as did:
        yield None
    assert did["connections"] > 5, "nobody was disconnected"


@fault("a gigabyte of garbage", "random bytes, half requests, attributes without end, answers that nobody reads")
def garbage(stage: Stage, scale: Scale, _: Marks) -> Iterator[Again | None]:
    with peers("garbage", stage.service.listeners[0], scale.garbage) as did:
        yield None
    assert did["bytes"] >= scale.garbage


@fault("a flood of requests", "150 connections that send requests without a pause, and wait for no answer")
def flooded(stage: Stage, _: Scale, __: Marks) -> Iterator[Again | None]:
    with peers("flood", stage.service.listeners[0], 150) as did:
        yield None
    assert did["answers"] > 1_000, "hardly anything was answered"
