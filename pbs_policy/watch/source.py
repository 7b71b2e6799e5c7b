"""Where a watcher's knowledge comes from: the channel on which the services publish, and the login table.

The services publish while the key `watching` is there: `look` renews it. Logins are not published. They are found by
reading the table each second, as long as a SCAN of `MOST_KEYS` keys gets to its end; in a larger table those of the
addresses for which decisions were seen. It costs Redis 1 % of its time, 2 % where the table is as large as that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from pbs_policy.log import printable
from pbs_policy.store.bulk import BATCH, escape_glob, pieces, scan_command
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.watch.state import Relay, Table

if TYPE_CHECKING:
    from pbs_policy.store.connect import Subscription
    from pbs_policy.table.login_table import LoginTable

WATCHING = 5
"""Seconds that the services go on publishing without hearing of us."""

MOST_KEYS = 10_000
"""Keys that are looked at in one second, of whatever kind: with values and ends 23 ms of Redis' time, in portions."""

_TRY_AGAIN = 60  # looks before a table that was too large is tried again


class Source:
    """One watcher's view of Redis. Every method raises StoreUnavailable."""

    def __init__(self, table: LoginTable, now: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._redis = table.redis
        self._keys = table.keys
        self._now = now
        self._channel: Subscription | None = None
        self._rest = 0  # looks without a SCAN that are left

    def listen(self) -> list[bytes]:
        """What was published since the last time. After a lost connection this subscribes anew."""
        try:
            if self._channel is None:
                self._channel = self._redis.subscribe(self._keys.events)
            return self._channel.arrived()
        except StoreUnavailable:
            self.close()
            raise

    def look(self, addresses: Collection[str]) -> tuple[Table, float]:
        """Say that somebody watches; what stands in the table, all of it or that of `addresses`; and the seconds that
        Redis took for the first answer."""
        begun = time.perf_counter()
        self._redis.ask([(b"SET", self._keys.watching, b"1", b"EX", b"%d" % WATCHING)])
        answer_time = time.perf_counter() - begun
        found = self._scan()
        if found is None:
            names = [key for address in addresses for key in self._keys.relay(address)]
            return Table(self._relays(names), frozenset(addresses)), answer_time
        names, denies = found
        return Table(self._relays(names), None, denies), answer_time

    def close(self) -> None:
        """Let go of the connection for messages; the services notice within `WATCHING`."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _scan(self) -> tuple[list[bytes], int] | None:
        """The keys of logins and permits and the number of denies, or None where the table is too large."""
        if self._rest:
            self._rest -= 1
            return None
        keys = self._keys
        pattern = escape_glob(keys.prefix) + b"*"
        found: set[bytes] = set()
        denies: set[bytes] = set()
        cursor = b"0"
        for _ in range(MOST_KEYS // BATCH):
            ((cursor, names),) = self._redis.ask([scan_command(cursor, pattern, BATCH)])
            for name in names:
                if name.startswith((keys.login_prefix, keys.permit_prefix)):
                    found.add(name)
                elif name.startswith((keys.deny_prefix, keys.deny_user_prefix, keys.auto_deny_prefix)):
                    denies.add(name)
            if cursor == b"0":
                # Those of whole domains say nothing that a user's does not.
                return [key for key in found if not key.partition(b",")[2].startswith(b"@")], len(denies)
        self._rest = _TRY_AGAIN
        return None

    def _relays(self, keys: Iterable[bytes]) -> dict[tuple[str, str, str], Relay]:
        """One for each user behind an address: the address' own key says the same as that of its last user."""
        relays: dict[tuple[str, str, str], Relay] = {}
        for some in pieces(keys, BATCH):
            for kind, target, record, left, _ in self._table.entries_under(some):
                name = kind, target, self._table.name(record.user).decode("utf-8", "replace")
                ends = None if left is None else self._now() + left
                other = relays.get(name)
                if other is None or (other.ends is not None and (ends is None or ends > other.ends)):
                    user = printable(record.user)
                    relays[name] = Relay(kind, printable(target), user, record.service, record.login_at, ends)
        return relays
