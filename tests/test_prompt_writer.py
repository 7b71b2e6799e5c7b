"""What is written at once must be the same bytes in the same order, and never reach another connection."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from pbs_policy.prompt_writer import PromptWriter


class Transport:
    """As much of an asyncio transport as a writer needs; what it is given is not sent until `drain`."""

    def __init__(self, connection: socket.socket | None, *, tls: bool = False) -> None:
        self.extra: dict[str, Any] = {"socket": connection, "sslcontext": object() if tls else None}
        self.kept = b""
        self.closing = False

    def get_extra_info(self, name: str) -> Any:
        return self.extra[name]

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return len(self.kept)

    def write(self, data: bytes) -> None:
        self.kept += data


@pytest.fixture
def pair() -> Any:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def writer(transport: Any) -> PromptWriter:
    return PromptWriter(transport)


def test_what_is_written_is_sent_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    transport = Transport(pair[0])
    assert writer(transport).write(b"action=OK\n\n")
    assert (pair[1].recv(100), transport.kept) == (b"action=OK\n\n", b"")


def test_behind_what_waits_nothing_is_sent_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    transport = Transport(pair[0])
    transport.write(b"first")
    writer(transport).write(b"second")
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        pair[1].recv(100)
    assert transport.kept == b"firstsecond"


def test_what_the_kernel_does_not_take_goes_through_the_transport(pair: tuple[socket.socket, socket.socket]) -> None:
    transport = Transport(pair[0])
    prompt = writer(transport)
    data = bytes(range(256)) * 16
    sent = b""
    while not transport.kept:
        prompt.write(data)
        sent += data
    prompt.write(b"last")
    received = b""
    while len(received) + len(transport.kept) < len(sent) + 4:
        received += pair[1].recv(1 << 20)
    assert received + transport.kept == sent + b"last"


def test_a_connection_that_is_being_closed_gets_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    """Its descriptor may be another connection's a moment later."""
    transport = Transport(pair[0])
    prompt = writer(transport)
    transport.closing = True
    prompt.write(b"action=OK\n\n")
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        pair[1].recv(100)
    assert transport.kept == b""


def test_a_connection_that_the_peer_has_left_is_the_transports_to_deal_with(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    transport = Transport(pair[0])
    pair[1].close()
    writer(transport).write(b"action=OK\n\n")
    assert transport.kept == b"action=OK\n\n"


@pytest.mark.parametrize("tls", [True, False])
def test_tls_and_what_has_no_socket_go_through_the_transport(
    pair: tuple[socket.socket, socket.socket], tls: bool
) -> None:
    transport = Transport(pair[0] if tls else None, tls=tls)
    writer(transport).write(b"GET")
    assert transport.kept == b"GET"
