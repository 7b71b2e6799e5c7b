"""Where a watcher's knowledge comes from: the channel on which the services publish, and the login table.

The services publish while the key `watching` is there: `look` renews it. Logins are not published. They are found by
reading the table each second, as long as a SCAN of `MOST_KEYS` keys gets to its end; in a larger table those of the
addresses for which decisions were seen. It costs Redis 1 % of its time, 2 % where the table is as large as that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from pbs_policy.log import printable
from pbs_policy.store.bulk import BATCH, escape_glob, scan_command
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.table.keys import GONE, NO_END
from pbs_policy.table.records import Record, parse_permit, parse_record
from pbs_policy.watch.state import LOGIN, PERMIT, Relay, Table

if TYPE_CHECKING:
    from pbs_policy.store.connect import Subscription
    from pbs_policy.table.login_table import LoginTable

WATCHING = 5
"""Seconds that the services go on publishing without hearing of us."""

MOST_KEYS = 10_000
"""Keys that are looked at in one second, of whatever kind: with their values 17 ms of Redis' time, in portions."""

_TRY_AGAIN = 60  # looks before a table that was too large is tried again
_ALL_ENDS = 10  # looks after which the ends of all keys are read again: an EXPIRE does not show in the value


class Source:
    """One watcher's view of Redis. Every method raises StoreUnavailable."""

    def __init__(self, table: LoginTable, now: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._redis = table.redis
        self._keys = table.keys
        self._now = now
        self._channel: Subscription | None = None
        self._looks = 0
        self._rest = 0  # looks without a SCAN that are left
        self._ends: dict[bytes, tuple[bytes, float | None]] = {}  # by key: its value, and when it ends

    def listen(self) -> list[bytes]:
        """What was published since the last time. After a lost connection this subscribes anew."""
        try:
            if self._channel is None:
                self._channel = self._redis.subscribe(self._keys.events)
            return self._channel.arrived()
        except StoreUnavailable:
            self._unsubscribe()
            raise

    def look(self, addresses: Collection[str]) -> tuple[Table, float]:
        """Say that somebody watches; what stands in the table, all of it or that of `addresses`; and the seconds that
        Redis took for the first answer."""
        begun = time.perf_counter()
        self._redis.ask([(b"SET", self._keys.watching, b"1", b"EX", b"%d" % WATCHING)])
        answer_time = time.perf_counter() - begun
        self._looks += 1
        found = self._scan()
        if found is None:
            names = [key for address in addresses for key in self._keys.relay(address)]
            return Table(self._read(names), frozenset(addresses)), answer_time
        names, denies = found
        return Table(self._read(names), None, denies), answer_time

    def close(self) -> None:
        """Let go of the connection for messages; the services notice within `WATCHING`."""
        self._unsubscribe()

    def _unsubscribe(self) -> None:
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

    def _read(self, keys: Sequence[bytes]) -> dict[tuple[str, str, str], Relay]:
        """What stands under these keys. An end is asked for again where the value has changed, or by and by."""
        values: dict[bytes, bytes] = {}
        for some in _portions(keys):
            (found,) = self._redis.ask([(b"MGET", *some)])
            values |= {key: each for key, each in zip(some, found, strict=True) if each is not None}
        known = {} if self._looks % _ALL_ENDS == 0 else self._ends
        unknown = [key for key, each in values.items() if key not in known or known[key][0] != each]
        ends = {key: self._ends[key] for key in values if key in known}
        for some in _portions(unknown):
            left = self._redis.ask([(b"PTTL", key) for key in some])
            for key, each in zip(some, left, strict=True):
                ends[key] = (values[key], None if each == NO_END else self._now() + max(each, 0) / 1000)
                if each == GONE:
                    del values[key]
        self._ends = {key: ends[key] for key in values}
        return self._relays(values)

    def _relays(self, values: dict[bytes, bytes]) -> dict[tuple[str, str, str], Relay]:
        """One for each user behind an address: the address' own key says the same as that of its last user."""
        relays: dict[tuple[str, str, str], Relay] = {}
        for key, each in values.items():
            kind, prefix = (LOGIN, self._keys.login_prefix)
            record: Record | None = None
            if key.startswith(self._keys.permit_prefix):
                kind, prefix = (PERMIT, self._keys.permit_prefix)
                permit = parse_permit(each)
                record = permit.record if permit else None
            else:
                record = parse_record(each)
            if record is None:
                continue
            target = printable(key.removeprefix(prefix).partition(b",")[0].decode("utf-8", "replace"))
            name = (kind, target, self._table.name(record.user).decode("utf-8", "replace"))
            relay = Relay(kind, target, printable(record.user), record.service, record.login_at, self._ends[key][1])
            other = relays.get(name)
            if other is None or _later(relay.ends, other.ends):
                relays[name] = relay
        return relays


def _later(one: float | None, other: float | None) -> bool:
    return other is not None and (one is None or one > other)


def _portions(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (keys[start : start + BATCH] for start in range(0, len(keys), BATCH))
