"""Decisions are published while somebody watches, within bounds, and not at all while nobody does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from redis import Redis

from pbs_policy.decision.candidate import Candidate
from pbs_policy.decision.rules import NO_LOGIN, OK, Decision
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.postfix.protocol import as_request
from pbs_policy.service import events as module
from pbs_policy.service.events import MOST, Events, Publisher
from pbs_policy.store.batch import Answered
from pbs_policy.store.lookups import Lookups
from pbs_policy.store.question import Command
from tests.service import Service, request

BY_LOGIN = Candidate(b"pbs:login:192.0.2.7", "192.0.2.7", b"1700000000 pop3 alice@example.com", b"alice@example.com")
LOGIN = Decision(OK, "login", BY_LOGIN, 60.0)


ASKED = as_request(request("192.0.2.7"))


def test_a_decision_is_a_line_of_json() -> None:
    events = Events("mx1", lambda: 1_700_000_000.1234)
    events.note(LOGIN, "192.0.2.7", ASKED)
    (line,), dropped = events.take()
    assert json.loads(line) == {
        "time": 1_700_000_000.123, "host": "mx1", "action": "OK", "reason": "login", "client_address": "192.0.2.7",
        "user": "alice@example.com", "service": "pop3", "sender": "alice@example.com", "recipient": "bob@example.net",
    }  # fmt: skip
    assert (dropped, events.take()) == (0, ([], 0))


def test_what_finds_no_room_is_dropped_and_counted() -> None:
    events = Events("mx1")
    for _ in range(MOST + 5):
        events.note(NO_LOGIN, "192.0.2.7", ASKED)
    lines, dropped = events.take()
    assert (len(lines), dropped) == (MOST, 5)


class FakeLookups:
    """Takes commands, and answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Command] = []
        self._waiting: list[Answered] = []

    def ask(self, keys: Sequence[bytes], commands: Sequence[Command], answered: Answered) -> None:
        assert not keys
        self.asked += commands
        self._waiting.append(answered)

    ask_further = ask

    def answer(self, *, is_available: bool = True) -> None:
        for each in self._waiting:
            each([] if is_available else None, [1] if is_available else [])
        self._waiting.clear()

    def messages(self) -> list[list[dict[str, Any]]]:
        assert all(command[:2] == (b"PUBLISH", b"pbs:events") for command in self.asked)
        return [[json.loads(line) for line in command[2].split(b"\n")] for command in self.asked]


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> FakeLookups:
    monkeypatch.setattr(module, "INTERVAL", 0.001)
    return FakeLookups()


def publisher(lookups: FakeLookups) -> Publisher:
    return Publisher(cast(Lookups, lookups), b"pbs:events", "mx1", lambda: {"pid": 7, "counts": {"OK login": 1}})


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def test_while_watched_messages_are_published_again_and_again(lookups: FakeLookups) -> None:
    published = publisher(lookups)
    assert published.set_watched(False) is None
    events = published.set_watched(True)
    assert events is not None
    assert published.set_watched(True) is events
    lookups.answer()
    events.note(LOGIN, "192.0.2.7", ASKED)
    await until(lambda: len(lookups.asked) == 2)
    lookups.answer()
    await until(lambda: len(lookups.asked) == 3)
    first, second, third = lookups.messages()
    assert first == [{"host": "mx1", "batch": 1, "dropped": 0, "pid": 7, "counts": {"OK login": 1}}]
    assert [each["client_address"] for each in second[1:]] == ["192.0.2.7"]
    assert [message[0]["batch"] for message in (first, second, third)] == [1, 2, 3]


async def test_a_message_that_redis_has_not_taken_is_not_followed_by_another(lookups: FakeLookups) -> None:
    events = publisher(lookups).set_watched(True)
    assert events is not None
    for _ in range(3 * MOST):
        events.note(LOGIN, "192.0.2.7", ASKED)
    await asyncio.sleep(0.02)
    assert len(lookups.asked) == 1
    lookups.answer()
    await until(lambda: len(lookups.asked) == 2)
    message = lookups.messages()[1]
    assert (len(message) - 1, message[0]["dropped"]) == (MOST, 2 * MOST)


async def test_what_redis_did_not_take_counts_as_dropped(lookups: FakeLookups) -> None:
    events = publisher(lookups).set_watched(True)
    assert events is not None
    lookups.answer()
    events.note(LOGIN, "192.0.2.7", ASKED)
    await until(lambda: len(lookups.asked) == 2)
    lookups.answer(is_available=False)
    await until(lambda: len(lookups.asked) == 3)
    assert lookups.messages()[2][0]["dropped"] == 1


async def test_when_nobody_watches_any_more_it_ends(lookups: FakeLookups) -> None:
    published = publisher(lookups)
    published.set_watched(True)
    lookups.answer()
    assert published.set_watched(False) is None
    await asyncio.sleep(0.02)
    assert len(lookups.asked) == 1
    again = published.set_watched(True)
    assert again is not None
    assert len(lookups.asked) == 2


def number_of_publishes(client: Redis) -> int:
    stats: Any = client.info("commandstats")
    return int(stats.get("cmdstat_publish", {}).get("calls", 0))


def test_a_service_publishes_while_the_key_is_there(
    start_service: Callable[..., Service], own_redis: Callable[..., PrivateRedis]
) -> None:
    server = own_redis()
    with Redis(port=server.port) as client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
        client.set("pbs:login:192.0.2.7", b"%d pop3 alice@example.com" % time.time(), ex=60)
        service = start_service(redis_url=server.url)
        service.ask("192.0.2.7")
        pubsub.subscribe("pbs:events")
        assert number_of_publishes(client) == 0
        client.set("pbs:watching", "1", ex=60)
        heard: list[dict[str, Any]] = []

        def hears(condition: Callable[[dict[str, Any]], bool]) -> bool:
            while (message := pubsub.get_message(timeout=0.01)) is not None:
                heard.extend(json.loads(line) for line in message["data"].split(b"\n"))
            return any(condition(each) for each in heard)

        assert wait_until(lambda: hears(lambda each: each.get("pid") == service.pid))
        assert heard[0]["counts"] == {"OK login": 1}
        service.ask("192.0.2.7")
        service.ask("192.0.2.8", sender="\x1b[31m")
        assert wait_until(lambda: hears(lambda each: each.get("reason") == "no_login"))
        login, stranger = (each for each in heard if "action" in each)
        assert (login["action"], login["user"], login["service"]) == ("OK", "alice@example.com", "pop3")
        assert (stranger["client_address"], stranger["sender"]) == ("192.0.2.8", "?[31m")
        client.delete("pbs:watching")
        client.config_resetstat()

        def has_ended() -> bool:
            before = number_of_publishes(client)
            time.sleep(0.5)  # more than two messages' time
            return number_of_publishes(client) == before

        assert wait_until(has_ended)
        assert service.ask("192.0.2.7") == "OK"


def test_a_redis_that_refuses_to_publish_does_not_disturb_the_answers(
    start_service: Callable[..., Service], own_redis: Callable[..., PrivateRedis]
) -> None:
    server = own_redis()
    with Redis(port=server.port) as client:
        client.execute_command("ACL", "SETUSER", "default", "-publish")
        client.set("pbs:watching", "1", ex=60)
        client.set("pbs:login:192.0.2.7", b"%d pop3 alice@example.com" % time.time(), ex=60)
        service = start_service(redis_url=server.url)
        assert service.waits_to_log("publish")
        assert [service.ask("192.0.2.7") for _ in range(20)] == ["OK"] * 20
