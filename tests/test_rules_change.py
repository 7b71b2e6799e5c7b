"""A request that is being decided when the rules change is decided by those it began with.

What was asked for it are the keys of the old rules; read by the new ones they would say something else.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import pytest

from pbs_policy.decision.rules import Rules
from pbs_policy.decision.sender import SenderRules
from pbs_policy.log import Log
from pbs_policy.service.server import PolicyServer
from pbs_policy.store.batch import Answered
from pbs_policy.table.keys import Keys
from tests.service import request
from tests.test_patience import Transport

ALICE = b"1763881234 imap alice@example.com"
PLAIN = Rules()
MATCHING = Rules(senders=SenderRules("address"))
ELSEWHERE = Rules(services=frozenset({"pop3"}))


class Patient:
    """A Redis that answers when it is told to: Alice is logged in, with time left, and nothing stands against her."""

    def __init__(self) -> None:
        self._asked: list[tuple[Sequence[bytes], Sequence[Any], Answered]] = []

    def ask(self, keys: Sequence[bytes], answered: Answered) -> None:
        self.ask_further(keys, (), answered)

    def ask_further(self, keys: Sequence[bytes], commands: Sequence[Any], answered: Answered) -> None:
        self._asked.append((keys, commands, answered))

    def answer(self) -> bool:
        """Answer what was asked; whether there was anything."""
        asked, self._asked = self._asked, []
        for keys, commands, answered in asked:
            values = [ALICE if re.search(rb":login:[^,]*(,alice@example.com)?$", key) else None for key in keys]
            answered(values, [500_000 if command[0] == b"PTTL" else 0 for command in commands])
        return bool(asked)


class Heard(Transport):
    """What was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


@pytest.mark.parametrize("rounds", [0, 1])
@pytest.mark.parametrize(
    ("before", "after"),
    [(PLAIN, MATCHING), (MATCHING, PLAIN), (PLAIN, ELSEWHERE), (MATCHING, ELSEWHERE)],
    ids=["match-comes", "match-goes", "services-come", "services-come-with-match"],
)
def test_what_is_being_decided_goes_on_by_the_rules_it_began_with(before: Rules, after: Rules, rounds: int) -> None:
    redis: Any = Patient()
    server = PolicyServer(Keys("pbs:"), redis, Log(io.BytesIO()))
    server.rules = before
    connection, transport = server.connection(), Heard()
    spoken: Any = transport
    connection.connection_made(spoken)
    connection.data_received(request("192.0.2.7"))
    for _ in range(rounds):
        redis.answer()
    assert transport.written == b""
    server.rules = after
    while redis.answer():
        pass
    assert transport.written == b"action=OK\n\n"
    connection.data_received(request("192.0.2.7", sender="mallory@example.org"))
    while redis.answer():
        pass
    refused = after is not PLAIN
    assert transport.written.removeprefix(b"action=OK\n\n") == (b"action=DUNNO\n\n" if refused else b"action=OK\n\n")
