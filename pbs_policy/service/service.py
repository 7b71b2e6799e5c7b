"""The service as a whole, whatever the number of its processes: its settings now, what is said of it at the start and
of a reload, and what the service manager is told. `Alone` is the role of the one process that is all of it.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Sequence

from pbs_policy import __version__
from pbs_policy.log import Log, printable
from pbs_policy.postfix.listener import listener_of
from pbs_policy.service import connection
from pbs_policy.service.handover import store
from pbs_policy.service.notify import Notify
from pbs_policy.service.process import Process
from pbs_policy.service.reload import Configuration, Load, Renewal, report_faults
from pbs_policy.sources import SettingsError

_BEAT = 1.0
"""Seconds between two signs of life."""


class Service:
    """What there is once: the settings now, and who is told of them."""

    def __init__(
        self, configuration: Configuration, load: Load, listening: Sequence[socket.socket], notify: Notify, log: Log
    ) -> None:
        self.configuration = configuration
        self.load = load
        self.notify = notify
        self.log = log
        self._listeners = [listener_of(each) for each in listening]
        self._places = " ".join(map(str, self._listeners))

    @property
    def beats(self) -> float:
        """Seconds between two signs of life that the service manager wants, 0 for none."""
        if not self.notify:
            return 0.0
        return min(_BEAT, self.notify.watchdog / 4) if self.notify.watchdog else _BEAT

    def announce(self) -> None:
        """The first line of the log: from now on whoever connects is served."""
        values = self.configuration.values
        for listener in self._listeners:
            if not listener.is_local:
                self.log.warning(
                    f"listening on {listener}: whoever can reach it may ask who may relay; "
                    "127.0.0.1, [::1] or a unix socket keep it to this machine"
                )
        changed = " ".join(f"{name}={value.text!r}" for name, value in values.items() if value.place != "default")
        changed = printable(changed, 1000) or "all defaults"
        version = __version__ if connection.__file__.endswith(".py") else f"{__version__} (compiled)"
        self.log.info(f"pbs-policy {version} ready, listening on {self._places}; {changed}")

    def say_ready(self, *, has_redis: bool) -> None:
        """Tell the service manager that the service has begun, or has ended its reload."""
        self.notify.ready(self.status(has_redis=has_redis))

    def status(self, *, has_redis: bool) -> str:
        """What `systemctl status` is to show."""
        workers = self.configuration.settings.workers
        crew = f", {workers} workers" if workers > 1 else ""
        redis = "Redis answers" if has_redis else "Redis is unavailable"
        return f"listening on {printable(self._places, 500)}{crew}; {redis}"

    def take(self, renewal: Renewal) -> None:
        """Go on with settings that were read anew."""
        self.configuration = renewal.configuration
        renewal.report(self.log)


class Alone:
    """The role of the one process that is the whole service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.beats = service.beats
        self._has_redis = True

    def begin(self, process: Process) -> None:
        loop = asyncio.get_running_loop()
        hangup = asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, hangup.set)
        self._reloading = asyncio.create_task(self._reload(process, hangup))
        self._service.announce()
        self._service.say_ready(has_redis=self._has_redis)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])

    def end(self) -> bool:
        self._service.notify.stopping()
        return True

    def hand_over(self, connections: Sequence[int]) -> None:
        store(self._service.notify, connections)

    def beat(self, *, has_redis: bool) -> None:
        self._has_redis = has_redis
        self._service.notify.alive(self._service.status(has_redis=has_redis))

    async def _reload(self, process: Process, hangup: asyncio.Event) -> None:
        service = self._service
        while True:
            await hangup.wait()
            hangup.clear()
            service.notify.reloading()
            try:
                # Requests are answered meanwhile: a file of sender_maps may be long.
                renewal = await asyncio.to_thread(Renewal.read, service.configuration, service.load)
            except SettingsError as error:
                report_faults(error, service.log)
            else:
                process.follow(renewal.configuration)
                service.take(renewal)
            service.say_ready(has_redis=self._has_redis)
