"""The sums for the report are written beside the requests: a few at a time, never in vain, and all before the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from pbs_policy.decision.candidate import login_under
from pbs_policy.decision.rules import OK, Decision
from pbs_policy.decision.sender import SenderRules
from pbs_policy.log import Log
from pbs_policy.service import upkeep as module
from pbs_policy.service.server import PolicyServer
from pbs_policy.service.upkeep import Upkeep
from pbs_policy.store.lookups import Lookups
from pbs_policy.store.question import Answer, Command, Question
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import Keys
from pbs_policy.table.usage import PAIRS_AT_ONCE, Usage

pytestmark = pytest.mark.timeout(60)  # without what is held here, some never end

PAIRS = 5 * PAIRS_AT_ONCE


class SilentLog:
    """Takes what is logged."""

    is_json = False

    def __init__(self) -> None:
        self.errors: list[str] = []

    def error(self, line: str) -> None:
        self.errors.append(line)

    def tell_repeats(self) -> None:
        pass

    def flush(self) -> None:
        pass


class FakeLookups(Lookups):
    """Answers in the next turn of the loop; `reply` says what to a command, None where it is not carried out."""

    def __init__(self, log: Log) -> None:
        super().__init__(RedisUrl.parse("redis://127.0.0.1"), "", "", b"t:probe", log)
        self.reply: Callable[[Command], int | None] = lambda command: 0 if command[0] == b"HLEN" else 1
        self.rounds: list[list[Command]] = []
        self._open = False

    def put(self, question: Question) -> asyncio.Future[Answer | None]:
        self._loop = asyncio.get_running_loop()
        return super().put(question)

    def ask_further(self, keys: Sequence[bytes], commands: Sequence[Command], answered: Any) -> None:
        loop = asyncio.get_running_loop()
        if not self._open:
            self._open = True
            self.rounds.append([])
            loop.call_soon(self._end_round)
        self.rounds[-1] += commands
        replies = [self.reply(each) for each in commands]
        is_given = None not in replies
        loop.call_soon(answered, [None] * len(keys) if is_given else None, replies if is_given else ())

    def _end_round(self) -> None:
        self._open = False

    @property
    def recipients(self) -> int:
        """How many were written in all."""
        commands = [command for each in self.rounds for command in each if command[0] == b"HINCRBY"]
        return sum(int(number) for _, _, field, number in commands if field.startswith(b"n "))


class Site:
    """A server with sums that wait, its upkeep, and a Redis that does as it is told."""

    def __init__(self) -> None:
        log = cast("Log", SilentLog())
        self.lookups = FakeLookups(log)
        self.usage = Usage("t:", 86_400)
        self.server = PolicyServer(Keys("t:"), self.lookups, log)
        self.server.uses.follow(self.usage, SenderRules(), None)
        self.upkeep = Upkeep(self.server)
        self.note(PAIRS)

    def note(self, count: int) -> None:
        for number in range(count):
            self.usage.note("192.0.2.7", f"user{number}@example.com", False)


@pytest.fixture
def site() -> Site:
    return Site()


async def test_the_sums_are_written_in_pieces_and_the_loop_is_free_in_between(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await real_sleep(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await site.upkeep.write_usage()
    assert site.lookups.recipients == PAIRS
    assert max(map(len, site.lookups.rounds)) <= 2 * PAIRS_AT_ONCE + 3
    assert pauses == [module.WRITE_PAUSE] * (PAIRS // PAIRS_AT_ONCE)


async def test_who_relays_meanwhile_does_not_keep_the_writing_going(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_PAUSE", 0)

    def reply(command: Command) -> int:
        site.usage.note("192.0.2.8", f"{len(site.lookups.rounds)}@example.com", False)
        return 1

    site.lookups.reply = reply
    await site.upkeep.write_usage()
    assert len(site.lookups.rounds) == PAIRS // PAIRS_AT_ONCE


async def test_sums_that_redis_does_not_take_are_tried_once_and_kept(site: Site) -> None:
    works, site.lookups.reply = site.lookups.reply, lambda _: None
    await site.upkeep.write_usage()
    assert len(site.lookups.rounds) == 1
    site.lookups.rounds.clear()
    site.lookups.reply = works
    await site.upkeep.write_usage()
    assert site.lookups.recipients == PAIRS


async def test_what_is_noted_while_sums_are_written_is_written_before_the_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_INTERVAL", 0.001)
    works = site.lookups.reply

    def reply(command: Command) -> int | None:
        if command[0] == b"HINCRBY" and not site.upkeep._stopping.is_set():
            site.note(3)
            site.upkeep.stop()
        return works(command)

    site.lookups.reply = reply
    await site.upkeep.run()
    assert site.lookups.recipients == PAIRS + 3


async def test_at_the_end_it_is_waited_for_whose_the_last_recipients_were(site: Site) -> None:
    await site.upkeep.write_usage()
    login = login_under("192.0.2.7", b"t:login:192.0.2.7", b"1763881234 imap alice@example.com", "")
    site.server.uses.note("192.0.2.7", b"\nsender=bob@example.com\n\n", Decision(OK, "login", login))
    site.upkeep.stop()
    await site.upkeep.write_usage()
    assert site.lookups.recipients == PAIRS + 1
