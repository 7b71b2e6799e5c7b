"""What stands in the login table, as it is read for listings and exports: entries and denies, a batch at a time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_network
from typing import TYPE_CHECKING, NamedTuple

from pbs_policy.address import ClientAddress, Network, Target, lies_in, networks_of
from pbs_policy.store.bulk import KeyBatch, escape_glob, read_keys
from pbs_policy.store.question import Answer, Question
from pbs_policy.table.keys import EVERYBODY, GONE, NO_END, Keys
from pbs_policy.table.networks import parse_lengths
from pbs_policy.table.records import Permit, Record, parse_permit, parse_record, user_of_record
from pbs_policy.table.users import complete_user, names_of_user

if TYPE_CHECKING:
    from pbs_policy.store.connect import RedisClient

ADMINISTRATOR, AUTO_DENY = "administrator", "auto_deny"
"""Whose a deny in Redis is."""

Progress = Callable[[int], object]
"""Told how many keys were read, as they are read."""


def untold(*_: object) -> None:
    """Where nobody wants to be told."""


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
    """Reads the keys of one table. Every method raises StoreUnavailable where Redis cannot be asked."""

    def __init__(
        self, redis: RedisClient, prefix: str, *, user_domain: str = "", now: Callable[[], float] = time.time
    ) -> None:
        self.redis = redis
        self.now = now
        self.keys = Keys(prefix)
        self._user_domain = user_domain
        self._is_domains = re.compile(re.escape(self.keys.login_prefix) + rb"[^,]*,@").match

    def name(self, user: str | bytes) -> bytes:
        """A user as keys name it: folded, and completed by user_domain."""
        recorded = encode(user) if isinstance(user, str) else user
        return complete_user(recorded, self._user_domain) or recorded.lower()

    def ask(self, question: Question) -> Answer:
        """The answer to a decision's question, in the order in which the service asks it (`store/batch.py`)."""
        commands = [*question.commands]
        if question.keys:
            commands.append((b"MGET", *question.keys))
        replies = self.redis.ask(commands) if commands else []
        return Answer(replies.pop() if question.keys else (), replies)

    def read(self, keys: Iterable[bytes], ends: Iterable[bytes] = ()) -> tuple[list[bytes | None], list[int]]:
        """The values of `keys` (None: not found), and the milliseconds left of each of `ends` (NO_END, GONE)."""
        values, left = self.ask(Question(list(keys), [(b"PTTL", key) for key in ends]))
        return list(values), list(left)

    def entries(
        self,
        client_address: str = "",
        user: str = "",
        *,
        is_meant: Callable[[str], bool] | None = None,
        progress: Progress = untold,
    ) -> Iterator[Entry]:
        """Every login and permit, or those of one address, of one user, or those whose address or network `is_meant`,
        in no order, read as it goes; `progress` is told how many keys were read.

        A login is listed once for each user behind its address. An entry that changes meanwhile may be missed or
        seen twice, as Redis' SCAN has it.
        """
        logins, permits = self.keys.login_prefix, self.keys.permit_prefix
        name = self.name(user)
        if client_address:  # its permit, and its last login where none of its users' own keys says the same
            yield from self._entries(self._read(self.keys.relay(client_address)), name)

        def wanted(keys: list[bytes]) -> list[bytes]:
            keys = [key for key in keys if key.startswith((logins, permits)) and not self._is_domains(key)]
            return [key for key in keys if is_meant(self.target(key))] if is_meant else keys

        # The logins of an address, or one pass over everything: looking for permits alone would take as long again.
        pattern = self.keys.login(client_address) + b"," if client_address else self.keys.prefix
        for batch in read_keys(self.redis, escape_glob(pattern) + b"*", wanted, progress):
            yield from self._entries(batch, name)

    def permits_around(self, target: Target) -> list[Entry]:
        """The permits of wider networks that hold `target`: they permit it too."""
        return self.entries_under(map(self.keys.permit, self._around(target, self.keys.permit_networks)))

    def entries_under(self, keys: Iterable[bytes]) -> list[Entry]:
        """The logins and permits under exactly these keys, each key by itself: an address' own key as well."""
        return list(self._entries(self._read(list(keys)), b"", shows_doubled=True))

    def is_denied(self, target: Target) -> bool:
        """Whether exactly this address or network is denied, by an administrator or auto_deny."""
        return self._is_any(self._deny_keys(target))

    def is_user_denied(self, user: bytes) -> bool:
        """Whether a user is denied, as keys name them."""
        return self._is_any([self.keys.deny_user(user)])

    def _is_any(self, keys: list[bytes]) -> bool:
        return any(value is not None for value in self.read(keys)[0])

    def _deny_keys(self, target: Target | None) -> list[bytes]:
        """Under which keys a deny of exactly this may stand, or of everybody (None); of an address also under the
        name that another ipv6_prefix gives it."""
        names = _names(target) if target else [EVERYBODY]
        return [key(name) for name in names for key in (self.keys.deny, self.keys.auto_deny)]

    def denied_around(self, target: Target) -> list[str]:
        """The wider networks that hold `target` and are denied, and EVERYBODY where that is so."""
        if target.length:
            names = self._around(target, self.keys.deny_networks)
        else:
            (lengths,), _ = self.read([self.keys.deny_networks])
            names = ClientAddress(target.text, host=target.host).names_denied(parse_lengths(lengths))
        names = [name for name in names if name not in _names(target)] + [EVERYBODY]
        values, _ = self.read([self.keys.deny(name) for name in names])
        return [name for name, value in zip(names, values, strict=True) if value is not None]

    def _around(self, target: Target, lengths_key: bytes) -> list[str]:
        """The networks wider than `target` that hold it, of the lengths in use."""
        (lengths,), _ = self.read([lengths_key])
        address = target.text.partition("/")[0] if target.length else target.text
        networks = networks_of(address, parse_lengths(lengths))
        return [each for each in networks if not target.length or int(each.partition("/")[2]) < target.length[1]]

    def denies(self, *, progress: Progress = untold) -> Iterator[Deny]:
        """Every deny, in no order, read as it goes."""
        kinds = {
            self.keys.deny_prefix: ("address", ADMINISTRATOR),
            self.keys.deny_user_prefix: ("user", ADMINISTRATOR),
            self.keys.auto_deny_prefix: ("address", AUTO_DENY),
        }
        prefixes = tuple(kinds)
        pattern = escape_glob(self.keys.prefix) + b"*deny*"

        def wanted(keys: list[bytes]) -> list[bytes]:
            return [key for key in keys if key.startswith(prefixes)]

        for batch in read_keys(self.redis, pattern, wanted, progress=progress):
            for key, value, left in zip(batch.keys, batch.values, batch.left, strict=True):
                prefix = next(each for each in prefixes if key.startswith(each))
                seconds = _seconds(left, batch.asked_at)
                if value is not None and seconds != 0:
                    kind, by = kinds[prefix]
                    yield Deny(kind, _decode(key.removeprefix(prefix)), _decode(value), seconds, by)

    def _entries(self, batch: KeyBatch, name: bytes, *, shows_doubled: bool = False) -> Iterator[Entry]:
        """Of each login and permit one row. An address' own key is shown where no user's key says the same, and where
        its missing end needs a look; with `shows_doubled` always."""
        permits = self.keys.permit_prefix
        users = {} if shows_doubled else dict(self._users_keys(batch))
        standing = zip(users, self.read(users.values())[0], strict=True)
        doubled = {key for key, value in standing if value is not None}
        for key, value, left in zip(batch.keys, batch.values, batch.left, strict=True):
            if value is None or (key in doubled and left != NO_END):
                continue
            seconds = _seconds(left, batch.asked_at)
            if seconds == 0:
                continue
            permit = None
            if key.startswith(permits):
                permit = parse_permit(value)
                record = permit.record if permit else None
            else:
                record = parse_record(value)
            if record and (not name or self.name(record.user) == name):
                yield Entry("permit" if permit else "login", self.target(key), record, seconds, permit)

    def _users_keys(self, batch: KeyBatch) -> Iterator[tuple[bytes, bytes]]:
        """Each key that is an address' own, with a login of a known user; and that user's key."""
        prefix = self.keys.login_prefix
        for key, value in zip(batch.keys, batch.values, strict=True):
            if value is not None and key.find(b",", len(prefix)) < 0 and key.startswith(prefix):
                user = user_of_record(value)
                names = names_of_user(self.name(user), "") if user else ()
                if names:
                    yield key, key + b"," + names[0]

    def target(self, key: bytes) -> str:
        """The address or network of a login or permit."""
        prefixes = (self.keys.login_prefix, self.keys.permit_prefix)
        prefix = next(each for each in prefixes if key.startswith(each))
        return key.removeprefix(prefix).partition(b",")[0].decode("utf-8", "replace")

    def _read(self, keys: list[bytes]) -> KeyBatch:
        """The batch of exactly these keys."""
        asked_at = time.monotonic()
        return KeyBatch(keys, *self.read(keys, keys), asked_at)


def _names(target: Target) -> list[str]:
    return [target.text, target.host] if target.host else [target.text]


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
