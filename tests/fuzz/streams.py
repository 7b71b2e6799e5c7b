"""Random byte streams at the policy server, as many as asked: `python -m tests.fuzz.streams 1000000` (`make fuzz`).

Not a test that pytest collects: a million streams take minutes. Each is made of pieces of real requests, broken on
purpose, cut anywhere, and answered from a table that holds anything. What must hold: no exception but ProtocolError
(which closes the connection), no reply but the three actions, no more replies than requests, no OK without a
permission in the table that has time left and no deny.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from pbs_policy.address import ClientAddresses, parse_network
from pbs_policy.decision.rules import Rules
from pbs_policy.decision.sender import SenderRules
from pbs_policy.log import Log
from pbs_policy.service.server import PolicyServer
from pbs_policy.store.batch import Answered
from pbs_policy.store.question import Command
from pbs_policy.table.keys import Keys
from tests.fuzz.transport import Transport

CAPTURES = [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "captures" / "policy").iterdir())]
REPLY = re.compile(rb"action=(OK|DUNNO|DEFER_IF_REJECT [\x20-\x7e]+)\n\n")
LOGIN = b"1795453232 imap alice@example.com"
VALUES = [None, None, LOGIN, b"1795453232", b"", b"x", b"\xff 1", b"1795453232 imap \xff\n"]
ADDRESSES = [b"192.0.2.7", b"2001:db8::7", b"::ffff:192.0.2.7", b"127.0.0.1", b"unknown", b"", b"fe80::1%br0", b"1.2"]


class AnyTable:
    """In place of `lookups`: answers at the caller's `turn`, with anything, and knows what would justify an OK."""

    def __init__(self, randomness: random.Random) -> None:
        self._randomness = randomness
        self._asked: list[tuple[Sequence[bytes], Sequence[Command], Answered]] = []
        self.justified = 0

    def ask(self, keys: Sequence[bytes], answered: Answered) -> None:
        self.ask_further(keys, (), answered)

    def ask_further(self, keys: Sequence[bytes], commands: Sequence[Command], answered: Answered) -> None:
        self._asked.append((keys, commands, answered))

    def turn(self) -> None:
        asked, self._asked = self._asked, []
        for keys, commands, answered in asked:
            if self._randomness.random() < 0.05:
                answered(None, ())
                continue
            values = [self._randomness.choice(VALUES) for _ in keys]
            left = [self._randomness.choice([-2, -1, 0, 1, 1_800_000]) for _ in commands]
            denied = any(value is not None for key, value in zip(keys, values, strict=True) if b":deny:" in key)
            self.justified += bool(commands) and max(left) > 0 and not denied
            answered(values, left)


def make_stream(randomness: random.Random) -> bytes:
    """A few requests, most of them broken in some way."""
    parts = []
    for _ in range(randomness.randint(1, 4)):
        data = randomness.choice(CAPTURES)
        data = re.sub(rb"client_address=[^\n]*", b"client_address=" + randomness.choice(ADDRESSES), data)
        for _ in range(randomness.choice([0, 0, 1, 2, 5])):
            at = randomness.randrange(len(data))
            noise = randomness.choice([b"", b"\n", b"=", b"\r\n", b"\0", b"\xff", b"\n\n", randomness.randbytes(8)])
            data = data[:at] + noise + data[at + randomness.choice([0, 1, 20]) :]
        parts.append(data)
    if randomness.random() < 0.1:
        parts.insert(randomness.randrange(len(parts) + 1), randomness.randbytes(randomness.randrange(2_000)))
    return b"".join(parts)


def run_stream(server: PolicyServer, table: AnyTable, randomness: random.Random) -> int:
    """One stream through one connection. Returns how many replies it got; raises where an invariant breaks."""
    stream = make_stream(randomness)
    transport: Any = Transport()
    connection = server.connection()
    connection.connection_made(transport)
    justified = table.justified
    position = 0
    while position < len(stream) and not transport.closed:
        size = randomness.choice([1, 7, 16, 100, 8192, 8192])
        connection.data_received(stream[position : position + size])
        position += size
        table.turn()
        table.turn()
    for _ in range(20):
        table.turn()
    connection.connection_lost(None)
    replies = REPLY.findall(transport.written)
    if b"".join(b"action=" + reply + b"\n\n" for reply in replies) != transport.written:
        raise AssertionError(f"not replies: {transport.written!r} to {stream!r}")
    if len(replies) > stream.count(b"\n\n"):
        raise AssertionError(f"{len(replies)} replies to {stream!r}")
    if replies.count(b"OK") > table.justified - justified:
        raise AssertionError(f"an OK that nothing justified: {stream!r}")
    return len(replies)


async def main(number: int, seed: int) -> None:
    randomness = random.Random(seed)
    table: Any = AnyTable(randomness)
    rules = [Rules(), Rules(SenderRules("domain")), Rules(SenderRules("address")), Rules(on_unavailable="dunno")]
    addresses = ClientAddresses(64, (parse_network("192.0.2.0/30"),))
    servers = [PolicyServer(each, addresses, Keys("pbs:"), table, Log(BytesIO()), "none") for each in rules]
    began, replies = time.monotonic(), 0
    for count in range(number):
        replies += run_stream(servers[count % len(servers)], table, randomness)
    seconds = time.monotonic() - began
    print(f"{number} streams (seed {seed}), {replies} replies, {seconds:.0f} s: nothing but ProtocolError")


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    asyncio.run(main(*(arguments + [1_000_000, 1][len(arguments) :])))
