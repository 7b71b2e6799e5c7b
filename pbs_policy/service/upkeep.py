"""What the service does besides answering, once a second: it learns which prefix lengths permits of networks have and
whether somebody watches, reads sender_maps and denies anew when a file has changed, and writes numbers to Redis. The
report's sums are written beside that, a few at a time: thousands at once would keep requests waiting.

None of it is waited for by a request, and what is learned only says where to look: each permission is read from
Redis for the very request it is for. A permit of a network with a length new to the site counts after `INTERVAL`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pbs_policy import __version__
from pbs_policy.service.events import Publisher
from pbs_policy.service.reload import read_anew
from pbs_policy.service.server import PolicyServer
from pbs_policy.service.stats import Stats, flatten, process_name
from pbs_policy.store.question import Command, Question
from pbs_policy.table.networks import parse_lengths

INTERVAL = 1.0
"""Seconds between two looks."""

WRITE_INTERVAL = 5
"""Looks between two writings of the numbers; seconds between two of the report's sums."""

WRITE_PAUSE = 0.02
"""Seconds between two pieces of the report's sums. So they never have more than a few hundredths of the loop's time,
and as many as the memory holds are written within a few seconds."""


class Upkeep:
    """Keeps `server` up to date, for as long as `run` runs."""

    def __init__(self, server: PolicyServer) -> None:
        self._server = server
        self._stopping = asyncio.Event()
        self._looks = 0
        pid = os.getpid()
        self._stats = Stats(server.keys, process_name(pid), __version__)
        self._about = {"pid": pid, "version": __version__, "started": self._stats.started}
        host = self._stats.name.rpartition(":")[0]
        self._publisher = Publisher(server.lookups, server.keys.events, host, self._describe)

    @property
    def watchers(self) -> int:
        """How many hear the decisions that this process publishes."""
        return self._publisher.watchers

    async def run(self) -> None:
        """Look again and again until `stop`, then write what is left to be written."""
        await asyncio.gather(
            self._repeat(INTERVAL, self._look_and_write), self._repeat(WRITE_INTERVAL, self.write_usage)
        )

    async def _repeat(self, interval: float, work: Callable[[], Awaitable[None]]) -> None:
        """Do it every so many seconds until `stop`, and then once more."""
        is_last = False
        while not is_last:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), interval)
            is_last = self._stopping.is_set()  # not afterwards: what was noted during the work is to be written too
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - were this task to end, it would not be done again
                self._server.log.error(f"upkeep: {error!r}")

    async def _look_and_write(self) -> None:
        self._looks += 1
        self._server.log.tell_repeats()
        self._server.log.flush()  # of what syslog or the journal did not take at once
        await self.look()
        if self._looks % WRITE_INTERVAL == 0 or self._stopping.is_set():
            await self.write_stats()

    def stop(self) -> None:
        """Let `run` come to its end."""
        self._stopping.set()

    async def look(self) -> None:
        """Learn the lengths of permits' networks, whether somebody watches; files anew that have changed."""
        server = self._server
        answer = await server.lookups.put(Question([server.keys.permit_networks, server.keys.watching]))
        if answer is not None:
            server.permit_lengths = parse_lengths(answer.values[0])
        is_watched = answer is not None and answer.values[1] is not None
        server.events = self._publisher.set_watched(is_watched and not self._stopping.is_set())
        await read_anew("sender_maps", server.maps, server.log)
        await read_anew("denies", server.denies, server.log)

    async def write_stats(self) -> None:
        """Write what was decided since the last time."""
        commands = self._stats.commands(self._server.counts, self._facts(), is_last=self._stopping.is_set())
        self._stats.written(commands, await self._each(commands))

    def _facts(self) -> dict[str, int]:
        return {
            "connections": len(self._server.connections),
            "redis_connections": self._server.lookups.connections,
        }

    def _describe(self) -> Mapping[str, Any]:
        return {**self._about, **self._facts(), "counts": flatten(self._server.counts)}

    async def write_usage(self) -> None:
        """Write what was relayed since the last time, in pieces, and no faster than the loop has time for. Where
        nothing of a piece can be written, the others wait for the next time as well."""
        usage = self._server.uses.usage
        if usage is None:
            return
        await self._server.uses.credit(self._server.lookups.put, self._pause)
        for _ in range(usage.writes):
            if not (commands := usage.commands()):
                return
            replies = await self._each(commands)
            usage.written(replies)
            if replies.count(None) == len(replies):
                return
            await self._pause()

    async def _pause(self) -> None:
        """Leave the loop to the requests for a while; not where all is to be written before the end."""
        if not self._stopping.is_set():
            await asyncio.sleep(WRITE_PAUSE)

    async def _each(self, commands: Sequence[Command]) -> list[Any]:
        """The reply to each command, None for one that was not carried out."""
        # A question each, all in one round: one that Redis refuses must not make the others be counted again.
        asked = [self._server.lookups.put(Question((), (command,))) for command in commands]
        return [answer and answer.replies[0] for answer in await asyncio.gather(*asked)]
