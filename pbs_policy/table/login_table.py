"""What administrators do with the login table: look, permit, deny, revoke. (Relay checks of the service: `lookups`.)

The names of the keys are described in `keys`, their values in `records`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, cast

from pbs_policy.address import ClientAddress, Network, Target, networks_of
from pbs_policy.store.bulk import BATCH, escape_glob, next_cursor, scan_command
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.store.question import Answer, Command, Question
from pbs_policy.table.keys import EVERYBODY, NO_END, Keys
from pbs_policy.table.listing import Deny, Entry, Listing, Progress, encode, is_within
from pbs_policy.table.networks import parse_lengths, serialise_lengths
from pbs_policy.table.permits import refuse_deny, refuse_permit
from pbs_policy.table.records import Permit, Record, parse_record, serialise_permit, serialise_record
from pbs_policy.table.users import complete_user, names_of_user

if TYPE_CHECKING:
    from pbs_policy.store.connect import RedisClient

__all__ = ["Deny", "Entry", "LoginTable", "StoreUnavailable"]

Seen = Callable[[str, Record], object]
"""Told of a login: the client's address, and what was recorded of it."""

_TRIES = 100  # to write what others write too: each of them that fails has let another one through


class LoginTable:
    """Every method raises StoreUnavailable where Redis cannot be asked."""

    def __init__(
        self, redis: RedisClient, prefix: str, *, user_domain: str = "", now: Callable[[], float] = time.time
    ) -> None:
        self.redis = redis
        self._user_domain = user_domain
        self.now = now
        self.keys = Keys(prefix)
        self._listing = Listing(redis, self.keys, self._name_of)

    def name(self, user: str) -> bytes:
        """A user as keys name it: folded, and completed by user_domain."""
        return self._name_of(encode(user))

    def _name_of(self, user: bytes) -> bytes:
        return complete_user(user, self._user_domain) or user.lower()

    def ask(self, question: Question) -> Answer:
        """The answer to a decision's question, in the order in which the service asks it (`store/batch.py`)."""
        commands = [*question.commands]
        if question.keys:
            commands.append((b"MGET", *question.keys))
        replies = self.redis.ask(commands)
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
        within: Network | None = None,
        progress: Progress = lambda _count: None,
    ) -> Iterator[Entry]:
        """Every login and permit, or those of one address, of one user, or `within` a network, in no order, read as
        it goes; `progress` is told how many keys were read.

        A login is listed once for each user behind its address. An entry that changes meanwhile may be missed or
        seen twice, as Redis' SCAN has it.
        """
        if client_address:
            for entry in self._listing.entries_at(client_address):
                if not user or self.name(entry.record.user) == self.name(user):
                    yield entry
        is_meant = partial(is_within, outer=within) if within else None
        yield from self._listing.entries(is_meant, user, progress, behind=client_address)

    def permits_around(self, target: Target) -> list[Entry]:
        """The permits of wider networks that hold `target`: they permit it too."""
        return list(self._listing.permits(self._around(target, self.keys.permit_networks)))

    def is_denied(self, target: Target) -> bool:
        """Whether exactly this address or network is denied, by an administrator or auto_deny."""
        names = self._deny_names(target)
        values, _ = self.read([key(name) for name in names for key in (self.keys.deny, self.keys.auto_deny)])
        return any(value is not None for value in values)

    def is_user_denied(self, user: bytes) -> bool:
        """Whether a user is denied, as keys name them."""
        values, _ = self.read([self.keys.deny_user(user)])
        return values[0] is not None

    def denied_around(self, target: Target) -> list[str]:
        """The wider networks that hold `target` and are denied, and EVERYBODY where that is so."""
        if target.length:
            names = self._around(target, self.keys.deny_networks)
        else:
            (lengths,), _ = self.read([self.keys.deny_networks])
            names = ClientAddress(target.text, host=target.host).names_denied(parse_lengths(lengths))
        own = self._deny_names(target)
        names = [name for name in names if name not in own] + [EVERYBODY]
        values, _ = self.read([self.keys.deny(name) for name in names])
        return [name for name, value in zip(names, values, strict=True) if value is not None]

    def _around(self, target: Target, lengths_key: bytes) -> list[str]:
        """The networks wider than `target` that hold it, of the lengths in use."""
        (lengths,), _ = self.read([lengths_key])
        address = target.text.partition("/")[0] if target.length else target.text
        networks = networks_of(address, parse_lengths(lengths))
        return [each for each in networks if not target.length or int(each.partition("/")[2]) < target.length[1]]

    def login_keys(self, client_address: str, user: str, *, with_domain: bool) -> list[bytes]:
        """The keys under which a login is recorded, as the post-login script does: the address', which its users
        share; the user's behind it; and with `with_domain` (sender_match = domain) that of the user's domain."""
        names = names_of_user(self.name(user), "")
        return [self.keys.login(client_address, name) for name in (b"", *names[: 2 if with_domain else 1])]

    def permit(self, target: Target, permit: Permit, ttl: float) -> None:
        """Let an address or network relay for `ttl` seconds under the conditions of `permit`. Raises AddressError
        for one that must not be permitted (`permits.refuse_permit`)."""
        self.write([self.permitting(target, permit, ttl)])

    def permitting(self, target: Target, permit: Permit, ttl: float) -> Command:
        """The command that permits (`permit`); the length of a network is known already then."""
        refuse_permit(target)
        self._add_length(self.keys.permit_networks, target.length, ttl)
        return set_command(self.keys.permit(target.text), serialise_permit(permit), ttl)

    def deny(
        self, target: Target | None, reason: str, ttl: float, *, replaces: bool = False, is_automatic: bool = False
    ) -> float | None:
        """Refuse an address or network, or everybody (None), for `ttl` seconds, whatever else stands in the table.

        A deny that lasts longer stays as it is unless this one `replaces` it: then the seconds it has left, infinite
        for one without an end. `is_automatic`: as the service does. Raises AddressError for a network of everybody.
        """
        if target:
            refuse_deny(target)
        keys = self.keys
        if target:
            self._add_length(
                keys.auto_deny_networks if is_automatic else keys.deny_networks, target.deny_length, ttl
            )
        text = target.text if target else EVERYBODY
        return self._write_deny(keys.auto_deny(text) if is_automatic else keys.deny(text), reason, ttl, replaces)

    def write(self, commands: Sequence[Command]) -> None:
        """Say these to Redis, in one go."""
        self.redis.ask(commands)

    def deny_user(self, user: bytes, reason: str, ttl: float, *, replaces: bool = False) -> float | None:
        """Refuse for `ttl` seconds what a user's logins and permits give; `user` as keys name it (`name`). As with
        `deny`, one that lasts longer stays."""
        self._mark_user_denies(ttl)
        stays = self._write_deny(self.keys.deny_user(user), reason, ttl, replaces)
        self._mark_user_denies(ttl)  # whoever has ended the last deny meanwhile may have taken the mark away
        return stays

    def _write_deny(self, key: bytes, reason: str, ttl: float, replaces: bool) -> float | None:
        stays: float | None = None

        def command(replies: Sequence[Any]) -> Command | None:
            nonlocal stays
            (value,), milliseconds = replies
            left = float("inf") if milliseconds == NO_END else milliseconds / 1000
            # Where a key of another type stands (MGET: None), nobody is denied.
            stays = left if value is not None and left > ttl and not replaces else None
            return None if stays else set_command(key, encode(reason), ttl)

        self._write_watched(key, [(b"MGET", key), (b"PTTL", key)], command)
        return stays

    def undeny(self, target: Target | None) -> bool:
        """End the denies of an address or network, or of everybody (None); whether there was one."""
        names = self._deny_names(target) if target else [EVERYBODY]
        return bool(self._delete([key(name) for name in names for key in (self.keys.deny, self.keys.auto_deny)]))

    def _deny_names(self, target: Target) -> list[str]:
        """Under which names a deny of exactly this may stand: of an address also the one that another ipv6_prefix
        gives it."""
        return [target.text, target.host] if target.host else [target.text]

    def undeny_user(self, user: bytes) -> bool:
        """End the deny of a user; whether there was one."""
        was_denied = bool(self._delete([self.keys.deny_user(user)]))
        self._write_watched(self.keys.user_denies, [], lambda _: self._mark_of_what_is_left())
        return was_denied

    def _mark_user_denies(self, ttl: float) -> None:
        """Make known that a user is denied, for longer than the deny lasts."""
        key = self.keys.user_denies

        def command(replies: Sequence[Any]) -> Command | None:
            (value,), left = replies
            return None if value is not None and left == NO_END else _set_for_longer(key, b"1", ttl, left)

        self._write_watched(key, [(b"MGET", key), (b"TTL", key)], command)

    def _mark_of_what_is_left(self) -> Command | None:
        """What makes the mark last as long as the denies of users do."""
        key = self.keys.user_denies
        left = [each.left for each in self.denies() if each.kind == "user"]
        if not left:
            return (b"DEL", key)
        longest = max(float("inf") if each is None else each for each in left)
        return None if longest == float("inf") else (b"SET", key, b"1", b"EX", b"%d" % (int(longest) + 2))

    def denies(self, *, progress: Progress = lambda _count: None) -> Iterator[Deny]:
        """Every deny, in no order, read as it goes."""
        yield from self._listing.denies(progress)

    def has_denies_or_permits(self) -> bool:
        """Whether any stands: what nobody gets again by logging in, if it is lost."""
        keys = self.keys
        prefixes = (keys.deny_prefix, keys.deny_user_prefix, keys.permit_prefix)
        batches = self._scan(keys.prefix, lambda _count: None)
        return any(key.startswith(prefixes) for batch in batches for key in batch)

    def _add_length(self, key: bytes, length: tuple[int, int] | None, ttl: float) -> None:
        """Make a prefix length known, before what is found by it is written, and for longer."""
        if length is None:
            return

        def command(replies: Sequence[Any]) -> Command:
            (value,), left = replies
            lengths = serialise_lengths(parse_lengths(value) | {length})
            if value is not None and left == NO_END:  # a deny without an expiry holds, as long as it is found
                return (b"SET", key, lengths)
            return _set_for_longer(key, lengths, ttl, left)

        self._write_watched(key, [(b"MGET", key), (b"TTL", key)], command)

    def _write_watched(
        self, key: bytes, reads: Sequence[Command], command: Callable[[Sequence[Any]], Command | None]
    ) -> None:
        """Say to Redis what `command` makes of the replies to `reads`, if anything; again where `key` was changed in
        between."""
        for _ in range(_TRIES):
            if self.redis.rewrite(key, reads, command):
                return
        raise StoreUnavailable(f"{key.decode('utf-8', 'replace')} changes faster than it can be written")

    def revoke_address(
        self, client_address: str, progress: Progress = lambda _count: None, seen: Seen = lambda _at, _login: None
    ) -> list[str]:
        """Delete every login and permit of an address, and return it if there were any. As for the others that
        revoke, `progress` is told how many keys were looked at, and `seen` of each login that is deleted."""
        # What is asked for first goes first: the rest takes a look at every key there is.
        count = self._take(self.keys.relay(client_address), seen)
        for keys in self._scan(self.keys.login(client_address) + b",", progress):
            count += self._take(keys, seen)
        return [client_address] if count else []

    def revoke_network(
        self, network: str, progress: Progress = lambda _count: None, seen: Seen = lambda _at, _login: None
    ) -> list[str]:
        """Delete every login and permit within a network, and return the addresses and networks they were for."""
        return self._revoke_where(partial(is_within, outer=ip_network(network)), progress, seen)

    def revoke_all(
        self, progress: Progress = lambda _count: None, seen: Seen = lambda _at, _login: None
    ) -> list[str]:
        """Delete every login and permit, and return the addresses and networks they were for."""
        return self._revoke_where(lambda _: True, progress, seen)

    def _revoke_where(self, is_meant: Callable[[str], bool], progress: Progress, seen: Seen) -> list[str]:
        revoked: set[str] = set()
        doomed: list[bytes] = []
        for prefix in (self.keys.login_prefix, self.keys.permit_prefix):
            for keys in self._scan(prefix, progress):
                for key in keys:
                    target = key.removeprefix(prefix).partition(b",")[0].decode("utf-8", "replace")
                    if is_meant(target):
                        doomed.append(key)
                        revoked.add(target)
                self._take(doomed, seen)
                doomed.clear()
        return sorted(revoked)

    def revoke_user(
        self, user: str, progress: Progress = lambda _count: None, seen: Seen = lambda _at, _login: None
    ) -> list[str]:
        """Delete every login and permit of `user`, and return the addresses they were for.

        Others who are logged in from the same address keep it: a key that they share with `user`, and that names
        `user`, is written anew from the login among theirs that lasts longest.
        """
        entries = list(self.entries(user=user, progress=progress))
        name = self.name(user)
        names = names_of_user(name, "")
        self._delete([self.keys.permit(entry.target) for entry in entries if entry.kind == "permit"])
        logins = [entry for entry in entries if entry.kind == "login"]
        for login in logins:
            seen(login.target, login.record)
        addresses = sorted({login.target for login in logins})
        self._delete([self.keys.login(address, own) for address in addresses for own in names[:1]])
        others: dict[str, list[Entry]] = {address: [] for address in addresses}
        # One look at every key for all addresses together: a SCAN of one address takes as long.
        for other in self._listing.entries(others.__contains__, "", progress) if others else ():
            if other.kind == "login" and other.left and self.name(other.record.user) != name:
                others[other.target].append(other)
        for address in addresses:
            self._hand_over(self.keys.login(address), name, others[address])
            for domain in names[1:]:
                alike = [
                    other for other in others[address] if domain in names_of_user(self.name(other.record.user), "")
                ]
                self._hand_over(self.keys.login(address, domain), name, alike)
        return sorted({entry.target for entry in entries})

    def _hand_over(self, key: bytes, name: bytes, others: list[Entry]) -> None:
        """Take a shared key from the user `name`, if it is theirs now, and give it to the one of `others` who is
        logged in longest."""
        (value,), _ = self.read([key])
        record = parse_record(value) if value is not None else None
        if record is None or self.name(record.user) != name:
            return
        if not others:
            self._delete([key])
            return
        heir = max(others, key=lambda entry: entry.left or 0)
        self.write([set_command(key, serialise_record(heir.record), heir.left or 0)])

    def _scan(self, prefix: bytes, progress: Progress) -> Iterator[list[bytes]]:
        """The keys that begin with `prefix`, a batch at a time."""
        cursor: bytes | None = b"0"
        cursors: set[bytes] = set()
        while cursor is not None:
            ((at, keys),) = self.redis.ask([scan_command(cursor, escape_glob(prefix) + b"*", BATCH)])
            progress(BATCH)
            yield keys
            cursor = next_cursor(at, cursors)

    def _take(self, keys: list[bytes], seen: Seen) -> int:
        """Delete keys, and tell of each login among them; how many there were."""
        if not keys:
            return 0
        values, count = self.redis.ask([(b"MGET", *keys), (b"DEL", *keys)])
        prefix = self.keys.login_prefix
        for key, value in zip(keys, values, strict=True):
            if key.startswith(prefix) and value is not None and (record := parse_record(value)):
                seen(key.removeprefix(prefix).partition(b",")[0].decode("utf-8", "replace"), record)
        return cast("int", count)

    def _delete(self, keys: list[bytes]) -> int:
        return cast("int", self.redis.ask([(b"DEL", *keys)])[0]) if keys else 0


def _set_for_longer(key: bytes, value: bytes, ttl: float, left: int) -> Command:
    """What sets a key for longer than what is written next lasts, and not for less than the seconds it has left."""
    return (b"SET", key, value, b"EX", b"%d" % max(int(ttl) + 2, left))


def set_command(key: bytes, value: bytes, ttl: float) -> Command:
    return (b"SET", key, value, b"PX", b"%d" % max(1, int(ttl * 1000)))
