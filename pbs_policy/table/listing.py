"""What stands in the login table, as it is read for listings and exports: entries and denies, a batch at a time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import TYPE_CHECKING, NamedTuple

from pbs_policy.address import Network, lies_in
from pbs_policy.store.bulk import KeyBatch, escape_glob, read_keys
from pbs_policy.table.keys import EVERYBODY, GONE, NO_END, Keys
from pbs_policy.table.records import Permit, Record, parse_permit, parse_record, user_of_record
from pbs_policy.table.users import names_of_user

if TYPE_CHECKING:
    from pbs_policy.store.connect import RedisClient

ADMINISTRATOR, AUTO_DENY = "administrator", "auto_deny"
"""Whose a deny in Redis is."""

Progress = Callable[[int], object]
"""Told how many keys were read, as they are read."""


class Entry(NamedTuple):
    """One row of a listing: `kind` is `login` or `permit`; `left` is seconds, None for a key without an end. A
    permit's `target` may be a network."""

    kind: str
    target: str
    record: Record
    left: float | None
    permit: Permit | None = None


class Deny(NamedTuple):
    """One deny: `kind` is `address` (or network, or EVERYBODY) or `user`; `left` is seconds, None without an end;
    `by` is ADMINISTRATOR, AUTO_DENY, or the place in the file of denies."""

    kind: str
    target: str
    reason: str
    left: float | None
    by: str = ADMINISTRATOR


class Listing:
    """Reads the keys of one table. `name` gives a user as keys name it, both as bytes. Raises StoreUnavailable."""

    def __init__(self, redis: RedisClient, keys: Keys, name: Callable[[bytes], bytes]) -> None:
        self._redis = redis
        self._keys = keys
        self._name = name
        self._is_domains = re.compile(re.escape(keys.login_prefix) + rb"[^,]*,@").match

    def entries(
        self, is_meant: Callable[[str], bool] | None, user: str, progress: Progress, *, behind: str = ""
    ) -> Iterator[Entry]:
        """Logins and permits: those whose address or network `is_meant`, those of `user`, those `behind` one address
        by its users' names."""
        logins, permits = self._keys.login_prefix, self._keys.permit_prefix
        name = self._name(encode(user))

        def wanted(keys: list[bytes]) -> list[bytes]:
            keys = [key for key in keys if key.startswith((logins, permits)) and not self._is_domains(key)]
            return [key for key in keys if is_meant(self._target(key))] if is_meant else keys

        # The logins of an address, or one pass over everything: looking for permits alone would take as long again.
        pattern = logins + behind.encode() + b"," if behind else self._keys.prefix
        for batch in read_keys(self._redis, escape_glob(pattern) + b"*", wanted, self._users_keys, progress):
            yield from self._entries(batch, name)

    def entries_at(self, address: str) -> Iterator[Entry]:
        """What is known of one address besides its users' own keys: its permit, and its last login where none of
        those says the same."""
        keys = self._keys.relay(address)
        batch = self._read(keys)
        others = self._users_keys(keys, batch.values)
        yield from self._entries(batch._replace(further=others, further_values=self._read(others).values), b"")

    def permits(self, networks: list[str]) -> Iterator[Entry]:
        """The permits of these networks."""
        yield from self._entries(self._read([self._keys.permit(network) for network in networks]), b"")

    def denies(self, progress: Progress) -> Iterator[Deny]:
        """Every deny."""
        kinds = {
            self._keys.deny_prefix: ("address", ADMINISTRATOR),
            self._keys.deny_user_prefix: ("user", ADMINISTRATOR),
            self._keys.auto_deny_prefix: ("address", AUTO_DENY),
        }
        prefixes = tuple(kinds)
        pattern = escape_glob(self._keys.prefix) + b"*deny*"

        def wanted(keys: list[bytes]) -> list[bytes]:
            return [key for key in keys if key.startswith(prefixes)]

        for batch in read_keys(self._redis, pattern, wanted, progress=progress):
            for key, value, left in zip(batch.keys, batch.values, batch.left, strict=True):
                prefix = next(each for each in prefixes if key.startswith(each))
                seconds = _seconds(left, batch.asked_at)
                if value is not None and seconds != 0:
                    kind, by = kinds[prefix]
                    yield Deny(kind, _decode(key.removeprefix(prefix)), _decode(value), seconds, by)

    def _entries(self, batch: KeyBatch, name: bytes) -> Iterator[Entry]:
        """Of each login and permit one row. An address' own key is shown where no user's key says the same, and where
        its missing end needs a look."""
        logins, permits = len(self._keys.login_prefix), self._keys.permit_prefix
        doubled = {
            other[: other.index(b",", logins)]
            for other, value in zip(batch.further, batch.further_values, strict=True)
            if value is not None
        }
        for key, value, left in zip(batch.keys, batch.values, batch.left, strict=True):
            if value is None or (key in doubled and left != NO_END):
                continue
            seconds = _seconds(left, batch.asked_at)
            if seconds == 0:
                continue
            if key.startswith(permits):
                permit = parse_permit(value)
                if permit and (not name or self._name(encode(permit.user)) == name):
                    yield Entry("permit", self._target(key), permit.record, seconds, permit)
                continue
            record = parse_record(value)
            if record and (not name or self._name(encode(record.user)) == name):
                yield Entry("login", key[logins:].partition(b",")[0].decode("utf-8", "replace"), record, seconds)

    def _users_keys(self, keys: list[bytes], values: list[bytes | None]) -> list[bytes]:
        """Of keys that are an address' own, with a login of a known user: that user's key."""
        prefix = self._keys.login_prefix
        found = []
        for key, value in zip(keys, values, strict=True):
            if value is not None and key.find(b",", len(prefix)) < 0 and key.startswith(prefix):
                user = user_of_record(value)
                names = names_of_user(self._name(user), "") if user else ()
                if names:
                    found.append(key + b"," + names[0])
        return found

    def _target(self, key: bytes) -> str:
        """The address or network of a login or permit."""
        for prefix in (self._keys.login_prefix, self._keys.permit_prefix):
            if key.startswith(prefix):
                return key[len(prefix) :].partition(b",")[0].decode("utf-8", "replace")
        return ""

    def _read(self, keys: list[bytes]) -> KeyBatch:
        """The batch of exactly these keys."""
        asked_at = time.monotonic()
        if not keys:
            return KeyBatch([], [], [], asked_at)
        values, *left = self._redis.ask([(b"MGET", *keys), *[(b"PTTL", key) for key in keys]])
        return KeyBatch(keys, values, left, asked_at)


def is_within(target: str, outer: Network) -> bool:
    """Whether an address or network lies in `outer`."""
    try:
        inner = ip_network(target)
    except ValueError:
        return False
    return lies_in(inner, outer)


def is_deny_of_everybody(deny: Deny) -> bool:
    """Whether a deny stands against all relaying."""
    return deny.kind == "address" and deny.target == EVERYBODY


def _seconds(left: int, asked_at: float) -> float | None:
    """Seconds left of what had `left` milliseconds then: the reader may have taken its time. None without an end, 0
    where it is gone."""
    if left == NO_END:
        return None
    return 0 if left == GONE else max(0.0, left / 1000 - (time.monotonic() - asked_at))


def encode(text: str) -> bytes:
    """A user or a reason as Redis has it."""
    return text.encode("utf-8", "surrogateescape")


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
