"""The policy service, from its start to its end: an inventory of its parts, and the event loop that they share."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pbs_policy.extras import why_no_metrics
from pbs_policy.log import Log
from pbs_policy.service.passed import compare, take
from pbs_policy.service.reload import Load
from pbs_policy.service.server import PolicyServer
from pbs_policy.service.service import Service
from pbs_policy.service.sockets import BACKLOG, open_listeners, remove_paths
from pbs_policy.service.upkeep import Upkeep
from pbs_policy.settings import Settings
from pbs_policy.settings.sources import Value

if TYPE_CHECKING:
    from pbs_policy.metrics import Metrics

DRAIN_TIME = 0.8
"""Seconds for requests in flight after SIGTERM: longer than a lookup may take, and the whole ends within 1 s."""

_WRITE_TIME = 0.6
"""Seconds, after that, for what is still to be written to Redis: a lookup and a little more."""

_OWN_DESCRIPTORS = 64
"""Descriptors that are not Postfix': listeners, Redis and its Sentinels, name servers, files; under 30 in all."""


def run(settings: Settings, values: Mapping[str, Value], log: Log, load: Load) -> None:
    """Serve until SIGTERM or SIGINT; at SIGHUP `load` reads the settings anew.

    Raises ListenError, and SettingsError for an unreadable password, or what is wrong in sender_maps.
    """
    service = Service(settings, values, log, load)
    _raise_descriptor_limit()
    passed = take(os.environ)
    service.listening = _listen(settings, values, passed, log)
    metrics = _open_metrics(settings, log) if settings.metrics_listen else None
    try:
        service.run(lambda stopping: _serve(service, metrics, stopping))
    finally:
        remove_paths((*(() if passed else settings.listen), *(settings.metrics_listen if metrics else ())))
        log.info("stopped")


def _listen(
    settings: Settings, values: Mapping[str, Value], passed: list[socket.socket], log: Log
) -> list[socket.socket]:
    """The sockets to listen on: those that were passed, or else what `listen` says, opened."""
    if passed:
        if places := compare(settings.listen, values["listen"], passed):
            log.warning(
                f"the service manager passed {places}: say so in listen, where query, doctor and install-postfix look"
            )
        return passed
    return open_listeners(settings.listen, settings)


def _open_metrics(settings: Settings, log: Log) -> Metrics | None:
    """What answers at `metrics_listen`; None without the packages for it, which was said when the settings were
    read. Raises ListenError."""
    if why_no_metrics():
        return None
    from pbs_policy.metrics import Metrics  # 0.4 s, and 20 MB

    return Metrics(settings, log)


async def _serve(service: Service, metrics: Metrics | None, stopping: asyncio.Event) -> None:
    lookups = service.lookups
    server = PolicyServer(service.keys, lookups, service.log, metrics.waits.note if metrics else None)
    server.follow(service.configuration)
    server.most_connections = _descriptors_for_peers() - (metrics.most_open if metrics else 0)
    await lookups.open()
    upkeep = Upkeep(server)
    await upkeep.look()
    keeping_up = asyncio.create_task(upkeep.run())
    loop = asyncio.get_running_loop()
    # Not create_unix_server: from Python 3.13 on it removes the path at its end, uvloop's as well, and the path
    # may belong to the service manager; where it is ours, `remove_paths` removes it.
    accepting = [
        await loop.create_server(server.connection, sock=each, backlog=BACKLOG) for each in service.listening
    ]
    if metrics:
        metrics.start(server, lambda: upkeep.watchers)
    for listener in service.listeners:
        if not listener.is_local:
            service.log.warning(
                f"listening on {listener}: whoever can reach it may ask who may relay; "
                "127.0.0.1, [::1] or a unix socket keep it to this machine"
            )
    service.announce()
    work = server.sweep(), service.beat(), service.reload_at_hangup(server.follow)
    tasks = [asyncio.create_task(each) for each in work]
    # What start-up made stays: the collector need not look at it again and again, nor at each hundred requests.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    await stopping.wait()
    service.notify.stopping()
    for each in accepting:
        each.close()
    await server.stop(DRAIN_TIME)
    for task in tasks:
        task.cancel()
    upkeep.stop()
    await asyncio.wait([keeping_up], timeout=_WRITE_TIME)
    if metrics:
        await metrics.stop()
    await lookups.close()


def _raise_descriptor_limit() -> None:
    """One descriptor per smtpd of each Postfix: take what the administrator allows, not the shell's default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:  # in a unit they are equal, and the call is filtered
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _descriptors_for_peers() -> int:
    """How many connections there may be, so that one to Redis can always be opened, and a log be written."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - _OWN_DESCRIPTORS, soft // 2)
