"""Bytes of a client and bytes of Redis into the service, bytes out: nothing but lines of a known action leave it, one
for each request at most, and no OK without a time that is left in what Redis said. No request waits for ever: it is
answered, or its connection is closed. No exception leaves the protocols, whoever sent the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

from pbs_policy.address import ClientAddresses, parse_network
from pbs_policy.cap import Cap
from pbs_policy.decision.rules import Rules
from pbs_policy.decision.sender import SenderRules
from pbs_policy.log import Log
from pbs_policy.service.events import Events
from pbs_policy.service.server import PolicyServer
from pbs_policy.service.turns import Turns
from pbs_policy.store.batch import Answered, Answering, Batch
from pbs_policy.store.question import Command
from pbs_policy.store.redis_line import RedisLine
from pbs_policy.table.keys import Keys
from tests.fuzz.targets import TOO_MANY, Supply
from tests.fuzz.transport import Transport

_ONE = b"request=smtpd_access_policy\nclient_address=%s\nsender=%s\nrecipient=bob@example.net\ninstance=%s\n\n"
_ADDRESSES = (b"192.0.2.7", b"2001:db8::7", b"::ffff:192.0.2.7", b"127.0.0.1", b"unknown", b"198.51.100.1")
_SENDERS = (b"alice@example.com", b"", b"carol@example.org", b"ALICE+x@example.com", b"@example.com", b"a\xff@b\x1b")
_PERMITS = (b'{"given_at": 1795453232, "senders": ["@example.com"]}', b'{"given_at": 1795453232, "cap": "1/1h"}')
_TEXTS = (
    b"1795453232 imap alice@example.com", b"1795453232", b"", b"4/24 6/48", b"1 pop3 \xff\n \x1b[1m: x", *_PERMITS,
)  # fmt: skip
_VALUES = (
    *[b"$-1\r\n"] * 3, *[b"$%d\r\n%s\r\n" % (len(text), text) for text in _TEXTS], b":5\r\n", b"*0\r\n",
    b"-ERR no\r\n", b"_\r\n",
)  # fmt: skip
_REPLIES = (
    b":1800000\r\n", b":1800000\r\n", b":-1\r\n", b":-2\r\n", b":0\r\n", b":1\r\n", b":2\r\n", b"+OK\r\n", b"$-1\r\n",
    b"-NOPERM no\r\n", b"$2\r\nOK\r\n", b"(36893488147419103232\r\n", b"#t\r\n", b",1.5\r\n", b"*1\r\n:7\r\n",
)  # fmt: skip
_RULES = (
    Rules(),
    Rules(SenderRules("domain", "example.com")),
    Rules(SenderRules("address", recipient_delimiter="+", null_sender="permit"), on_unavailable="dunno"),
    Rules(address_cap=Cap(1, 60), user_cap=Cap(2, 60), auto_deny=60, services=frozenset(["imap"])),
    Rules(observe_only=True, require_tls=True),
)
_ACTION = re.compile(rb"action=(OK|DUNNO|DEFER_IF_REJECT 4\.3\.0 [a-z, ]+)\n\n")
_LINE = re.compile(rb"(?:info|warning|error): [^\x00-\x1f\x7f]+\n")

WORDS = (
    b"request=smtpd_access_policy\n", b"client_address=192.0.2.7\n", b"sender=alice@example.com\n", b"\n\n",
    b"*2\r\n$-1\r\n", b"$33\r\n1795453232 imap alice@example.com\r\n", b":1800000\r\n", b"-ERR x\r\n", b"*4\r\n",
    b"%1\r\n", b"~1\r\n", b">1\r\n", b"|1\r\n", b"=8\r\ntxt:a\r\n", b"_\r\n", b"*-1\r\n",
    b"$1000000000\r\n",
)  # fmt: skip


class _Still:
    """In place of an event loop: time does not pass. Also the timer that `call_at` gives, and a future."""

    def time(self) -> float:
        return 0.0

    def call_at(self, *_: Any) -> _Still:
        return self

    def create_future(self) -> _Still:
        return _Still()

    def cancel(self) -> None:
        pass

    def done(self) -> bool:
        return False

    def set_result(self, _: Any) -> None:
        pass


class Lookups:
    """In place of `lookups`: a turn of the loop is when `turn` is called. The connection is the real one."""

    def __init__(self, log: Log) -> None:
        still: Any = _Still()
        self.transport = Transport()
        transport: Any = self.transport
        self._log = log
        self._batch = Batch(log, Answering())
        self.line = RedisLine(still)
        self.line.connection_made(transport)
        self.said = b""
        self.soon: list[Callable[[], None]] = []  # what is to be called in the next turn

    def ask(self, keys: Sequence[bytes], answered: Answered) -> None:
        assert keys
        self._batch.asks.append((answered, len(keys), 0, 1.0))
        self._batch.keys += keys

    def ask_further(self, keys: Sequence[bytes], commands: Sequence[Command], answered: Answered) -> None:
        assert keys or commands
        self._batch.asks.append((answered, len(keys), len(commands), 1.0))
        self._batch.keys += keys
        self._batch.commands += commands

    def turn(self) -> None:
        soon, self.soon[:] = self.soon.copy(), []
        for each in soon:
            each()
        if self._batch.asks:
            batch, self._batch = self._batch, Batch(self._log, Answering())
            self.line.send(batch)

    def hear(self, data: bytes) -> None:
        """Redis says something."""
        if not self.transport.closed and not TOO_MANY.search(self.said[-20:] + data):
            self.said += data
            self.line.data_received(data)

    def lose(self) -> None:
        """The connection is lost, and none is found: whoever waits is told so."""
        while True:
            self.turn()
            if self.line.in_flight:
                self.line.in_flight.popleft().fail()
            elif not self.soon:
                return


def run(data: bytes) -> None:
    """What happens, in turn: a client sends, Redis answers as it does or says anything, a turn of the loop passes."""
    supply = Supply(data)
    stream = BytesIO()
    log = Log(stream)
    lookups = Lookups(log)
    as_lookups: Any = lookups
    addresses = ClientAddresses(64, (parse_network("198.51.100.0/24"),))
    rules = _RULES[supply.number(len(_RULES))]
    server = PolicyServer(Keys("pbs:"), as_lookups, log)
    server.rules, server.addresses, server.log_decisions = rules, addresses, "all"
    server.turns = Turns(lookups.soon.append)
    server.events = Events("mx1")
    if supply.number(2):
        server.permit_lengths = frozenset([(4, 24), (6, 48)])
    clients = [Transport(), Transport()]
    connections = [server.connection() for _ in clients]
    sent = [b"", b""]
    for connection, client in zip(connections, clients, strict=True):
        transport: Any = client
        connection.connection_made(transport)
    while supply:
        what = supply.number(8)
        which = what % 2
        if what < 2:
            piece = supply.piece()
        elif what < 4:
            piece = _ONE % (_pick(supply, _ADDRESSES), _pick(supply, _SENDERS), supply.take(1).hex().encode())
        elif what == 4:
            lookups.turn()
            continue
        elif what == 5:
            lookups.hear(supply.piece())
            continue
        else:
            lookups.turn()
            lookups.hear(_answer(lookups, supply))
            continue
        if not clients[which].closed:
            sent[which] += piece
            connections[which].data_received(piece)
    lookups.lose()
    for _ in range(4):
        for connection, client in zip(connections, clients, strict=True):
            if not client.closed:
                connection.sweep()
    log.flush()
    _judge(sent, clients, lookups.said, stream.getvalue())


def _judge(sent: list[bytes], clients: list[Transport], said: bytes, logged: bytes) -> None:
    replies = []
    for stream, client in zip(sent, clients, strict=True):
        own = _ACTION.findall(client.written)
        assert b"".join(b"action=" + reply + b"\n\n" for reply in own) == client.written, client.written
        assert len(own) <= stream.count(b"\n\n")
        assert client.closed or not stream.endswith(b"\n\n") or own, "a request waits for ever"
        replies += own
    assert replies.count(b"OK") <= len(re.findall(rb"[:(]\+?0*[1-9]", said)), "an OK that nothing justified"
    for line in logged.splitlines(keepends=True):
        assert _LINE.fullmatch(line), line
    assert b"without an answer" not in logged or b"OK" in said, logged  # OK is a reply to SET, and to nothing else


def _answer(lookups: Lookups, supply: Supply) -> bytes:
    """What Redis might say to the oldest batch."""
    if not lookups.line.in_flight:
        return b""
    batch = lookups.line.in_flight[0]
    values = [_pick(supply, _VALUES) for _ in batch.keys]
    head = [b"*%d\r\n" % len(values), *values] if values else []
    return b"".join(head + [_pick(supply, _REPLIES) for _ in batch.commands])


def _pick(supply: Supply, choices: Sequence[bytes]) -> bytes:
    return choices[supply.number(len(choices))]
