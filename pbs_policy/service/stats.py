"""How often the service decided what: counted in memory, written to Redis every few seconds, for `pbs-policy stats`.

Two kinds of hashes behind the prefix, without addresses or users:

    stats:<YYYYMMDDHHMM>     one minute (UTC) of all processes together; ends 25 hours after the last write to it
        <action> <reason>            how many decisions, such as `DUNNO no_login`
        service <host>:<pid>         how many of them this process took; 0 says that it ran
    service:<host>:<pid>     one process of the service; ends 15 s after it was last heard of
        started, version, connections, redis_connections
        <action> <reason>            how many since its start

Which processes run is said by the last minutes' hashes: nobody needs to look through all keys for them. A minute of a
site with two processes and five reasons is 360 bytes in Redis, all of it 540 kB; with eight processes and twelve
reasons it is 1.2 MB.
"""

from __future__ import annotations

import re
import socket
import time
from calendar import timegm
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from pbs_policy.decision.rules import DEFER, DUNNO, OK
from pbs_policy.store.question import Command
from pbs_policy.table.keys import Keys

if TYPE_CHECKING:
    from pbs_policy.store.connect import RedisClient

KEPT = 25 * 3600
"""Seconds that a minute is kept: a day, and the hour that is under way."""

SERVICE_KEPT = 15
"""Seconds after which a process that was not heard of is taken for dead: three writes."""

MINUTES = 1_440
"""Minutes of a day: what `read_minutes` reads at most, and a process keeps while nothing can be written."""

MINUTES_AT_ONCE = 10
"""Minutes in one write: usually there is one, after Redis was away there may be many. Each is 5 to 30 commands."""

_AT_ONCE = 500  # hashes that are read in one go: 0.2 MB
_MINUTE = 60
_SERVICE = "service "
_is_number = re.compile(rb"[0-9]{1,18}").fullmatch
_is_count = re.compile(r"[A-Z_]{1,30} [a-z_]{1,60}").fullmatch

Counts = Mapping[str, Mapping[str, int]]
"""Decisions by action, then by reason. Both are few, and known to the program."""


def no_counts() -> dict[str, defaultdict[str, int]]:
    """What a server counts in: `counts[decision.action][decision.reason] += 1`. Two look-ups are a third of the time
    of one under a pair."""
    return {action: defaultdict(int) for action in (OK, DUNNO, DEFER)}


def flatten(counts: Counts) -> Counter[str]:
    """The same as `<action> <reason>`, without what Postfix is told besides the action."""
    return Counter(
        {f"{action.partition(' ')[0]} {reason}": n for action, each in counts.items() for reason, n in each.items()}
    )


def process_name(pid: int) -> str:
    """How a process of the service is called in Redis: `<host>:<pid>`."""
    return f"{socket.gethostname() or 'localhost'}:{pid}"


class Stats:
    """The numbers of one process. What becomes of each list of `commands` is told to `written`."""

    def __init__(self, keys: Keys, name: str, version: str, now: Callable[[], float] = time.time) -> None:
        """`name`: `process_name`."""
        self._keys = keys
        self.name = name
        self.version = version
        self._now = now
        self.started = int(now())
        self._seen: Counter[str] = Counter()  # what was counted up to the last look
        self._minutes: dict[int, Counter[str]] = {}  # what is to be written, oldest minute first

    def commands(self, counts: Counts, facts: Mapping[str, int], *, is_last: bool = False) -> list[Command]:
        """What to write now, given all that was counted since the start and `facts` on the process. With
        `is_last` the process' own hash ends at once."""
        total = flatten(counts)
        minute = self._minutes.setdefault(int(self._now() // _MINUTE), Counter())
        minute.update(total - self._seen)
        minute[_SERVICE + self.name] += total.total() - self._seen.total()
        self._seen = total
        while len(self._minutes) > MINUTES:
            del self._minutes[min(self._minutes)]
        commands = self._own(total, facts, is_last=is_last)
        for number in list(islice(sorted(self._minutes, reverse=True), MINUTES_AT_ONCE)):
            commands += self._write(number, self._minutes.pop(number))
        return commands

    def written(self, commands: Sequence[Command], replies: Sequence[Any]) -> None:
        """The reply to each of `commands`. One with None in place of a reply was not carried out, and its number is
        put back. One that was, without our knowledge, will count twice."""
        for command, reply in zip(commands, replies, strict=True):
            if reply is None and command[0] == b"HINCRBY":
                number = _minute_of(command[1].removeprefix(self._keys.stats_prefix))
                self._minutes.setdefault(number, Counter())[command[2].decode()] += int(command[3])

    def _own(self, total: Counter[str], facts: Mapping[str, int], *, is_last: bool) -> list[Command]:
        key = self._keys.service(self.name)
        fields = {"started": self.started, "version": self.version, **facts, **total}
        pairs = [str(each).encode() for pair in fields.items() for each in pair]
        end = b"0" if is_last else b"%d" % SERVICE_KEPT
        return [(b"HSET", key, *pairs), (b"EXPIRE", key, end)]

    def _write(self, number: int, counts: Counter[str]) -> list[Command]:
        """A minute's commands. Its end is set behind the first of them: a connection that is lost among them leaves
        no key without one."""
        key = self._keys.stats(number)
        writes: list[Command] = [(b"HINCRBY", key, name.encode(), b"%d" % each) for name, each in counts.items()]
        return [writes[0], (b"EXPIRE", key, b"%d" % KEPT), *writes[1:]]


class Minute(NamedTuple):
    """What was decided within one minute, which began at `begins` (Unix seconds); `<action> <reason>`: how often.
    `services`: how often by which process, 0 for one that only ran."""

    begins: int
    counts: Counter[str]
    services: Counter[str]


class ServiceState(NamedTuple):
    """One running process of the service. `started` is Unix seconds; `redis_connections`: 1 and each reconnect."""

    host: str
    pid: int
    version: str
    started: int
    connections: int
    redis_connections: int
    counts: Counter[str]


def read_minutes(redis: RedisClient, keys: Keys, now: float) -> list[Minute]:
    """The day up to `now`, oldest minute first, those without a decision too. Raises StoreUnavailable."""
    last = int(now // _MINUTE)
    numbers = range(last - MINUTES + 1, last + 1)
    minutes = []
    for number, fields in zip(numbers, _read(redis, [keys.stats(number) for number in numbers]), strict=True):
        known = {_text(name): int(value) for name, value in fields.items() if _is_number(value)}
        services = {name.removeprefix(_SERVICE): n for name, n in known.items() if name.startswith(_SERVICE)}
        minutes.append(Minute(number * _MINUTE, _counts_in(known), Counter(services)))
    return minutes


def read_services(redis: RedisClient, keys: Keys, minutes: Iterable[Minute]) -> list[ServiceState]:
    """The processes that run now, by host and pid: of those that the last `minutes` know. Raises StoreUnavailable."""
    names = sorted({name for minute in list(minutes)[-2:] for name in minute.services})
    found = _read(redis, [keys.service(name) for name in names])
    states = [_parse_service(name, fields) for name, fields in zip(names, found, strict=True) if fields]
    return sorted(states, key=lambda state: (state.host, state.pid))


def _parse_service(name: str, fields: Mapping[bytes, bytes]) -> ServiceState:
    numbers = {_text(field): int(value) for field, value in fields.items() if _is_number(value)}
    host, _, pid = name.rpartition(":")
    return ServiceState(
        host, int(pid) if pid.isdecimal() else 0, _text(fields.get(b"version", b"")), numbers.get("started", 0),
        numbers.get("connections", 0), numbers.get("redis_connections", 0), _counts_in(numbers),
    )  # fmt: skip


def _counts_in(numbers: Mapping[str, int]) -> Counter[str]:
    """Those of a hash's numbers that are counts of decisions; what else stands there is somebody else's."""
    return Counter({name: number for name, number in numbers.items() if _is_count(name)})


def _read(redis: RedisClient, keys: Sequence[bytes]) -> Iterator[dict[bytes, bytes]]:
    """The hashes under `keys`, an empty one where there is none."""
    for start in range(0, len(keys), _AT_ONCE):
        for reply in redis.ask([(b"HGETALL", key) for key in keys[start : start + _AT_ONCE]]):
            yield dict(zip(reply[::2], reply[1::2], strict=True))


def _minute_of(text: bytes) -> int:
    """The number of the minute that a key names."""
    return timegm(time.strptime(text.decode(), "%Y%m%d%H%M")) // _MINUTE


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
