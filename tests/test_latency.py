"""How long requests waited is counted for each of them, with two clock readings for each batch."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import pytest

from pbs_policy.log import Log
from pbs_policy.store.batch import Answering, Batch
from pbs_policy.store.latency import BOUNDS, Latency


class Clock:
    """Goes on only when it is told to; counts how often it was read."""

    def __init__(self) -> None:
        self.now = 100.0
        self.read = 0

    def __call__(self) -> float:
        self.read += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def latency(clock: Clock) -> Latency:
    return Latency(clock)


def batch_of(clock: Clock, latency: Latency, *answered: Callable[..., None], further: int = 0) -> Batch:
    """A batch with one question about one key for each callback, begun now; the last `further` begin no request."""
    batch = Batch(Log(io.BytesIO()), latency, Answering())
    batch.begun = clock()
    for each in answered:
        batch.asks.append((each, 1, 0, inf))
        batch.keys.append(b"key")
    batch.further = further
    batch.replies.append([None] * len(answered))
    return batch


def settled(values: Sequence[bytes | None] | None, replies: Sequence[Any]) -> None:
    """A request that is answered with its first round."""


def counted(latency: Latency) -> dict[float, int]:
    """The buckets that are not empty, by their upper end."""
    return {bound: count for bound, count in zip((*BOUNDS, float("inf")), latency.buckets, strict=True) if count}


def report(_: str) -> None:
    raise AssertionError


def test_all_requests_of_a_batch_waited_as_long_as_it_took_with_two_readings_of_the_clock(
    clock: Clock, latency: Latency
) -> None:
    batch = batch_of(clock, latency, settled, settled, settled)
    clock.now += 0.0007
    batch.answer(report)
    assert counted(latency) == {0.001: 3}
    assert latency.total == pytest.approx(0.0021)
    assert clock.read == 2


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0.0001), (0.0001, 0.0001), (0.00011, 0.00025), (1.0, 1.0), (1.1, float("inf"))]
)
def test_a_bucket_holds_what_took_at_most_as_long_as_it_says(
    clock: Clock, latency: Latency, seconds: float, bucket: float
) -> None:
    clock.now = seconds
    latency.end(1)
    assert counted(latency) == {bucket: 1}


def test_a_request_of_three_rounds_waited_from_its_first_to_its_last(clock: Clock, latency: Latency) -> None:
    begun: list[float] = []

    def goes_on(values: object, replies: object) -> None:
        begun.append(latency.begun)
        latency.going_on += 1

    def is_settled(values: object, replies: object) -> None:
        latency.settled.append(begun[0])

    first = batch_of(clock, latency, goes_on, settled)
    clock.now += 0.002
    first.answer(report)
    assert counted(latency) == {0.0025: 1}, "what goes on is not counted yet"
    second = batch_of(clock, latency, settled, lambda *_: None, further=1)
    clock.now += 0.002
    second.answer(report)
    third = batch_of(clock, latency, is_settled, further=1)
    clock.now += 0.002
    third.answer(report)
    assert counted(latency) == {0.0025: 2, 0.01: 1}
    assert latency.total == pytest.approx(0.010)


def test_requests_of_several_first_rounds_that_end_together_are_each_counted_from_their_own(
    clock: Clock, latency: Latency
) -> None:
    begun: list[float] = []

    def go_on(values: object, replies: object) -> None:
        begun.append(latency.begun)
        latency.going_on += 1

    for _ in range(2):
        batch_of(clock, latency, go_on, go_on).answer(report)
        clock.now += 0.02
    last = batch_of(clock, latency, *[lambda *_: latency.settled.append(begun.pop()) for _ in range(4)], further=4)
    last.answer(report)
    assert counted(latency) == {0.025: 2, 0.05: 2}
    assert latency.total == pytest.approx(0.12)


def test_what_the_service_asks_for_itself_is_not_counted(clock: Clock, latency: Latency) -> None:
    batch = batch_of(clock, latency, settled, settled, further=2)
    batch.answer(report)
    assert counted(latency) == {}


def test_those_who_were_told_unavailable_are_counted_too(clock: Clock, latency: Latency) -> None:
    batch = batch_of(clock, latency, settled, settled)
    clock.now += 0.5
    batch.fail()
    assert counted(latency) == {0.5: 2}


def test_a_request_whose_answer_failed_leaves_the_next_batch_alone(clock: Clock, latency: Latency) -> None:
    def breaks(values: object, replies: object) -> None:
        raise RuntimeError

    batch_of(clock, latency, breaks, settled).answer(report)
    clock.now += 0.05
    batch = batch_of(clock, latency, settled)
    batch.answer(report)
    assert counted(latency) == {0.0001: 3}
