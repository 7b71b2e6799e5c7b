"""The login table in Redis: the only module that knows a key's name or a record's format.

It is a public interface: whatever can say one `SET key value EX seconds` to Redis can record a login. Behind the
prefix (`key_prefix`, default `pbs:`) stand

    login:<client_address>             the last login from this address
    login:<client_address>,<user>      the last login of this user from it
    login:<client_address>,@<domain>   the last login from it of any user of this domain; the post-login script
                                       writes it where its settings say sender_match = domain, which alone reads it
    permit:<client_address>            given by an administrator
    deny:<client_address>              a reason; outranks logins and permits until it ends

The value of a login or permit is a record, `<login_at> [<service> [<user>]]`: Unix seconds, one word, and the user
verbatim to the end. Dovecot's last_login plugin writes the first field alone, which is a login without a user. Users
and domains in key names are folded to lower case, ASCII only. Every key has an end; one without is not honoured.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from redis import Redis

NO_END = -1
"""What Redis' PTTL says of a key that would stay for ever."""

GONE = -2
"""What Redis' PTTL says of a key that is not there."""

_RECORD = re.compile(rb"(?P<login_at>[0-9]{1,12})(?: (?P<service>[A-Za-z0-9_-]{1,32})(?: (?P<user>.*))?)?", re.DOTALL)
_BATCH = 500  # keys asked about in one round trip of a listing


class StoreUnavailable(Exception):
    """Redis cannot be asked: refused, mute, or it answers with an error. The message says which and where."""


class Record(NamedTuple):
    """What one login or permit left: when (Unix seconds), by which service, and by whom, as far as known."""

    login_at: int
    service: str = ""
    user: str = ""

    @property
    def user_text(self) -> str:
        """The user for JSON: bytes that are not UTF-8, which `user` keeps as surrogates, become U+FFFD."""
        return self.user.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class Entry(NamedTuple):
    """One row of a listing: `kind` is `login` or `permit`; `left` is seconds, None for a key without an end."""

    kind: str
    client_address: str
    record: Record
    left: float | None


def is_record(value: bytes) -> bool:
    """Whether a key's value is a record; somebody else may have written something else there."""
    return _RECORD.fullmatch(value) is not None


def parse_record(value: bytes) -> Record | None:
    """The record in a key's value, or None where the value is not one."""
    match = _RECORD.fullmatch(value)
    if match is None:
        return None
    service, user = match["service"] or b"", match["user"] or b""
    return Record(int(match["login_at"]), service.decode("ascii"), user.decode("utf-8", "surrogateescape"))


def serialise_record(record: Record) -> bytes:
    """The value that holds `record`; a user without a service is recorded as from service `unknown`."""
    fields = [str(record.login_at).encode()]
    if record.service or record.user:
        fields.append((record.service or "unknown").encode())
    if record.user:
        fields.append(record.user.encode("utf-8", "surrogateescape"))
    return b" ".join(fields)


def names_of_user(user: bytes) -> tuple[bytes, ...]:
    """Under which names a login of `user` is found besides its address: the user, and its `@domain`.

    A user whose name begins with "@" has none: it would pass for everybody of that domain.
    """
    name = user.lower()
    local_part, at, domain = name.rpartition(b"@")
    if not name or name.startswith(b"@"):
        return ()
    return (name, b"@" + domain) if at and local_part and domain else (name,)


class Keys:
    """The names of the keys, as bytes, under one prefix."""

    def __init__(self, prefix: str) -> None:
        self.login_prefix = prefix.encode() + b"login:"
        self.permit_prefix = prefix.encode() + b"permit:"
        self.deny_prefix = prefix.encode() + b"deny:"
        self.probe = prefix.encode() + b"probe"  # never written; reading it shows that Redis answers

    def login(self, client_address: str, name: bytes = b"") -> bytes:
        """The login key of an address, or of a user or `@domain` (`name`, from `names_of_user`) behind it."""
        key = self.login_prefix + client_address.encode()
        return key + b"," + name if name else key

    def relay(self, client_address: str, name: bytes = b"") -> tuple[bytes, ...]:
        """What a relay check reads first: permit, login and, where one must match, the login of `name`."""
        address = client_address.encode()
        login = self.login_prefix + address
        if name:
            return self.permit_prefix + address, login, login + b"," + name
        return self.permit_prefix + address, login

    def permit(self, client_address: str) -> bytes:
        """The key of an administrator's permit."""
        return self.permit_prefix + client_address.encode()

    def deny(self, client_address: str) -> bytes:
        """The key of a deny."""
        return self.deny_prefix + client_address.encode()


class LoginTable:
    """What administrators do with the table: look, permit, revoke. (Relay checks of the service: `lookups`.)

    Every method raises StoreUnavailable where Redis cannot be asked.
    """

    def __init__(self, redis: Redis, prefix: str, *, now: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._now = now
        self.keys = Keys(prefix)

    def read(self, keys: Iterable[bytes], ends: Iterable[bytes] = ()) -> tuple[list[bytes | None], list[int]]:
        """The values of `keys` (None: not found), and the milliseconds left of each of `ends` (NO_END, GONE)."""
        wanted = list(keys)
        with self._asking():
            pipeline = self._redis.pipeline(transaction=False)
            if wanted:
                pipeline.mget(wanted)
            for key in ends:
                pipeline.pttl(key)
            answers = pipeline.execute()
        return (answers.pop(0) if wanted else []), answers

    def permit(self, client_address: str, user: str, ttl: int) -> None:
        """Permit an address by hand for `ttl` seconds; `user` may be empty."""
        value = serialise_record(Record(int(self._now()), "manual", user))
        with self._asking():
            self._redis.set(self.keys.permit(client_address), value, ex=ttl)

    def entries(self, client_address: str = "", user: str = "") -> Iterator[Entry]:
        """Every login and permit, or those of one address or one user, in no order, read as it goes.

        A login is listed once for each user behind its address. An entry that changes meanwhile may be missed or
        seen twice, as Redis' SCAN has it.
        """
        for keys in self._scan(self.keys.login_prefix, client_address, names=True):
            yield from self._logins(keys, _fold(user))
        for keys in self._scan(self.keys.permit_prefix, client_address):
            for address, _, record, left in self._records(keys, self.keys.permit_prefix):
                if not user or _fold(record.user) == _fold(user):
                    yield Entry("permit", address, record, left)

    def revoke_address(self, client_address: str) -> list[str]:
        """Delete every login and permit of an address, and return it if there were any."""
        known = any(self.entries(client_address))
        doomed = [self.keys.permit(client_address)]
        for keys in self._scan(self.keys.login_prefix, client_address, names=True):
            doomed += keys
        self._delete(doomed)
        return [client_address] if known else []

    def revoke_user(self, user: str) -> list[str]:
        """Delete every login and permit of `user`, and return the addresses they were for.

        Others who are logged in from the same address keep it: a key that they share with `user`, and that names
        `user`, is written anew from the login among theirs that lasts longest.
        """
        entries = list(self.entries(user=user))
        name = _fold(user)
        names = names_of_user(name)
        self._delete([self.keys.permit(entry.client_address) for entry in entries if entry.kind == "permit"])
        for address in sorted({entry.client_address for entry in entries if entry.kind == "login"}):
            self._delete([self.keys.login(address, own) for own in names[:1]])
            others = [other for other in self.entries(address) if other.kind == "login" and other.left]
            others = [other for other in others if _fold(other.record.user) != name]
            self._hand_over(self.keys.login(address), name, others)
            for domain in names[1:]:
                alike = [other for other in others if domain in names_of_user(_fold(other.record.user))]
                self._hand_over(self.keys.login(address, domain), name, alike)
        return sorted({entry.client_address for entry in entries})

    def _hand_over(self, key: bytes, name: bytes, others: list[Entry]) -> None:
        """Take a shared key from the user `name`, if it is theirs now, and give it to the one of `others` who is
        logged in longest."""
        (value,), _ = self.read([key])
        record = parse_record(value) if value is not None else None
        if record is None or _fold(record.user) != name:
            return
        if not others:
            self._delete([key])
            return
        heir = max(others, key=lambda entry: entry.left or 0)
        with self._asking():
            self._redis.set(key, serialise_record(heir.record), px=max(1, int((heir.left or 0) * 1000)))

    def _logins(self, keys: list[bytes], name: bytes) -> Iterator[Entry]:
        prefix = self.keys.login_prefix
        rows = [row for row in self._records(keys, prefix) if not row[1].startswith(b"@")]
        rows = [row for row in rows if not name or _fold(row[2].user) == name]
        # An address' own key is shown where no user's key says the same, and where its missing end needs a look.
        own = {address: names_of_user(_fold(record.user)) for address, key_name, record, _ in rows if not key_name}
        doubled = [(address, names[0]) for address, names in own.items() if names]
        found, _ = self.read([self.keys.login(address, user) for address, user in doubled])
        shown_elsewhere = {address for (address, _), value in zip(doubled, found, strict=True) if value is not None}
        for address, key_name, record, left in rows:
            if key_name or left is None or address not in shown_elsewhere:
                yield Entry("login", address, record, left)

    def _records(self, keys: list[bytes], prefix: bytes) -> Iterator[tuple[str, bytes, Record, float | None]]:
        """Of keys under `prefix` that hold a record: address, name behind the address, record, seconds left."""
        values, ends = self.read(keys, keys)
        for key, value, left in zip(keys, values, ends, strict=True):
            record = parse_record(value) if value is not None else None
            if record is not None and left != GONE:
                address, _, name = key.removeprefix(prefix).partition(b",")
                yield address.decode("utf-8", "replace"), name, record, None if left == NO_END else left / 1000

    def _scan(self, prefix: bytes, client_address: str, *, names: bool = False) -> Iterator[list[bytes]]:
        """The keys under `prefix`, of one address or of all, a batch at a time."""
        pattern = prefix + client_address.encode()
        if client_address:
            yield [pattern]
            if not names:
                return
            pattern += b","
        cursor = 0
        while True:
            with self._asking():
                cursor, keys = self._redis.scan(cursor, match=_escape_glob(pattern) + b"*", count=_BATCH)
            yield cast("list[bytes]", keys)
            if cursor == 0:
                return

    def _delete(self, keys: list[bytes]) -> None:
        with self._asking():
            if keys:
                self._redis.delete(*keys)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        from redis import RedisError

        try:
            yield
        except RedisError as error:
            raise StoreUnavailable(str(error) or type(error).__name__) from error


def _fold(user: str) -> bytes:
    return user.encode("utf-8", "surrogateescape").lower()


def _escape_glob(text: bytes) -> bytes:
    """`text` as a SCAN pattern that matches nothing else."""
    return re.sub(rb"([*?\[\]\\])", rb"\\\1", text)
