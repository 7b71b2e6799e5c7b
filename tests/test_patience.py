"""How long the server waits for a peer, and for how many. The sweeps are counted, not waited for: the clock is the
number of them."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest

from pbs_policy.log import Log
from pbs_policy.service.connection import IDLE_LIMIT, REQUEST_LIMIT, SWEEP_INTERVAL, Connection
from pbs_policy.service.server import PolicyServer
from pbs_policy.table.keys import Keys
from tests.service import request

POSTFIX_KEEPS_IDLE_CONNECTIONS = 300
"""Seconds: smtpd_policy_service_max_idle."""


class Transport:
    """What the connection does with its transport."""

    def __init__(self) -> None:
        self.closed = ""

    def close(self) -> None:
        self.closed = self.closed or "closed"

    def abort(self) -> None:
        self.closed = self.closed or "aborted"

    def write(self, _: bytes) -> None: ...

    def is_closing(self) -> bool:
        return bool(self.closed)

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        return ("192.0.2.1", id(self)) if name == "peername" else None


class NoAnswer:
    """A Redis that has not answered yet."""

    def ask(self, *_: object) -> None: ...


@pytest.fixture
def log() -> io.BytesIO:
    return io.BytesIO()


@pytest.fixture
def server(log: io.BytesIO) -> PolicyServer:
    lookups: Any = NoAnswer()
    return PolicyServer(Keys("pbs:"), lookups, Log(log))


def connect(server: PolicyServer) -> Connection:
    transport: Any = Transport()
    made = server.connection()
    made.connection_made(transport)
    return made


@pytest.fixture
def connection(server: PolicyServer) -> Connection:
    return connect(server)


def sweep(connection: Connection, seconds: float) -> str:
    """What has become of the connection after so many seconds of silence."""
    for _ in range(int(seconds / SWEEP_INTERVAL)):
        connection.sweep()
    return fate(connection)


def fate(connection: Connection) -> str:
    """ "closed", "aborted", or nothing yet."""
    transport: Any = connection._transport
    return str(transport.closed)


ASKS, ASKS_REDIS = request("unknown"), request("192.0.2.7")


@pytest.mark.parametrize(
    "steps",
    [
        [(POSTFIX_KEEPS_IDLE_CONNECTIONS * 2, ""), (IDLE_LIMIT, "closed")],
        [*[(IDLE_LIMIT - SWEEP_INTERVAL, ""), ASKS] * 3, (IDLE_LIMIT, "")],
        [ASKS[:-1], (REQUEST_LIMIT, ""), (SWEEP_INTERVAL, "aborted")],
        [(IDLE_LIMIT / 2, ""), ASKS[:20], (REQUEST_LIMIT, ""), ASKS[20:], (IDLE_LIMIT, "")],
        [ASKS, "stall", (REQUEST_LIMIT, ""), (SWEEP_INTERVAL, "aborted")],
        [*[ASKS, "stall", (REQUEST_LIMIT, ""), "read"] * 5, (IDLE_LIMIT - REQUEST_LIMIT, "")],
        [ASKS_REDIS, (REQUEST_LIMIT, "")],
        [ASKS_REDIS, (REQUEST_LIMIT + SWEEP_INTERVAL, "aborted")],
    ],
    ids=[
        "an idle one is kept longer than Postfix keeps it", "each request begins the time anew",
        "a request that is never completed", "a request that begins after a long silence has its own time",
        "who never reads the answers", "who reads the answers late stays", "who waits for Redis is not idle",
        "a request that was never decided",
    ],
)  # fmt: skip
def test_how_long_a_connection_is_kept(connection: Connection, steps: list[bytes | str | tuple[float, str]]) -> None:
    """What comes from the peer, or whether it reads, and what has become of the connection after so many seconds."""
    for step in steps:
        if isinstance(step, bytes):
            connection.data_received(step)
        elif isinstance(step, str):
            connection.pause_writing() if step == "stall" else connection.resume_writing()
        else:
            assert sweep(connection, step[0]) == step[1]


def test_who_has_been_silent_for_the_longest_makes_room_for_one_too_many(
    server: PolicyServer, log: io.BytesIO
) -> None:
    server.most_connections = 3
    waits, silent, lively = (connect(server) for _ in range(3))
    waits.data_received(request("192.0.2.7"))  # and has no answer yet
    for each in (waits, silent, lively):
        each.sweep()
    lively.data_received(request("unknown"))
    newcomer = connect(server)
    assert [fate(each) for each in (waits, silent, lively, newcomer)] == ["", "aborted", "", ""]
    assert server.connections == {waits, lively, newcomer}


def test_many_that_are_disconnected_at_once_are_counted_and_not_each_told(
    server: PolicyServer, log: io.BytesIO
) -> None:
    for _ in range(130):
        connect(server).data_received(b"GET / HTTP/1.0\n")
    assert log.getvalue().count(b"disconnecting") == 100
    asyncio.run(server.sweep_once())
    assert log.getvalue().splitlines()[100:] == [b"warning: and 30 more peers were disconnected in 5 s"]
    asyncio.run(server.sweep_once())
    assert log.getvalue().count(b"\n") == 101


def test_a_sweep_lets_others_have_their_turn(server: PolicyServer) -> None:
    connections = [connect(server) for _ in range(500)]

    async def look_in_between() -> tuple[int, int]:
        sweeping = asyncio.create_task(server.sweep_once())
        await asyncio.sleep(0)
        swept = sum(each.silent_sweeps for each in connections)
        await sweeping
        return swept, sum(each.silent_sweeps for each in connections)

    first, last = asyncio.run(look_in_between())
    assert 0 < first < last == 500


def test_connections_that_made_room_are_told_with_the_limit(server: PolicyServer, log: io.BytesIO) -> None:
    server.most_connections = 10
    for _ in range(12):
        connect(server)
    asyncio.run(server.sweep_once())
    assert b"2 connections, silent for the longest, were closed" in log.getvalue()
    assert b"LimitNOFILE" in log.getvalue()
