"""Who still relays by POP-before-SMTP: sums by client address and user, for `pbs-policy report`.

The service notes each relayed recipient in memory, and writes the sums every few seconds in the background. In Redis
there is one hash for each UTC day, `use:<YYYYMMDD>` behind the prefix, which ends `kept` seconds and a day after the
last write to it. Each pair of an address and a user has three fields there, so that HLEN counts the pairs:

    n <client_address> <user>    recipients relayed
    f <client_address> <user>    of them, those with a foreign sender: that sender_match = domain would refuse, and
                                 2^32 times those more that sender_match = address would
    t <client_address> <user>    the last of them, Unix seconds

An address has no blanks, and the user stands last, verbatim. Pairs that find no room, here or in the day, are summed
as one, `OTHERS`: the totals stay right. While a day is full, who is new to it is not even noted by name. What the
service has not written when it is killed is lost.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from pbs_policy.store.question import Command
from pbs_policy.table.keys import Keys

if TYPE_CHECKING:
    from pbs_policy.store.connect import RedisClient

MOST_PAIRS = 5_000
"""Pairs a day may have in Redis: 1.4 to 1.6 MB, and a site that still has so many knows whom to write to: everybody.
Each process of the service may add `PAIRS_AT_ONCE` to them, since it learns of the others' from its own writes."""

PAIRS_AT_ONCE = 50
"""Pairs in one write, which is up to 100 commands. Several turns of the event loop share them, none of which others
have to wait for longer than for their own answers."""

PAIRS_IN_MEMORY = 10_000
"""Pairs that wait to be written: 3 MB. They are that many only where nothing could be written for long."""

BY_DOMAIN, BY_ADDRESS_ALONE = 1, 1 << 32
"""What a recipient adds to `f`. In one field, since a fourth one would take a third more memory."""

OTHERS = ("others", "")
"""What stands in place of address and user where pairs are summed as one; no address is written like that."""

DAY = 86_400
"""Seconds."""

_NUMBER, _FOREIGN, _LAST = b"n", b"f", b"t"
_is_number = re.compile(rb"[0-9]{1,19}").fullmatch

Pair = tuple[str, str]


class Use(NamedTuple):
    """What one user has relayed from one client address. `last_use` is Unix seconds; of the recipients,
    `foreign_senders` had a sender that sender_match = domain would refuse, `foreign_mailboxes` one that
    sender_match = address alone would."""

    client_address: str
    user: str
    recipients: int
    foreign_senders: int
    last_use: int
    foreign_mailboxes: int = 0


class _Sum:
    """Recipients, those of them with a foreign sender, and when the last one was."""

    __slots__ = ("foreign", "last", "number")

    def __init__(self) -> None:
        self.number = 0
        self.foreign = 0
        self.last = 0.0

    def add(self, other: _Sum) -> None:
        self.number += other.number
        self.foreign += other.foreign
        self.last = max(self.last, other.last)

    def add_field(self, kind: bytes, number: int) -> None:
        if kind == _NUMBER:
            self.number += number
        elif kind == _FOREIGN:
            self.foreign += number
        else:
            self.last = max(self.last, number)


class _Day:
    """One day: the sums that wait to be written, and what is known of its hash in Redis."""

    __slots__ = ("known", "size", "sums")

    def __init__(self) -> None:
        self.sums: dict[Pair, _Sum] = {}  # in the order of their first use, which is that of writing
        self.known: set[Pair] = set()  # they have their fields already: a full day is no obstacle
        self.size = 0  # pairs in Redis, as far as our own writes have told


class Usage:
    """The sums of one process. Each list of `commands` is followed by one call of `written`."""

    def __init__(self, prefix: str, kept: int, now: Callable[[], float] = time.time) -> None:
        """`kept`: seconds that a use is kept at least, more than 0; at most two days more: a day ends as one."""
        self._prefix = prefix
        self._end = b"%d" % (kept + DAY)
        self._now = now
        self._days: dict[bytes, _Day] = {}  # by key: today, and others for as long as they wait to be written
        self._waiting = 0  # pairs in all of these days
        self._in_flight: list[Command] = []
        self._users: dict[str, bytes | None] = {}  # who was seen at each address today; None: several
        self._turn(now())

    @classmethod
    def following(cls, before: Usage | None, prefix: str, kept: int) -> Usage | None:
        """What counts from now on, nothing where nothing is to be kept; what `before` has counted goes on."""
        if not kept:
            return None
        usage = before or cls(prefix, kept)
        usage._end = b"%d" % (kept + DAY)
        return usage

    def is_shared(self, client_address: str, user: bytes) -> bool:
        """Whether others than this user were seen at the address too, today and by this process."""
        if client_address not in self._users and len(self._users) >= PAIRS_IN_MEMORY:
            return False
        if self._users.setdefault(client_address, user) == user:
            return False
        self._users[client_address] = None
        return True

    def note(
        self, client_address: str, user: str, foreign_sender: int, number: int = 1, at: float | None = None
    ) -> None:
        """Count recipients that were relayed, or would have been under observe_only, the last of them `at` (Unix
        seconds; now): with a sender that is foreign BY_DOMAIN, BY_ADDRESS_ALONE, or (0) not foreign."""
        at = self._now() if at is None else at
        if not self._begins <= at < self._ends:
            self._turn(at)
        total = self._begin(self._today, (client_address, user))
        total.number += number
        total.foreign += number * foreign_sender
        total.last = max(total.last, at)

    @property
    def writes(self) -> int:
        """How many lists of `commands` all that waits now makes at the most."""
        return -(-self._waiting // PAIRS_AT_ONCE)

    def commands(self) -> list[Command]:
        """What to write now; it is taken off the memory. Nothing where there is nothing, or while a write is in
        flight. What is over `PAIRS_AT_ONCE` is for the next time."""
        if self._in_flight:
            return []
        commands: list[Command] = []
        left = PAIRS_AT_ONCE
        for key, day in list(self._days.items()):
            taken = {pair: day.sums.pop(pair) for pair in list(islice(day.sums, left))}
            left -= len(taken)
            self._waiting -= len(taken)
            if taken:
                commands += self._write(key, day, taken)
            elif not day.sums and day is not self._today:
                del self._days[key]
        self._in_flight = commands
        return commands

    def written(self, replies: Sequence[Any]) -> None:
        """The replies to the last `commands`, in order. A command whose reply is an error (an exception), or None
        for want of one, is put back. One that was carried out all the same will count twice."""
        commands, self._in_flight = self._in_flight, []
        failed = []
        for command, reply in zip(commands, replies, strict=True):
            if reply is None or isinstance(reply, Exception):
                failed.append(command)
            elif command[0] == b"HLEN":
                self._day(command[1]).size = reply // 3
            elif command[0] == b"HINCRBY" and command[2].startswith(_FOREIGN):
                self._day(command[1]).known.add(_parse_field(command[2])[1])
        for name, key, *arguments in failed:
            if name not in (b"HSET", b"HINCRBY"):
                continue
            day = self._day(key)
            for field, value in zip(arguments[::2], arguments[1::2], strict=True):
                kind, pair = _parse_field(field)
                self._begin(day, pair).add_field(kind, int(value))

    def _turn(self, at: float) -> None:
        """Go over to the day of `at`."""
        number = int(at // DAY)
        self._begins, self._ends = number * DAY, (number + 1) * DAY
        self._today = self._day(_key(self._prefix, number))
        self._users.clear()

    def _day(self, key: bytes) -> _Day:
        return self._days.setdefault(key, _Day())

    def _begin(self, day: _Day, pair: Pair) -> _Sum:
        """The sum of `pair`, a new one where it waits for the first time and there is room, here and in the day."""
        is_full = self._waiting >= PAIRS_IN_MEMORY or (day.size >= MOST_PAIRS and pair not in day.known)
        if is_full and pair not in day.sums:
            pair = OTHERS
        total = day.sums.get(pair)
        if total is None:
            total = day.sums[pair] = _Sum()
            self._waiting += 1
        return total

    def _write(self, key: bytes, day: _Day, taken: dict[Pair, _Sum]) -> list[Command]:
        """The commands that add these sums to a day. Its end is set with the first of them: a connection that is
        lost among them leaves no key without one."""
        room = MOST_PAIRS - day.size
        rows: dict[Pair, _Sum] = {}
        for pair, each in taken.items():
            if pair not in day.known:
                room -= 1
                pair = pair if room >= 0 else OTHERS
            rows.setdefault(pair, _Sum()).add(each)
        last: list[bytes] = []
        writes: list[Command] = []
        for pair, each in rows.items():
            if each.last:
                last += (_field(_LAST, pair), b"%d" % each.last)
            if each.number:
                writes.append((b"HINCRBY", key, _field(_NUMBER, pair), b"%d" % each.number))
            if each.foreign or pair not in day.known:
                writes.append((b"HINCRBY", key, _field(_FOREIGN, pair), b"%d" % each.foreign))
        if last:
            writes.insert(0, (b"HSET", key, *last))
        return [*writes[:1], (b"EXPIRE", key, self._end), *writes[1:], (b"HLEN", key)]


def read_uses(redis: RedisClient, prefix: str, since: float, until: float) -> Iterator[Use]:
    """What was used on the UTC days from that of `since` to that of `until` (Unix seconds), each pair once, in no
    order; what was summed as `OTHERS` is one of them. Raises StoreUnavailable.

    A day is read as a whole: nobody knows at which hour of it the first of two uses was.
    """
    uses: dict[Pair, _Sum] = {}
    for number in range(int(since // DAY), int(until // DAY) + 1):
        (reply,) = redis.ask([(b"HGETALL", _key(prefix, number))])
        for field, value in zip(reply[::2], reply[1::2], strict=True):
            if field.count(b" ") < 2 or not _is_number(value):
                continue  # somebody else's
            kind, pair = _parse_field(field)
            if kind in (_NUMBER, _FOREIGN, _LAST):
                uses.setdefault(pair, _Sum()).add_field(kind, int(value))
    for (client_address, user), each in uses.items():
        more, foreign = divmod(each.foreign, BY_ADDRESS_ALONE)
        yield Use(client_address, user, each.number, foreign, int(each.last), more)


def _key(prefix: str, number: int) -> bytes:
    """The key of a day, by its number since 1970."""
    return Keys(prefix).use(time.strftime("%Y%m%d", time.gmtime(number * DAY)))


def _field(kind: bytes, pair: Pair) -> bytes:
    client_address, user = pair
    try:
        name = user.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        name = user.encode("utf-8", "replace")  # half a character, which only a permit's JSON can hold
    return b"%b %b %b" % (kind, client_address.encode(), name)


def _parse_field(field: bytes) -> tuple[bytes, Pair]:
    kind, client_address, user = field.split(b" ", 2)
    return kind, (client_address.decode("utf-8", "replace"), user.decode("utf-8", "surrogateescape"))
