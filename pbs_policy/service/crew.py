"""The service as several processes: the role of each worker, and of the parent that speaks for all of them.

How they are started and replaced is `workers`' matter; here is what they tell each other. A worker whose loop no
longer turns is killed in half the time that the watchdog allows, and replaced; while it is silent the watchdog is not
told that all is well, so that a service whose workers only hang is restarted as a whole.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from pbs_policy.log import printable
from pbs_policy.service.handover import store
from pbs_policy.service.notify import SEND_TIME
from pbs_policy.service.process import Process
from pbs_policy.service.pulse import Pulse
from pbs_policy.service.reload import Renewal, report_faults, values_of_message
from pbs_policy.service.service import Service
from pbs_policy.service.workers import LONGEST_MESSAGE, Parent
from pbs_policy.sources import SettingsError

_POLL = 0.02
"""Seconds between two looks whether all workers have begun, or have taken new settings."""

_LONGEST_RELOAD = 5.0
"""Seconds for all workers to begin, or to take new settings, after which the service manager is told that they have:
what hangs is for the watchdog to find."""


class Worker:
    """The role of one of several processes. Its lifeline to the parent brings settings, and ends with it."""

    def __init__(self, crew: Crew, index: int, lifeline: int) -> None:
        self._pulse = crew.pulse
        self._generation = crew.generation
        self._index = index
        self._lifeline = socket.socket(fileno=lifeline)
        self.beats = crew.service.beats

    def begin(self, process: Process) -> None:
        self._process = process
        self._messages: asyncio.Queue[bytes] = asyncio.Queue()
        self._following = asyncio.create_task(self._follow())
        asyncio.get_running_loop().add_reader(self._lifeline, self._hear)
        self._pulse.follow(self._index, self._generation)

    def end(self) -> bool:
        return self._pulse.is_last()

    def hand_over(self, connections: Sequence[int]) -> None:
        self._lifeline.settimeout(SEND_TIME)
        with suppress(OSError):
            socket.send_fds(self._lifeline, [b"connections"], connections)

    def beat(self, *, has_redis: bool) -> None:
        self._pulse.beat(self._index, has_redis=has_redis)

    def _hear(self) -> None:
        message = self._lifeline.recv(LONGEST_MESSAGE)
        if message:
            self._messages.put_nowait(message)
        else:
            asyncio.get_running_loop().remove_reader(self._lifeline)
            self._process.stop()

    async def _follow(self) -> None:
        process = self._process
        while True:
            message = await self._messages.get()
            try:
                values = values_of_message(message[1:])
                process.follow(await asyncio.to_thread(process.configuration.follow, values))
            except (SettingsError, ValueError) as error:
                # The parent could read the same: its next worker begins with what this one does not find.
                process.log.error(f"worker {self._index} does not follow its parent: {printable(str(error), 500)}")
                process.stop()
            self._pulse.follow(self._index, message[0])


class Crew(Parent):
    """The parent of the workers: it speaks for all of them."""

    def __init__(self, service: Service, connections: Sequence[socket.socket]) -> None:
        """`connections` were left by the process before us."""
        self.service = service
        self._number = service.configuration.settings.workers
        self.connections = [list(connections[index :: self._number]) for index in range(self._number)]
        self.pulse = Pulse(self._number)
        self.generation = 1  # of the settings
        self._ready_by: float | None = None  # where the service manager is still to hear that all serve

    def begun(self) -> None:
        self.service.announce()
        self._wait_for_all()

    def started(self, index: int) -> None:
        # Left open here they would stay open when the worker closes them.
        for each in self.connections[index]:
            each.close()
        self.connections[index].clear()

    def ending(self) -> None:
        self.pulse.end()
        self.service.notify.stopping()

    def take_connections(self, index: int) -> list[socket.socket]:
        """Those of worker `index`, in that worker: what it has inherited of the others' is closed."""
        for other, connections in enumerate(self.connections):
            for each in connections if other != index else ():
                each.close()
        return self.connections[index]

    def starting(self, index: int) -> None:
        self.pulse.begin(index)

    def receive(self, descriptors: list[int]) -> None:
        store(self.service.notify, descriptors)

    def hung_up(self) -> bytes | None:
        service = self.service
        service.notify.reloading()
        try:
            renewal = Renewal.read(service.configuration, service.load)
        except SettingsError as error:
            report_faults(error, service.log)
            self._say_ready()
            return None
        service.take(renewal)
        self.generation = self.generation % 255 + 1
        self._wait_for_all()
        return bytes([self.generation]) + renewal.configuration.as_message()

    def look(self) -> Iterable[int]:
        if not self.service.beats:
            return ()
        if self._ready_by is not None and (
            self.pulse.all_follow(self.generation) or time.monotonic() > self._ready_by
        ):
            self._say_ready()
        limit = self.service.notify.watchdog / 2
        silent = [index for index in range(self._number) if limit and self.pulse.silence(index) > limit]
        if not silent:
            self.service.notify.alive(self.service.status(has_redis=self.pulse.has_redis()))
        return [index for index in silent if self.pulse.has_had_time(index, limit)]

    def _wait_for_all(self) -> None:
        if self.service.beats:
            self._ready_by = time.monotonic() + _LONGEST_RELOAD
            self.interval = _POLL

    def _say_ready(self) -> None:
        self._ready_by = None
        self.interval = self.service.beats or Parent.interval
        self.service.say_ready(has_redis=self.pulse.has_redis())
