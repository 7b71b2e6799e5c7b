"""How long the server waits for a peer. The sweeps are counted, not waited for: the clock is the number of them."""

from __future__ import annotations

import io
from typing import Any

import pytest

from pbs_policy.address import ClientAddresses
from pbs_policy.connection import IDLE_LIMIT, REQUEST_LIMIT, SWEEP_INTERVAL, Connection
from pbs_policy.keys import Keys
from pbs_policy.log import Log
from pbs_policy.policy import Rules
from pbs_policy.server import PolicyServer
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

    def get_extra_info(self, _: str) -> None:
        return None


class NoAnswer:
    """A Redis that has not answered yet."""

    def ask(self, *_: object) -> None: ...


@pytest.fixture
def connection() -> Connection:
    lookups: Any = NoAnswer()
    server = PolicyServer(Rules(), ClientAddresses(), Keys("pbs:"), lookups, Log(io.BytesIO()), "none")
    transport: Any = Transport()
    made = server.connection()
    made.connection_made(transport)
    return made


def sweep(connection: Connection, seconds: float) -> str:
    """What has become of the connection after so many seconds of silence."""
    for _ in range(int(seconds / SWEEP_INTERVAL)):
        connection.sweep()
    transport: Any = connection._transport
    return str(transport.closed)


def test_an_idle_connection_is_kept_longer_than_postfix_keeps_it(connection: Connection) -> None:
    assert sweep(connection, POSTFIX_KEEPS_IDLE_CONNECTIONS * 2) == ""
    assert sweep(connection, IDLE_LIMIT) == "closed"


def test_each_request_begins_the_time_anew(connection: Connection) -> None:
    for _ in range(3):
        assert sweep(connection, IDLE_LIMIT - SWEEP_INTERVAL) == ""
        connection.data_received(request("unknown"))
    assert sweep(connection, IDLE_LIMIT) == ""


def test_a_request_that_is_never_completed_ends_the_connection(connection: Connection) -> None:
    connection.data_received(request("unknown")[:-1])
    assert sweep(connection, REQUEST_LIMIT) == ""
    assert sweep(connection, SWEEP_INTERVAL) == "aborted"


def test_a_request_that_begins_after_a_long_silence_has_its_own_time(connection: Connection) -> None:
    assert sweep(connection, IDLE_LIMIT / 2) == ""
    connection.data_received(request("unknown")[:20])
    assert sweep(connection, REQUEST_LIMIT) == ""
    connection.data_received(request("unknown")[20:])
    assert sweep(connection, IDLE_LIMIT) == ""


def test_a_peer_that_waits_for_redis_is_not_idle(connection: Connection) -> None:
    connection.data_received(request("192.0.2.7"))
    assert sweep(connection, IDLE_LIMIT * 2) == ""
