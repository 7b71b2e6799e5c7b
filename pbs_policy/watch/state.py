"""What a watcher knows: events, services, rates, who may relay; and what the keys do to it. No I/O, and no clock: the
time is an argument.

Text from Redis is anybody's: it is made printable here, and what is not understood is left out.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pbs_policy.log import printable, value

EVENTS_KEPT = 2_000
"""Events to look back at while paused; a screen shows fewer."""

ADDRESSES_KEPT = 1_000
"""Client addresses of the last decisions: whose logins are followed where the table is too large to be."""

SILENT = 3
"""Seconds after which a process that was not heard of is called silent; it is heard five times a second."""

FORGOTTEN = 30
"""Seconds after which a silent process is forgotten."""

SECONDS_KEPT = 60
"""Seconds of the plot of rates."""

SORTS = ("left", "address", "user")

LOGIN, PERMIT, NOTE = "login", "permit", "note"
"""What an event is besides a decision: its `action`. A note says in `reason` what happened."""


class Event(NamedTuple):
    """A decision, login, permit or note. `time` is Unix seconds, of the host where it happened."""

    time: float
    host: str
    action: str
    reason: str = ""
    client_address: str = ""
    user: str = ""
    service: str = ""
    sender: str = ""
    recipient: str = ""

    def line(self) -> str:
        """The event on one line, in the names of the service's log."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.time))
        if self.action == NOTE:
            return f"{at} {self.host or '-'} {self.reason}"
        names = ("client_address", "reason", "user", "service", "sender", "recipient")
        first = self.action if self.action in (LOGIN, PERMIT) else f"action={self.action}"
        fields = [f"{name}={value(field)}" for name in names if (field := getattr(self, name))]
        return " ".join([at, self.host or "-", first, *fields])


class Relay(NamedTuple):
    """A login or permit. `ends` is by the clock that `State` is given, None where it has no end."""

    kind: str
    target: str
    user: str
    service: str
    since: int
    ends: float | None


class Table(NamedTuple):
    """What was read of the login table, by kind, target and user; of every address, or only those `among`. `denies`:
    how many there are, None where only some addresses were read."""

    relays: Mapping[tuple[str, str, str], Relay]
    among: frozenset[str] | None = None
    denies: int | None = None


class WatchedService(NamedTuple):
    """What a process last said of itself, and when that was."""

    host: str
    pid: int
    version: str
    started: float
    connections: int
    redis_connections: int
    counts: Counter[str]
    batch: int
    heard_at: float
    rate: float = 0.0


class State:
    """Everything that a screen shows."""

    def __init__(self, prefix: str, now: float, pattern: str = "") -> None:
        self.prefix = prefix
        self.started = now
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.news: deque[Event] = deque(maxlen=10 * EVENTS_KEPT)  # for `take_news`
        self.services: dict[tuple[str, int], WatchedService] = {}
        self.addresses: dict[str, None] = {}  # of decisions, the last one last
        self.table: Table | None = None
        self.rates: deque[Counter[str]] = deque(maxlen=SECONDS_KEPT)  # decisions a second, by action
        self.dropped = 0
        self.answer_time: float | None = None  # seconds that Redis took; None while it is unavailable
        self.trouble = ""
        self.pattern = printable(pattern)
        self.typed: str | None = None  # the filter while it is being typed
        self.sort = SORTS[0]
        self._paused: list[Event] | None = None
        self._ticked_at = now
        self._ticked: dict[tuple[str, int], Counter[str]] = {}

    def hear(self, message: bytes, now: float, at: float) -> None:
        """Take in one message of the channel (`events`). `at` is Unix seconds, for notes."""
        first, *lines = message.split(b"\n")
        head = _parse(first)
        host, pid = _text(head.get("host")), _number(head.get("pid"))
        batch = _number(head.get("batch"))
        if not host or not batch:
            return
        known = self.services.get((host, pid))
        service = WatchedService(
            host, pid, _text(head.get("version")), _number(head.get("started")), _number(head.get("connections")),
            _number(head.get("redis_connections")), _counts(head.get("counts")), batch, now,
            known.rate if known else 0.0,
        )  # fmt: skip
        if known and known.started == service.started and known.batch == batch:
            return  # heard already: published once more after a lost connection
        self.services[host, pid] = service
        if not known:
            self._ticked[host, pid] = service.counts
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(service.started))
            self._add(Event(at, host, NOTE, f"service {pid} is heard, version {service.version}, since {since}"))
        for line in lines:
            self._take(_parse(line))
        dropped = _number(head.get("dropped"))
        if dropped:
            self.dropped += dropped
            self._add(Event(at, host, NOTE, f"{dropped} decisions are not shown: too many at once"))

    def see(self, table: Table) -> None:
        """Take in what was read of the login table: what is new in it has happened since the last time."""
        known, self.table = self.table, table
        if known is None:
            return
        for name, relay in sorted(table.relays.items(), key=lambda each: each[1].since):
            before = known.relays.get(name)
            was_read = known.among is None or relay.target in known.among
            if was_read and (before is None or before.since != relay.since):
                event = Event(relay.since, "", relay.kind, "", relay.target, relay.user, relay.service)
                self._add(event)

    def set_redis(self, answer_time: float | None, trouble: str, at: float) -> None:
        """How long Redis took, or None and why it could not be asked."""
        if trouble and trouble != self.trouble:
            self._add(Event(at, "", NOTE, printable(f"Redis is unavailable: {trouble}")))
        elif self.trouble and not trouble:
            self._add(Event(at, "", NOTE, "Redis answers again"))
        self.answer_time, self.trouble = answer_time, printable(trouble)

    def tick(self, now: float, at: float) -> None:
        """Once a second: what was decided since the last time, and which processes are silent."""
        elapsed = max(now - self._ticked_at, 0.001)
        self._ticked_at = now
        actions: Counter[str] = Counter()
        for name, service in list(self.services.items()):
            new = service.counts - self._ticked.get(name, Counter())
            self._ticked[name] = service.counts
            self.services[name] = service._replace(rate=new.total() / elapsed)
            for counted, number in new.items():
                actions[counted.partition(" ")[0]] += round(number / elapsed)
            if now - service.heard_at > FORGOTTEN:
                del self.services[name], self._ticked[name]
                self._add(Event(at, service.host, NOTE, f"service {service.pid} is not heard any more"))
        self.rates.append(actions)

    def press(self, key: str) -> bool:
        """What a key does; False where it ends the watching."""
        if self.typed is not None:
            self._type(key)
        elif key in ("q", "Q"):
            return False
        elif key in (" ", "p"):
            self._paused = None if self.is_paused else list(self.events)
        elif key == "/":
            self.typed = self.pattern
        elif key == "s":
            self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
        elif key == "escape":
            self.pattern = ""
        return True

    def _type(self, key: str) -> None:
        typed = self.typed or ""
        if key == "enter":
            self.pattern, self.typed = typed, None
        elif key == "escape":
            self.typed = None
        elif key == "backspace":
            self.typed = typed[:-1]
        elif len(key) == 1 and key.isprintable():
            self.typed = printable(typed + key, 80)

    @property
    def is_paused(self) -> bool:
        """Whether the events stand still; they are taken in all the same."""
        return self._paused is not None

    def shown_events(self, most: int) -> list[Event]:
        """The last events that pass the filter, newest last."""
        found: list[Event] = []
        for event in reversed(self.events if self._paused is None else self._paused):
            if len(found) >= most:
                break
            if self.is_meant(event):
                found.append(event)
        return found[::-1]

    def shown_relays(self) -> list[Relay]:
        """Who may relay, those that pass the filter, sorted."""
        relays = [each for each in self.table.relays.values() if self._has(each)] if self.table else []
        forever = float("inf")
        if self.sort == "address":
            return sorted(relays, key=lambda each: (each.target, each.user))
        if self.sort == "user":
            return sorted(relays, key=lambda each: (each.user, each.target))
        return sorted(relays, key=lambda each: (forever if each.ends is None else each.ends, each.target, each.user))

    def take_news(self) -> Iterable[Event]:
        """The events since the last time that pass the filter, oldest first."""
        while self.news:
            event = self.news.popleft()
            if self.is_meant(event):
                yield event

    def is_meant(self, event: Event) -> bool:
        """Whether the filter lets an event pass: its text stands somewhere in the event's line."""
        return not self.pattern or self.pattern.casefold() in event.line().casefold()

    def _has(self, relay: Relay) -> bool:
        pattern = self.pattern.casefold()
        return not pattern or pattern in f"{relay.target} {relay.user} {relay.service}".casefold()

    def _take(self, fields: Mapping[str, Any]) -> None:
        """Take in one decision."""
        event = Event(_real(fields.get("time")), *[_text(fields.get(name)) for name in _TEXTS])
        if not event.action:
            return
        self.addresses.pop(event.client_address, None)
        self.addresses[event.client_address] = None
        while len(self.addresses) > ADDRESSES_KEPT:
            del self.addresses[next(iter(self.addresses))]
        self._add(event)

    def _add(self, event: Event) -> None:
        self.events.append(event)
        self.news.append(event)


_TEXTS = Event._fields[1:]


def _parse(line: bytes) -> Mapping[str, Any]:
    """The JSON object in `line`, an empty one where there is none."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _text(field: Any) -> str:
    return printable(field) if isinstance(field, str) else ""


def _number(field: Any) -> int:
    return field if type(field) is int and 0 <= field < 10**15 else 0


def _real(field: Any) -> float:
    return float(field) if type(field) in (int, float) and 0 <= field < 10**11 else 0.0


def _counts(field: Any) -> Counter[str]:
    pairs = field.items() if isinstance(field, dict) else ()
    return Counter({_text(name): _number(number) for name, number in list(pairs)[:1_000]})
