"""Logins on their way to Redis: nobody waits, an outage prolongs no permission, and what is lost is counted."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import pytest

from pbs_policy.log import Log
from pbs_policy.recorder import writer as module
from pbs_policy.recorder.logins import LoginRules, SeenLogin
from pbs_policy.recorder.writer import MOST_WAITING, LoginWriter
from pbs_policy.settings import defaults
from pbs_policy.settings.sources import Value
from pbs_policy.store.question import Answer, Command, Question


class FakeLookups:
    """Takes what it is given while `answers`, and keeps it."""

    def __init__(self) -> None:
        self.answers = True
        self.asked = 0
        self.taken: list[Command] = []

    async def put(self, question: Question) -> Answer | None:
        self.asked += 1
        for _ in range(3):  # turns of the loop until the answer to a round is there
            await asyncio.sleep(0)
        if not self.answers:
            return None
        self.taken += question.commands
        return Answer((), [b"OK"] * len(question.commands))


class Bench:
    """A writer on a Redis of the test's own, with its log."""

    def __init__(self, **settings: str) -> None:
        self.redis = FakeLookups()
        self._output = io.BytesIO()
        values = defaults() | {name: Value(text, "test") for name, text in settings.items()}
        lookups: Any = self.redis
        self.writer = LoginWriter(LoginRules(values), lookups, Log(self._output))

    @property
    def log(self) -> list[str]:
        return self._output.getvalue().decode().splitlines()


def login(number: int = 7, user: bytes = b"alice", **more: Any) -> SeenLogin:
    return SeenLogin(user, f"192.0.2.{number}", "imap", "report", **more)


async def end(bench: Bench, writing: asyncio.Task[None]) -> None:
    bench.writer.stop()
    await writing


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - it is another's condition
        await asyncio.sleep(0.001)


async def test_logins_are_written_with_their_way_and_their_ttl() -> None:
    bench = Bench(ttl="10m", user_domain="example.com", sender_match="domain")
    writing = asyncio.create_task(bench.writer.run())
    assert bench.writer.offer(login())
    await end(bench, writing)
    values = {key.decode(): (value.split(b" ", 1)[1], ex) for _, key, value, *ex in bench.redis.taken}
    written = b"imap-report alice", [b"EX", b"600"]
    assert values == {
        "pbs:login:192.0.2.7": written,
        "pbs:login:192.0.2.7,alice@example.com": written,
        "pbs:login:192.0.2.7,@example.com": written,
    }
    assert bench.writer.recorded == 1


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (login(mechanism=b"anonymous"), "anonymous"),
        (login(proxied=True), "it goes on to another host"),
        (login(master=b"admin"), "admin logged in as alice"),
        (login()._replace(address="fe80::1%eth0"), "link-local"),
        (login()._replace(address="unknown"), "not an IP address"),
        (login()._replace(address=""), "not an IP address"),
        (login()._replace(address="192.0.2.7\n"), "not an IP address"),
        (login()._replace(address="127.0.0.1"), ""),
        (login()._replace(address="203.0.113.7"), ""),
        (login(user=b"alice@example.org"), "of no domain"),
    ],
)
async def test_what_the_script_would_not_record_is_left_out(seen: SeenLogin, said: str) -> None:
    bench = Bench(never_record="203.0.113.0/24", user_domain="example.com", login_domains="example.com")
    writing = asyncio.create_task(bench.writer.run())
    assert not bench.writer.offer(seen)
    await end(bench, writing)
    assert not bench.redis.taken
    assert bench.writer.left_out == 1
    assert (said in bench.log[0] and bench.log[0].isprintable()) if said else bench.log == []


async def test_logins_wait_for_redis_and_each_ends_when_it_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    monkeypatch.setattr(module, "_AGAIN", 0.001)

    bench = Bench(ttl="10m")
    bench.redis.answers = False
    writing = asyncio.create_task(bench.writer.run())
    bench.writer.offer(login(1))
    now += 500
    bench.writer.offer(login(2))
    await until(lambda: bench.redis.asked > 2)
    now += 200
    bench.redis.answers = True
    await until(lambda: not bench.writer.waiting)
    await end(bench, writing)
    # The first one has ended meanwhile: it is neither written nor lost.
    assert [(each[1], each[4]) for each in bench.redis.taken] == [
        (b"pbs:login:192.0.2.2", b"400"), (b"pbs:login:192.0.2.2,alice", b"400"),
    ]  # fmt: skip
    assert bench.writer.lost == 0


async def test_what_finds_no_room_is_the_oldest_and_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AGAIN", 0.001)

    bench = Bench()
    bench.redis.answers = False
    writing = asyncio.create_task(bench.writer.run())
    for number in range(MOST_WAITING + 50):
        bench.writer.offer(login(user=b"user%d" % number))
    await until(lambda: bench.redis.asked > 3)
    assert bench.writer.waiting <= MOST_WAITING
    assert bench.writer.lost == 50
    assert [line for line in bench.log if "lost" in line] == [
        "error: 50 logins are lost: Redis did not take them in time"
    ]
    bench.redis.answers = True
    await until(lambda: not bench.writer.waiting)
    await end(bench, writing)
    users = [command[2].split(b" ", 2)[2] for command in bench.redis.taken[::2]]
    assert users == [b"user%d" % number for number in range(50, MOST_WAITING + 50)]


async def test_logins_that_come_by_the_hundred_in_each_turn_of_the_loop_are_all_written() -> None:
    bench = Bench()
    writing = asyncio.create_task(bench.writer.run())
    for turn in range(300):
        for number in range(100):
            bench.writer.offer(login(user=b"user%d-%d" % (turn, number)))
        await asyncio.sleep(0)
    await end(bench, writing)
    assert (bench.writer.lost, bench.writer.recorded) == (0, 30_000)


async def test_what_redis_does_not_take_at_the_end_is_lost_and_said() -> None:
    bench = Bench()
    bench.redis.answers = False
    bench.writer.offer(login())
    bench.writer.stop()
    await bench.writer.run()
    assert bench.log == ["error: 1 logins are lost: Redis did not take them in time"]


async def test_each_login_is_told_where_log_logins_says_so() -> None:
    bench = Bench(log_logins="yes")
    bench.writer.offer(login(user=b"a\x1b b"))
    bench.writer.offer(login()._replace(address="127.0.0.1"))
    assert bench.log == [
        'info: login client_address=192.0.2.7 user="a? b" service=imap ttl=1800',
        "info: not_recorded client_address=127.0.0.1 user=alice service=imap reason=loopback",
    ]
