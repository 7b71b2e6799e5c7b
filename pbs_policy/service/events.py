"""Decisions as they happen, published for `pbs-policy watch`; while nobody watches there is nothing of it.

A watcher sets the key `watching` (5 s, again and again) and subscribes to the channel `events`, both behind the
prefix. While the key is there, each process publishes every `INTERVAL` one message: JSON objects, a line each. The
first describes the process:

    host, pid, version, started, connections, redis_connections
    batch         a number that grows by one: a message may come twice, when the connection to Redis was lost
    dropped       decisions that found no room since the last message
    counts        decisions since the start, by `<action> <reason>`

Each of the others is a decision: time, host, and the members of its line in the log (`decision_line`).

What is waiting is bounded (`MOST`), a message that Redis has not taken is not followed by another, and nobody waits
for a watcher: what finds no room is dropped, and counted.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pbs_policy.decision.rules import Decision
from pbs_policy.log import json_value
from pbs_policy.postfix.protocol import Request
from pbs_policy.service.decision_line import as_json
from pbs_policy.store.lookups import Lookups

INTERVAL = 0.2
"""Seconds between two messages: what people take for at once."""

MOST = 200
"""Decisions in one message: 1,000 a second, more than anybody reads. Writing that many down takes 0.5 % of a core,
however many more there are; 40 kB, at the very most 0.3 MB."""


class Events:
    """The decisions that wait to be published."""

    def __init__(self, host: str, now: Callable[[], float] = time.time) -> None:
        self._host = json_value(host)
        self._now = now
        self._lines: list[str] = []
        self._dropped = 0

    def note(self, decision: Decision, client_address: str, request: Request) -> None:
        """Keep one decision, if there is room. On the hot path, while somebody watches: it is written down at once,
        so that no turn of the loop has to do it for thousands."""
        if len(self._lines) >= MOST:
            self._dropped += 1
            return
        members = as_json(decision, client_address, request)
        self._lines.append(f'{{"time":{self._now():.3f},"host":{self._host},{members}}}')

    def drop(self, count: int) -> None:
        """So many decisions were lost on their way."""
        self._dropped += count

    def take(self) -> tuple[list[str], int]:
        """What is waiting, and how many were dropped since the last time."""
        taken = self._lines, self._dropped
        self._lines, self._dropped = [], 0
        return taken


class Publisher:
    """Publishes through `lookups` for as long as somebody watches. `describe` gives what the first line says of the
    process, besides what this class knows."""

    def __init__(
        self, lookups: Lookups, channel: bytes, host: str, describe: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._lookups = lookups
        self._channel = channel
        self._host = host
        self._describe = describe
        self._batch = 0
        self._in_flight = False
        self._timer: asyncio.TimerHandle | None = None
        self.events: Events | None = None  # for the server; None while nobody watches
        self.watchers = 0  # who heard the last message

    def set_watched(self, is_watched: bool) -> Events | None:
        """Begin to publish, go on, or end; where decisions are to be noted from now on."""
        if is_watched and self.events is None:
            self.events = Events(self._host)
            self._publish()
        elif not is_watched and self.events is not None:
            self.events = None
            self.watchers = 0
            if self._timer is not None:
                self._timer.cancel()
        return self.events

    def _publish(self) -> None:
        events = self.events
        if events is None:
            return
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._publish)
        if self._in_flight:
            return
        lines, dropped = events.take()
        self._batch += 1
        first = {"host": self._host, "batch": self._batch, "dropped": dropped, **self._describe()}
        message = "\n".join([json.dumps(first), *lines]).encode()

        def published(values: Sequence[bytes | None] | None, heard: Sequence[Any]) -> None:
            self._in_flight = False
            self.watchers = heard[0] if heard and self.events is not None else 0
            if values is None:
                events.drop(len(lines) + dropped)

        self._in_flight = True
        self._lookups.ask_further((), [(b"PUBLISH", self._channel, message)], published)
