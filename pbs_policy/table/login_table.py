"""What administrators do with the login table: permit, deny, revoke, and look (`listing`). (Relay checks of the
service: `lookups`.)

The names of the keys are described in `keys`, their values in `records`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from pbs_policy.address import Network, Target
from pbs_policy.store.bulk import BATCH, escape_glob, next_cursor, scan_command
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.store.question import Command
from pbs_policy.table.keys import EVERYBODY, NO_END
from pbs_policy.table.listing import Deny, Entry, Listing, Progress, encode, is_within, untold
from pbs_policy.table.networks import parse_lengths, serialise_lengths
from pbs_policy.table.permits import refuse_deny, refuse_permit
from pbs_policy.table.records import Permit, Record, parse_record, serialise_permit, serialise_record
from pbs_policy.table.users import names_of_user

__all__ = ["Deny", "Entry", "LoginTable", "StoreUnavailable"]

Seen = Callable[[str, Record], object]
"""Told of a login: the client's address, and what was recorded of it."""

_TRIES = 100  # to write what others write too: each of them that fails has let another one through


class LoginTable(Listing):
    """What stands in the table, and what changes it."""

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
        keys = self.keys
        key, lengths = (keys.auto_deny, keys.auto_deny_networks) if is_automatic else (keys.deny, keys.deny_networks)
        if target:
            refuse_deny(target)
            self._add_length(lengths, target.deny_length, ttl)
        return self._write_deny(key(target.text if target else EVERYBODY), reason, ttl, replaces)

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
        return bool(self._delete(self._deny_keys(target)))

    def undeny_user(self, user: bytes) -> bool:
        """End the deny of a user; whether there was one."""
        was_denied = bool(self._delete([self.keys.deny_user(user)]))
        self._write_watched(self.keys.user_denies, [], lambda _: self._mark_of_what_is_left())
        return was_denied

    def _mark_user_denies(self, ttl: float) -> None:
        """Make known that a user is denied."""
        self._write_before(self.keys.user_denies, ttl, lambda _: b"1")

    def _mark_of_what_is_left(self) -> Command | None:
        """What makes the mark last as long as the denies of users do."""
        key = self.keys.user_denies
        left = [each.left for each in self.denies() if each.kind == "user"]
        if not left:
            return (b"DEL", key)
        longest = max(float("inf") if each is None else each for each in left)
        return None if longest == float("inf") else (b"SET", key, b"1", b"EX", b"%d" % (int(longest) + 2))

    def has_denies_or_permits(self) -> bool:
        """Whether any stands: what nobody gets again by logging in, if it is lost."""
        keys = self.keys
        prefixes = (keys.deny_prefix, keys.deny_user_prefix, keys.permit_prefix)
        batches = self._scan(keys.prefix, untold)
        return any(key.startswith(prefixes) for batch in batches for key in batch)

    def _add_length(self, key: bytes, length: tuple[int, int] | None, ttl: float) -> None:
        """Make a prefix length known."""
        if length:
            self._write_before(key, ttl, lambda value: serialise_lengths(parse_lengths(value) | {length}))

    def _write_before(self, key: bytes, ttl: float, new: Callable[[bytes | None], bytes]) -> None:
        """Write what is needed to find something, before that is written for `ttl` seconds, and for longer."""
        def command(replies: Sequence[Any]) -> Command:
            (value,), left = replies
            has_no_end = value is not None and left == NO_END  # what is found by it may have none either
            end = () if has_no_end else (b"EX", b"%d" % max(int(ttl) + 2, left))
            return (b"SET", key, new(value), *end)

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

    def revoke_address(self, address: str, progress: Progress = untold, seen: Seen = untold) -> list[str]:
        """Delete every login and permit of an address, and return it if there were any. As for the others that
        revoke, `progress` is told how many keys were looked at, and `seen` of each login that is deleted."""
        # What is asked for first goes first: the rest takes a look at every key there is.
        count = self._take(self.keys.relay(address), seen)
        for keys in self._scan(self.keys.login(address) + b",", progress):
            count += self._take(keys, seen)
        return [address] if count else []

    def revoke_all(
        self, progress: Progress = untold, seen: Seen = untold, *, within: Network | None = None
    ) -> list[str]:
        """Delete every login and permit, or those `within` a network, and return what they were for."""
        revoked: set[str] = set()
        for prefix in (self.keys.login_prefix, self.keys.permit_prefix):
            for keys in self._scan(prefix, progress):
                targets = {key: self.target(key) for key in keys}
                doomed = [key for key, target in targets.items() if within is None or is_within(target, within)]
                self._take(doomed, seen)
                revoked |= {targets[key] for key in doomed}
        return sorted(revoked)

    def revoke_user(self, user: str, progress: Progress = untold, seen: Seen = untold) -> list[str]:
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
        for other in self.entries(is_meant=others.__contains__, progress=progress) if others else ():
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
        for key, value in zip(keys, values, strict=True):
            if key.startswith(self.keys.login_prefix) and value is not None and (record := parse_record(value)):
                seen(self.target(key), record)
        return cast("int", count)

    def _delete(self, keys: list[bytes]) -> int:
        return cast("int", self.redis.ask([(b"DEL", *keys)])[0]) if keys else 0


def set_command(key: bytes, value: bytes, ttl: float) -> Command:
    return (b"SET", key, value, b"PX", b"%d" % max(1, int(ttl * 1000)))
