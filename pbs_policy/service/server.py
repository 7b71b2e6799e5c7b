"""The policy server: what all connections from Postfix share, how many there may be, and how they end together.

Each connection is one of `connection`; the listening sockets belong to `serve`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

from pbs_policy.address import ClientAddress, ClientAddresses, networks_of
from pbs_policy.decision.case import Case
from pbs_policy.decision.denies import Denies
from pbs_policy.decision.rules import Rules
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.log import Log, printable
from pbs_policy.postfix.protocol import Request
from pbs_policy.service import decision_line
from pbs_policy.service.connection import SWEEP_INTERVAL, Connection
from pbs_policy.service.events import Events
from pbs_policy.service.reload import Configuration
from pbs_policy.service.stats import no_counts
from pbs_policy.service.turns import Turns
from pbs_policy.service.uses import Uses
from pbs_policy.store.lookups import Lookups
from pbs_policy.table.keys import Keys
from pbs_policy.table.networks import Lengths
from pbs_policy.table.usage import Usage

_SWEPT_AT_ONCE = 50
"""Connections that a sweep looks at before the others have their turn again: to end one costs 20 us."""

_TOLD = 100
"""Disconnected peers that are named between two sweeps; the others are counted. Ten thousand lines tell no more."""

_READ_AT_ONCE = 16_384
"""Bytes. A request of Postfix' is one or two kB. The loops' own 256 kB are 5,000 requests of a peer that sends
without waiting: a thousand such peers would cost a second to read, and half a gigabyte to keep."""

_REPORTED_ONCE = 1_024  # addresses with a key that has no end, before the oldest would be reported again


class PolicyServer:
    """What the connections share. Give `connection` to the loop's create_server; `stop` answers what is in flight."""

    def __init__(
        self, keys: Keys, lookups: Lookups, log: Log, note_wait: Callable[[float], None] | None = None
    ) -> None:
        """It goes by what it is told to `follow`. `permit_lengths` (none at first) and `events` (None while nobody
        watches) are kept up to date by `upkeep`, which writes `counts` and what `uses` notes, too. `note_wait` is
        told for how many seconds each request waited for its decision."""
        self.rules = Rules()
        self.addresses = ClientAddresses()
        self.log_decisions = "permitted"
        self.maps: SenderMaps | None = None
        self.denies: Denies | None = None
        self.keys = keys
        self.lookups = lookups
        self.permit_lengths: Lengths = frozenset()
        self.uses = Uses(keys)
        self.note_wait = note_wait
        self.counts = no_counts()
        self.events: Events | None = None
        self.log = log
        self.decision_line = decision_line.as_json if log.is_json else decision_line.as_text
        self.connections: set[Connection] = set()
        self.turns = Turns()
        self.buffer = memoryview(bytearray(_READ_AT_ONCE))
        self.most_connections = sys.maxsize  # for which there are descriptors
        self.stopping = False
        self._disconnected = 0  # peers that broke the protocol since the last sweep
        self._displaced = 0  # connections that made room for others since the last sweep
        self._all_closed = asyncio.Event()
        self.report_no_end = lru_cache(_REPORTED_ONCE)(self._report_no_end)

    def follow(self, configuration: Configuration) -> None:
        """Decide by this from the next request on; what is being decided goes on by the rules it began with."""
        settings = configuration.settings
        self.rules, self.addresses, self.log_decisions = settings.rules, settings.addresses, settings.log_decisions
        self.maps, self.denies = configuration.maps, configuration.denies
        usage = Usage.following(self.uses.usage, settings.key_prefix, settings.usage_kept)
        self.uses.follow(usage, self.rules.senders, self.maps)

    def connection(self) -> Connection:
        """The protocol of one new connection."""
        return Connection(self)

    def case(self, client: ClientAddress, request: Request) -> Case:
        """What is to be decided on `request`. Raises ProtocolError (`case.Case`)."""
        networks = networks_of(client.text, self.permit_lengths) if self.permit_lengths else ()
        return Case(client, request, self.rules, self.keys, self.maps, networks, denies=self.denies)

    def add(self, connection: Connection) -> None:
        """A connection is open. Where it is one too many, those that have been silent for the longest make room."""
        self.connections.add(connection)
        excess = len(self.connections) - self.most_connections
        if excess > 0:
            # And a few more: to look at all of them for each newcomer would cost more than to answer him.
            waiting = sorted((each for each in self.connections if each.is_idle), key=lambda each: each.silent_sweeps)
            leaving = waiting[-(excess + self.most_connections // 16) :]
            self._displaced += len(leaving)
            for each in leaving:
                self.connections.discard(each)
                each.abort()

    def report_disconnection(self, line: str) -> None:
        """A peer is disconnected for what `line` says. Told, unless many are."""
        self._disconnected += 1
        if self._disconnected <= _TOLD:
            self.log.warning(line)

    def forget(self, connection: Connection) -> None:
        """A connection is closed."""
        self.connections.discard(connection)
        if self.stopping and not self.connections:
            self._all_closed.set()

    def _report_no_end(self, client_address: str) -> None:
        key = printable(self.keys.login(client_address).decode())
        self.log.error(f"a permission without an end is not honoured: {key} or the permit beside it, see redis' TTL")

    async def sweep(self) -> None:
        """Close, for as long as the server runs, what is idle for too long or never completes a request."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            await self.sweep_once()

    async def sweep_once(self) -> None:
        """Look at every connection, a portion at a time, and say what came to many since the last look."""
        for number, connection in enumerate(list(self.connections), 1):
            connection.sweep()
            if number % _SWEPT_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._report_many()

    def _report_many(self) -> None:
        """Say how many met what was not said of each one."""
        if self._disconnected > _TOLD:
            self.log.warning(f"and {self._disconnected - _TOLD} more peers were disconnected in {SWEEP_INTERVAL} s")
        if self._displaced:
            self.log.warning(
                f"{self._displaced} connections, silent for the longest, were closed to make room for others: "
                f"the limit of open files (LimitNOFILE= in the unit, or ulimit -n) allows {self.most_connections}"
            )
        self._disconnected = self._displaced = 0

    async def stop(self, within: float) -> None:
        """Part with idle connections at once, with the others when they have their answer, all `within` seconds."""
        self.stopping = True
        for connection in list(self.connections):
            connection.leave()
        if self.connections:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), within)
        for connection in list(self.connections):
            connection.abort()
