"""Requests that wait for their turn: so many of all together in one turn of the loop, one of each at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pbs_policy.service.turns import REQUESTS_A_TURN, Turns


class Loop:
    """Calls what is to be called soon, a turn at a time."""

    def __init__(self) -> None:
        self._soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def turn(self) -> None:
        soon, self._soon = self._soon, []
        for each in soon:
            each()

    @property
    def rests(self) -> bool:
        return not self._soon


class Peer:
    """Has `requests` that wait, and writes down each turn that it has."""

    def __init__(self, name: str, turns: Turns, requests: int, had: list[str]) -> None:
        self._name = name
        self._turns = turns
        self._requests = requests
        self._had = had
        turns.add(self)

    def take_turn(self) -> None:
        self._had.append(self._name)
        self._requests -= 1
        if self._requests:
            self._turns.add(self)


def test_of_all_peers_together_so_many_requests_are_decided_in_one_turn_of_the_loop() -> None:
    loop, had = Loop(), list[str]()
    turns = Turns(loop.call_soon)
    for number in range(100):
        Peer(str(number), turns, 10, had)
    seen = 0
    while not loop.rests:
        loop.turn()
        assert len(had) - seen <= REQUESTS_A_TURN
        seen = len(had)
    assert seen == 1000


def test_each_has_its_turn_before_anybody_has_another() -> None:
    loop, had = Loop(), list[str]()
    turns = Turns(loop.call_soon)
    Peer("many", turns, 1_000, had)
    for number in range(50):
        Peer(str(number), turns, 1, had)
    loop.turn()
    loop.turn()
    assert had[:51] == ["many", *map(str, range(50))]
    assert set(had[51:]) == {"many"}


def test_a_peer_alone_has_all_of_a_turn() -> None:
    loop, had = Loop(), list[str]()
    Peer("alone", Turns(loop.call_soon), REQUESTS_A_TURN, had)
    loop.turn()
    assert len(had) == REQUESTS_A_TURN
    assert loop.rests


def test_a_fault_of_one_stops_nobody_else() -> None:
    class Faulty(Peer):
        def take_turn(self) -> None:
            raise RuntimeError("a fault of ours")

    loop, had = Loop(), list[str]()
    turns = Turns(loop.call_soon)
    Faulty("faulty", turns, 1, had)
    Peer("sound", turns, 2, had)
    with pytest.raises(RuntimeError):
        loop.turn()
    loop.turn()
    assert had == ["sound", "sound"]
