"""The process that answers: the parts put together in one event loop, until it is told to end."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbs_policy.log import Log, printable
from pbs_policy.service.reload import Configuration, Renewal, report_faults
from pbs_policy.service.server import PolicyServer
from pbs_policy.service.service import Service
from pbs_policy.service.sockets import accept
from pbs_policy.service.upkeep import Upkeep
from pbs_policy.settings.sources import SettingsError
from pbs_policy.store.lookups import Lookups
from pbs_policy.store.redis_url import Login
from pbs_policy.table.keys import Keys
from pbs_policy.table.usage import Usage

if TYPE_CHECKING:
    from pbs_policy.metrics import Metrics

DRAIN_TIME = 0.8
"""Seconds for requests in flight after SIGTERM: longer than a lookup may take, and the whole ends within 1 s."""

_WRITE_TIME = 0.6
"""Seconds, after that, for what is still to be written to Redis: a lookup and a little more."""

_OWN_DESCRIPTORS = 64
"""Descriptors that are not Postfix': listeners, Redis and its Sentinels, name servers, files; under 30 in all."""

_LONGEST_LIBRARY_LINE = 1000
"""Characters of what a library logs: it may quote what a peer or Redis sent."""


class Process:
    """Serves on `listening` until SIGTERM or SIGINT. `logins` are the password for Redis, and who to log in to
    Sentinels as."""

    def __init__(
        self,
        service: Service,
        logins: tuple[str, Login],
        listening: Sequence[socket.socket],
        metrics: Metrics | None = None,
    ) -> None:
        """`metrics` where they are asked for."""
        self._service = service
        self._log = service.log
        self._password, self._sentinel_login = logins
        self._listening = listening
        self._metrics = metrics
        self._server: PolicyServer
        self._lookups: Lookups

    def run(self) -> None:
        """Serve to the end."""
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, stopping.set)
        self._log.write_soon(loop.call_soon)
        loop.set_exception_handler(partial(_say_fault, self._log))
        libraries = _LibraryLines(self._log, loop)
        logging.getLogger().addHandler(libraries)
        logging.captureWarnings(capture=True)
        service, configuration = self._service, self._service.configuration
        settings = configuration.settings
        keys = Keys(settings.key_prefix)
        lookups = self._lookups = Lookups(
            settings.redis_url, settings.redis_user, self._password, keys.probe, self._log, settings.redis_tls,
            self._sentinel_login,
        )  # fmt: skip
        usage = Usage.following(None, settings.key_prefix, settings.usage_kept)
        server = self._server = PolicyServer(
            settings.rules, settings.addresses, keys, lookups, self._log, settings.log_decisions,
            configuration.maps, usage, configuration.denies, self._metrics.waits.note if self._metrics else None,
        )  # fmt: skip
        server.most_connections = _descriptors_for_peers() - (self._metrics.most_open if self._metrics else 0)
        await lookups.open()
        upkeep = Upkeep(server)
        await upkeep.look()
        keeping_up = asyncio.create_task(upkeep.run())
        servers = [await accept(server, each) for each in self._listening]
        if self._metrics:
            self._metrics.start(server, lambda: upkeep.watchers)
        hangup = asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, hangup.set)
        tasks = [asyncio.create_task(each) for each in (server.sweep(), self._beat(), self._reload(hangup))]
        service.announce()
        service.say_ready(has_redis=lookups.is_connected)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
        # What start-up made stays: the collector need not look at it again and again, nor at each hundred requests.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        await stopping.wait()
        service.notify.stopping()
        for each in servers:
            each.close()
        await server.stop(DRAIN_TIME)
        for task in tasks:
            task.cancel()
        upkeep.stop()
        await asyncio.wait([keeping_up], timeout=_WRITE_TIME)
        if self._metrics:
            await self._metrics.stop()
        await lookups.close()
        logging.getLogger().removeHandler(libraries)
        self._log.write_now()

    async def _beat(self) -> None:
        """Tell the service manager again and again that the loop turns, and whether Redis answers."""
        service = self._service
        while service.beats:
            service.notify.alive(service.status(has_redis=self._lookups.is_connected))
            await asyncio.sleep(service.beats)

    async def _reload(self, hangup: asyncio.Event) -> None:
        """Read the settings anew at each SIGHUP, and go over to them between two requests."""
        service = self._service
        while True:
            await hangup.wait()
            hangup.clear()
            service.notify.reloading()
            try:
                # Requests are answered meanwhile: a file of sender_maps may be long.
                renewal = await asyncio.to_thread(Renewal.read, service.configuration, service.load)
            except SettingsError as error:
                report_faults(error, self._log)
            else:
                service.take(renewal)
                self._follow(renewal.configuration)
            service.say_ready(has_redis=self._lookups.is_connected)

    def _follow(self, configuration: Configuration) -> None:
        settings = configuration.settings
        self._server.follow(
            settings.rules, settings.addresses, settings.log_decisions, configuration.maps, configuration.denies
        )
        self._server.usage = Usage.following(self._server.usage, settings.key_prefix, settings.usage_kept)


def _say_fault(log: Log, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What went wrong in the event loop and nobody waits for, as one line of the log. asyncio would write a traceback
    to standard error; uvloop has one where a connection is given up in the middle of a TLS handshake."""
    error = context.get("exception")
    frames = traceback.extract_tb(error.__traceback__) if error else ()
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    log.error(f"event loop: {printable(context['message'] + (f': {error!r}' if error else ''))}{place}")


class _LibraryLines(logging.Handler):
    """Hands what libraries log or warn of to our log, one line each. Python would write it to standard error as it
    is: of several lines, in no form of ours, and waiting for a full pipe."""

    def __init__(self, log: Log, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        """One record as a line. A traceback is left out, but for its error."""
        try:
            text = record.getMessage()
        except Exception as error:  # noqa: BLE001 - a library's record whose arguments do not fit its text
            text = f"{record.msg!r} ({error!r})"
        if record.exc_info and record.exc_info[1]:
            text += f": {record.exc_info[1]!r}"
        say = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        line = f"{printable(record.name)}: {printable(' '.join(text.split()), _LONGEST_LIBRARY_LINE)}"
        if threading.current_thread() is threading.main_thread():
            say(line)
        else:  # our log belongs to the loop's thread; a loop that is closed has no use for the line
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(say, line)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def loop_name() -> str:
    """What the event loop is called."""
    return _loop_factory().__module__.partition(".")[0]


def raise_descriptor_limit() -> None:
    """One descriptor per smtpd of each Postfix: take what the administrator allows, not the shell's default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:  # in a unit they are equal, and the call is filtered
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _descriptors_for_peers() -> int:
    """How many connections there may be, so that one to Redis can always be opened, and a log be written."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - _OWN_DESCRIPTORS, soft // 2)
