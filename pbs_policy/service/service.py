"""A daemon of ours as others see it, the policy service or the recorder: its settings now, what the log says at the
start and at a reload, and what the service manager is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from pbs_policy import __version__
from pbs_policy.log import Log, printable
from pbs_policy.postfix.listener import listener_of
from pbs_policy.service.notify import Notify
from pbs_policy.service.reload import Configuration, Load, Renewal, report_faults
from pbs_policy.settings.sources import SettingsError

_BEAT = 1.0
"""Seconds between two signs of life."""


class Service:
    """The settings now, and who is told of them. `has_redis` says whether Redis answers."""

    def __init__(
        self, configuration: Configuration, load: Load, listening: Sequence[socket.socket], notify: Notify, log: Log
    ) -> None:
        self.configuration = configuration
        self.load = load
        self.notify = notify
        self.log = log
        self.listeners = [listener_of(each) for each in listening]
        self._places = " ".join(map(str, self.listeners)) or "nothing"
        self.has_redis: Callable[[], bool] = lambda: False

    @property
    def beats(self) -> float:
        """Seconds between two signs of life that the service manager wants, 0 for none."""
        if not self.notify:
            return 0.0
        return min(_BEAT, self.notify.watchdog / 4) if self.notify.watchdog else _BEAT

    def announce(self) -> None:
        """The first line of the log: from now on whoever connects is served."""
        values = self.configuration.values
        changed = " ".join(f"{name}={value.text!r}" for name, value in values.items() if value.place != "default")
        changed = printable(changed, 1000) or "all defaults"
        self.log.info(f"pbs-policy {__version__} ready, listening on {self._places}; {changed}")

    def say_ready(self) -> None:
        """Tell the service manager that the service has begun, or has ended its reload."""
        self.notify.ready(self.status())

    def status(self) -> str:
        """What `systemctl status` is to show."""
        redis = "Redis answers" if self.has_redis() else "Redis is unavailable"
        return f"listening on {printable(self._places, 500)}; {redis}"

    async def beat(self) -> None:
        """Tell the service manager again and again that the loop turns, and whether Redis answers."""
        while self.beats:
            self.notify.alive(self.status())
            await asyncio.sleep(self.beats)

    async def reload_at(self, hangup: asyncio.Event, follow: Callable[[Configuration], None]) -> None:
        """Read the settings anew at each SIGHUP, and have the parts `follow` them: between two requests."""
        while True:
            await hangup.wait()
            hangup.clear()
            self.notify.reloading()
            try:
                # Requests are answered meanwhile: a file of sender_maps may be long.
                renewal = await asyncio.to_thread(Renewal.read, self.configuration, self.load)
            except SettingsError as error:
                report_faults(error, self.log)
            else:
                self.take(renewal)
                follow(renewal.configuration)
            self.say_ready()

    def take(self, renewal: Renewal) -> None:
        """Go on with settings that were read anew."""
        self.configuration = renewal.configuration
        renewal.report(self.log)
