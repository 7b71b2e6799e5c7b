"""The workers' numbers in shared memory: added up right, whoever reads, and whoever has died."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbs_policy.metrics.board import STALE, Board, total
from pbs_policy.metrics.numbers import Numbers


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def numbers(decisions: float = 0.0, connections: float = 0.0, watchers: float = 0.0) -> Numbers:
    return Numbers({"decisions OK login": decisions}, {"connections": connections}, {"watchers": watchers})


def test_what_is_counted_and_open_is_added_up_and_of_the_watchers_the_most_are_told() -> None:
    board = Board(3)
    board.post(0, numbers(3, 10, 1))
    board.post(1, numbers(1, 5, 2))
    board.post(2, numbers(4, 20, 1))
    assert total(board.read_all()) == numbers(8, 35, 2)


def test_nothing_is_read_of_a_worker_that_has_not_posted() -> None:
    board = Board(2)
    assert board.read(0) is None
    assert total(board.read_all()) == Numbers.none()


def test_a_worker_that_does_not_turn_still_has_counted_but_has_nothing_open() -> None:
    clock = Clock()
    board = Board(2, clock)
    board.post(0, numbers(3, 10, 5))
    clock.now += STALE + 1
    board.post(1, numbers(4, 20, 1))
    assert total(board.read_all()) == numbers(7, 20, 1)
    posts = {post.worker: post for post in board.read_all()}
    assert posts[0].age == pytest.approx(STALE + 1)
    assert (posts[0].is_fresh, posts[1].is_fresh) == (False, True)


@given(st.dictionaries(st.text(max_size=20), st.floats(allow_nan=False), max_size=50))
def test_what_is_posted_is_what_is_read(counters: dict[str, float]) -> None:
    board = Board(1)
    for _ in range(3):
        board.post(0, Numbers(counters, {}, {}))
        post = board.read(0)
        assert post is not None
        assert post.numbers == Numbers(counters, {}, {})


def test_numbers_that_do_not_fit_are_refused_and_those_before_stay() -> None:
    board = Board(1)
    board.post(0, numbers(1))
    with pytest.raises(ValueError, match="bytes of numbers"):
        board.post(0, Numbers({f"decisions OK reason_{number}": 1.0 for number in range(1_000)}, {}, {}))
    assert total(board.read_all()) == numbers(1)


def test_a_page_that_is_overwritten_while_it_is_read_is_not_taken_for_numbers() -> None:
    board = Board(1)
    board.post(0, numbers(1))
    start = board._memory.find(b'[{"decisions')
    board._memory[start + 5] ^= 1
    assert board.read(0) is None


def test_processes_that_post_and_read_at_the_same_time_never_see_half_of_it() -> None:
    board = Board(2)
    board.post(0, Numbers({"a": 0.0, "b": 0.0}, {}, {}))
    child = os.fork()
    if child == 0:
        for number in range(20_000):
            board.post(0, Numbers({"a": float(number), "b": float(number), "c" * (number % 700): 0.0}, {}, {}))
        os._exit(0)
    try:
        seen, last = set[float](), -1.0
        deadline = time.monotonic() + 60
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            assert time.monotonic() < deadline
            post = board.read(0)
            if post is not None:
                counters = post.numbers.counters
                assert counters["a"] == counters["b"] >= last
                last = counters["a"]
                seen.add(last)
    finally:
        board.post(1, Numbers.none())
    assert len(seen) > 10
