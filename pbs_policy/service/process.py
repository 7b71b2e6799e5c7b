"""The process that answers: the parts put together in one event loop, until it is told to end."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pbs_policy.event_loop import logging_to, loop_factory
from pbs_policy.service.reload import Configuration
from pbs_policy.service.server import PolicyServer
from pbs_policy.service.service import Service
from pbs_policy.service.sockets import accept
from pbs_policy.service.upkeep import Upkeep
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
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        with logging_to(self._log):
            await self._serve()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, stopping.set)
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
        for listener in service.listeners:
            if not listener.is_local:
                self._log.warning(
                    f"listening on {listener}: whoever can reach it may ask who may relay; "
                    "127.0.0.1, [::1] or a unix socket keep it to this machine"
                )
        service.announce()
        service.has_redis = lambda: lookups.is_connected
        service.say_ready()
        following = service.reload_at(hangup, self._follow)
        tasks = [asyncio.create_task(each) for each in (server.sweep(), service.beat(), following)]
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

    def _follow(self, configuration: Configuration) -> None:
        settings = configuration.settings
        self._server.follow(
            settings.rules, settings.addresses, settings.log_decisions, configuration.maps, configuration.denies
        )
        self._server.usage = Usage.following(self._server.usage, settings.key_prefix, settings.usage_kept)


def raise_descriptor_limit() -> None:
    """One descriptor per smtpd of each Postfix: take what the administrator allows, not the shell's default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:  # in a unit they are equal, and the call is filtered
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _descriptors_for_peers() -> int:
    """How many connections there may be, so that one to Redis can always be opened, and a log be written."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - _OWN_DESCRIPTORS, soft // 2)
