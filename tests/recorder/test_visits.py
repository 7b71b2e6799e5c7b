"""One connection of who reports: when it is ended, and when not."""

from __future__ import annotations

import asyncio
from typing import Any

from pbs_policy.recorder.reports import IDLE, LONGEST_REQUEST, MOST, PATIENCE, ReportVisit
from tests.fuzz.reports import Bench
from tests.fuzz.transport import Transport
from tests.recorder.report import report

BODY = report(success=False)
HEAD = b"POST /?command=report HTTP/1.1\r\nHost: [::]\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
WHOLE = HEAD % len(BODY) + BODY


class Peer:
    """A visit, and what it was answered."""

    def __init__(self, bench: Bench) -> None:
        transport: Any = Transport()
        self.transport = transport
        self.visit = ReportVisit(bench.reports)
        self.visit.connection_made(self.transport)

    async def send(self, data: bytes) -> None:
        self.visit.data_received(data)
        for _ in range(5):
            await asyncio.sleep(0)

    @property
    def status(self) -> bytes:
        return bytes(self.transport.written[9:12])


async def test_a_process_that_stood_still_blames_no_peer() -> None:
    peer = Peer(Bench())
    peer.visit.data_received(WHOLE)
    loop, now = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    loop.time = lambda: now + 1000  # type: ignore[method-assign]  # before anybody could answer
    peer.visit.sweep()
    await peer.send(b"")
    assert peer.status == b"200"
    assert not peer.transport.closed


async def test_a_request_that_does_not_end_is_told_so_after_a_while_however_it_trickles() -> None:
    peer = Peer(Bench())
    for at in range(PATIENCE):
        await peer.send(WHOLE[at : at + 1])
        peer.visit.sweep()
    assert not peer.transport.closed
    peer.visit.sweep()
    assert (peer.status, peer.transport.closed) == (b"408", True)


async def test_a_connection_may_be_silent_between_reports_for_a_while() -> None:
    peer = Peer(Bench())
    for _ in range(3):
        await peer.send(WHOLE)
        assert peer.status == b"200"
        for _ in range(IDLE):
            peer.visit.sweep()
        assert not peer.transport.closed
    peer.visit.sweep()
    assert peer.transport.closed


async def test_reports_on_one_connection_may_be_longer_together_than_one_may_be() -> None:
    peer = Peer(Bench())
    for _ in range(2 * LONGEST_REQUEST // len(WHOLE)):
        await peer.send(WHOLE)
    assert not peer.transport.closed
    await peer.send(HEAD % LONGEST_REQUEST + b"x" * LONGEST_REQUEST)
    assert peer.transport.closed
    assert b"\nHTTP/1.1 413 " in peer.transport.written


async def test_where_too_many_come_at_once_the_silent_ones_make_room() -> None:
    bench = Bench()
    peers = [Peer(bench) for _ in range(MOST)]
    await peers[0].send(WHOLE)
    more = [Peer(bench) for _ in range(10)]
    assert [peer.transport.closed for peer in peers[:12]] == [False, *[True] * 10, False]
    assert not any(peer.transport.closed for peer in more)
    assert len(bench.reports.visits) == MOST
