"""A request has one deadline, however many rounds it takes: on a Redis that is slow, and not mute."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.lookups.peer import DEADLINE, UNAVAILABLE, Peer, Server, Session, session
from tests.loop_clock import LoopClock

pytestmark = pytest.mark.usefixtures("run")

LATE = 0.7 * DEADLINE
"""Seconds by which each reply is late: one round is in time, and two are not."""


class Rounds:
    """A request that takes two rounds or more, and when it was answered."""

    def __init__(self, asking: Session, rounds: int) -> None:
        self._lookups = asking.lookups
        self._rounds = rounds
        self._clock = LoopClock()
        self._began = self._clock()
        self.answered: asyncio.Future[tuple[bool, float]] = asyncio.get_running_loop().create_future()
        self._lookups.ask([b"a"], self._go_on)

    def _go_on(self, values: Sequence[bytes | None] | None, _: Sequence[Any]) -> None:
        self._rounds -= 1
        if values is None or not self._rounds:
            self.answered.set_result((values is not None, self._clock() - self._began))
        else:
            self._lookups.ask_further([b"b"], [(b"PTTL", b"a")], self._go_on)


def be_late(server: Server) -> None:
    def answer_later(peer: Peer, command: list[bytes]) -> None:
        asyncio.get_running_loop().call_later(LATE, server.answer, peer, command)

    server.script = answer_later


@pytest.mark.usefixtures("impatient")
async def test_however_many_rounds_a_request_takes_it_is_answered_by_its_deadline() -> None:
    server = Server({b"a": b"1"})
    async with server.running() as url, session(url) as asking:
        be_late(server)
        requests = [Rounds(asking, rounds) for rounds in (2, 3, 4)]
        for each in requests:
            is_known, seconds = await each.answered
            assert not is_known
            assert seconds < DEADLINE + 0.1


@pytest.mark.usefixtures("impatient")
async def test_a_request_that_is_over_takes_no_other_with_it() -> None:
    """The connection is slow and not mute: who needs one round has an answer, and what comes late is nobody's."""
    server = Server({b"a": b"1", b"b": b"2"})
    async with server.running() as url, session(url) as asking:
        be_late(server)
        slow = Rounds(asking, 2)
        await asyncio.sleep(LATE * 0.9)
        first = asking.ask([b"b"])
        await asyncio.sleep(LATE * 0.5)
        second = asking.ask([b"a", b"b"], [b"a"])
        assert not (await slow.answered)[0]
        assert [await first, await second] == [([b"2"], []), ([b"1", b"2"], [60_000])]
        assert len(server.peers) == 1
        assert asking.errors() == 0


@pytest.mark.usefixtures("impatient")
async def test_a_further_round_that_lost_its_connection_keeps_the_deadline() -> None:
    server = Server({b"a": b"1"})

    def script(peer: Peer, command: list[bytes]) -> None:
        if b"b" not in command:
            asyncio.get_running_loop().call_later(LATE, server.answer, peer, command)
        elif peer.number == 0:
            peer.transport.close()

    server.script = script
    async with server.running() as url, session(url) as asking:
        is_known, seconds = await Rounds(asking, 2).answered
        assert not is_known
        assert seconds < DEADLINE + 0.1


async def test_a_question_of_the_services_own_has_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked outside any request, after one was answered."""
    server = Server({b"a": b"1"})
    async with server.running() as url, session(url) as asking:
        assert await asking.ask([b"a"]) != UNAVAILABLE
        be_late(server)
        await asyncio.sleep(LATE * 0.5)
        assert await asking.ask([b"a"], [b"a"]) == ([b"1"], [60_000])
