"""A Redis that keeps the command line waiting, byte by byte or step by step, is given up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import cycle
from pathlib import Path

import pytest

from pbs_policy.store.connect import Subscription, connect
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.store.redis_url import RedisUrl
from tests.commands import Pbs
from tests.patience import as_shipped
from tests.stand_ins import redis_that_says

GIVEN_UP = 6.0
"""Seconds, on a busy machine: 2 are the answer's."""

Answer = Callable[[list[bytes]], Iterator[bytes]]
"""What is said to a command, in pieces; there are 0.1 s between them."""


def slow_redis(answer: Answer) -> AbstractContextManager[str]:
    """A server that is greeted as Redis is, and says the rest by `answer`."""
    hello = (b"-ERR unknown command\r\n",)
    return redis_that_says(lambda words: hello if words[0] == b"HELLO" else answer(words), pause=0.1)


def drip(_words: list[bytes]) -> Iterator[bytes]:
    """An answer without an end."""
    yield b"$100000\r\n"
    yield from cycle([b"a"])


def go_round(words: list[bytes]) -> Iterator[bytes]:
    """A SCAN that comes to the same place again and again; there is nothing under any other key."""
    if words[0] == b"SCAN":
        yield b"*2\r\n$1\r\n7\r\n*0\r\n"
    elif words[0] == b"MGET":
        yield b"*%d\r\n" % (len(words) - 1) + b"$-1\r\n" * (len(words) - 1)
    else:
        yield b"$-1\r\n"


@pytest.mark.parametrize(
    "command", [("check", "192.0.2.7"), ("denied",), ("list",), ("export",), ("show", "192.0.2.7")]
)
def test_a_redis_whose_answer_drips_is_given_up(command: tuple[str, ...], bare: Pbs, settings_file: Path) -> None:
    with slow_redis(drip) as url, as_shipped():
        settings_file.write_text(f"redis_url = {url}\n")
        begun = time.monotonic()
        result = bare(*command)
        took = time.monotonic() - begun
    assert result.status == os.EX_UNAVAILABLE, result
    assert "no answer within 0.5 s" in result.out + result.err
    assert took < GIVEN_UP


@pytest.mark.parametrize("command", [("list",), ("denied",), ("export",), ("show", "alice@example.com")])
def test_a_scan_without_an_end_is_given_up(command: tuple[str, ...], bare: Pbs, settings_file: Path) -> None:
    with slow_redis(go_round) as url:
        settings_file.write_text(f"redis_url = {url}\n")
        result = bare(*command)
    assert result.status == os.EX_UNAVAILABLE, result
    assert "SCAN comes to a place where it was before" in result.err


def test_an_answer_in_pieces_is_taken_as_long_as_it_is_complete_in_time() -> None:
    def in_pieces(_words: list[bytes]) -> Iterator[bytes]:
        yield from (b"$", b"5\r\n", b"al", b"ice\r\n")

    with slow_redis(in_pieces) as url, connect(RedisUrl.parse(url), "", "") as client:
        assert client.ask([(b"GET", b"a")]) == [b"alice"]
        assert client.ask([(b"GET", b"a")]) == [b"alice"]


@pytest.mark.parametrize("times", [1, 9])
def test_a_connection_lost_in_the_middle_of_a_command_is_opened_once_more(times: int) -> None:
    """A failover closes it when the command is under way already; whoever hangs up twice is unavailable."""
    asked = []

    def hang_up(words: list[bytes]) -> Iterator[bytes]:
        asked.append(words)
        if len(asked) <= times:
            raise ConnectionResetError
        yield b"$5\r\nalice\r\n"

    with slow_redis(hang_up) as url, connect(RedisUrl.parse(url), "", "") as client:
        if times == 1:
            assert client.ask([(b"GET", b"a")]) == [b"alice"]
        else:
            with pytest.raises(StoreUnavailable):
                client.ask([(b"GET", b"a")])
    assert len(asked) == 2


def test_messages_that_drip_are_given_up_and_late_ones_are_not() -> None:
    def publish(words: list[bytes]) -> Iterator[bytes]:
        yield b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
        yield from [b""] * 25  # longer than an answer may take
        yield b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$5\r\nalice\r\n"
        yield from [b""] * 5
        yield b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$99999\r\n"
        yield from cycle([b"a"])

    with slow_redis(publish) as url, as_shipped(), connect(RedisUrl.parse(url), "", "") as client:
        subscription = client.subscribe(b"a")
        messages: list[bytes] = []
        with pytest.raises(StoreUnavailable, match=r"no answer within"):
            listen(subscription, messages)
        subscription.close()
    assert messages == [b"alice"]


def listen(subscription: Subscription, messages: list[bytes]) -> None:
    begun = time.monotonic()
    while time.monotonic() < begun + 30:
        messages += subscription.arrived()
