"""A daemon of ours as others see it, the policy service or the recorder: its settings now, its Redis, its signals,
what the log says at the start and at a reload, and what the service manager is told."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from pbs_policy import __version__
from pbs_policy.event_loop import logging_to, loop_factory
from pbs_policy.log import Log, printable
from pbs_policy.postfix.listener import Listener, listener_of
from pbs_policy.service.notify import Notify
from pbs_policy.service.reload import Configuration, Load
from pbs_policy.settings import Settings
from pbs_policy.settings.sources import SettingsError, Value
from pbs_policy.store.lookups import Lookups
from pbs_policy.store.question import Command
from pbs_policy.table.keys import Keys


class Service:
    """The settings now, and who is told of them."""

    def __init__(
        self, settings: Settings, values: Mapping[str, Value], log: Log, load: Load, probe: Command = ()
    ) -> None:
        """At SIGHUP `load` reads the settings anew; `probe` is for a user of Redis who may not GET. Raises
        SettingsError for an unreadable password, or what is wrong in sender_maps, denies or the files for TLS."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])  # it waits until somebody can obey it
        self.configuration = Configuration.begin(settings, values)
        self.log = log
        self.notify = Notify.from_environment(os.environ)
        self.keys = Keys(settings.key_prefix)
        credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
        self.lookups = Lookups(
            settings.redis_url, settings.redis_user, settings.redis_password(credentials), self.keys.probe, log,
            settings.redis_tls, settings.sentinel_login(credentials), probe,
        )  # fmt: skip
        self.listening: Sequence[socket.socket] = ()
        self._load = load
        self._places = "nothing"
        self._hangup = asyncio.Event()

    @property
    def listeners(self) -> list[Listener]:
        """Where it listens."""
        return list(map(listener_of, self.listening))

    def run(self, work: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
        """Do `work` in the event loop; it is given what SIGTERM and SIGINT set."""
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self._run(work))

    async def _run(self, work: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
        with logging_to(self.log):
            await work(stopping)

    def announce(self) -> None:
        """Whoever connects is served from now on: the log's first line, and what the service manager waits for."""
        self._places = " ".join(map(str, self.listeners)) or "nothing"
        values = self.configuration.values
        changed = " ".join(f"{name}={value.text!r}" for name, value in values.items() if value.place != "default")
        changed = printable(changed, 1000) or "all defaults"
        self.log.info(f"pbs-policy {__version__} ready, listening on {self._places}; {changed}")
        self.notify.ready(self.status())

    def status(self) -> str:
        """What `systemctl status` is to show."""
        redis = "Redis answers" if self.lookups.is_connected else "Redis is unavailable"
        return f"listening on {printable(self._places, 500)}; {redis}"

    async def beat(self) -> None:
        """Tell the service manager again and again that the loop turns, and whether Redis answers."""
        while beats := self.notify.beats:
            self.notify.alive(self.status())
            await asyncio.sleep(beats)

    async def reload_at_hangup(self, follow: Callable[[Configuration], None]) -> None:
        """Read the settings anew at each SIGHUP, and have the parts `follow` them: between two requests."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self.notify.reloading()
            try:
                # Requests are answered meanwhile: a file of sender_maps may be long.
                renewal = await asyncio.to_thread(self.configuration.read_anew, self._load)
            except SettingsError as error:
                for fault in error.faults:
                    self.log.error(printable(fault, 1000))
                self.log.error("the settings were not read anew, what they said before holds")
            else:
                self.configuration = renewal.configuration
                self._report(renewal.changed, renewal.waiting)
                follow(renewal.configuration)
            self.notify.ready(self.status())

    def _report(self, changed: Sequence[str], waiting: Sequence[str]) -> None:
        values = self.configuration.values
        said = " ".join(f"{name}={values[name].text!r}" for name in changed)
        self.log.info(f"the settings were read anew: {printable(said, 1000) or 'nothing has changed'}")
        if waiting:
            self.log.warning(f"only a restart changes {', '.join(waiting)}: what was set before holds until then")
