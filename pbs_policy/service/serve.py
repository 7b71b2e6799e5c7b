"""The policy service, from its start to its end: an inventory of its parts.

One process answers (`process`), or several workers do (`crew`), which a parent looks after (`workers`).
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pbs_policy.log import Log
from pbs_policy.service.crew import Crew, Worker
from pbs_policy.service.handover import forget, room_for_connections
from pbs_policy.service.notify import Notify
from pbs_policy.service.passed import compare, take
from pbs_policy.service.process import DRAIN_TIME, Process, loop_name, raise_descriptor_limit
from pbs_policy.service.reload import Configuration, Load
from pbs_policy.service.service import Alone, Service
from pbs_policy.service.sockets import open_listeners, remove_paths, share
from pbs_policy.service.workers import supervise
from pbs_policy.settings import Settings
from pbs_policy.sources import Value

if TYPE_CHECKING:
    from pbs_policy.metrics.place import Place


def run(settings: Settings, values: Mapping[str, Value], log: Log, load: Load) -> None:
    """Serve until SIGTERM or SIGINT; at SIGHUP `load` reads the settings anew.

    Raises ListenError, and SettingsError for an unreadable password, or what is wrong in sender_maps.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])  # it waits until somebody can obey it
    configuration = Configuration.begin(settings, values)
    credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
    logins = settings.redis_password(credentials), settings.sentinel_login(credentials)
    notify = Notify.from_environment(os.environ)
    raise_descriptor_limit()
    passed = take(os.environ)
    shares = _listen(settings, values, passed.listening, log)
    if passed.connections:
        forget(notify)
    room = room_for_connections(os.environ) // settings.workers if passed.listening else None
    place = _open_metrics(settings, log) if settings.metrics_listen else None
    service = Service(configuration, load, shares[0], notify, log)
    try:
        if settings.workers == 1:
            exporter = place.exporter(0) if place else None
            alone = Process(configuration, logins, shares[0], log, exporter, passed.connections, room)
            alone.run(Alone(service))
        else:
            crew = Crew(service, passed.connections)

            def work(index: int, lifeline: int) -> None:
                connections = crew.take_connections(index)
                exporter = place.exporter(index) if place else None
                worker = Process(service.configuration, logins, shares[index], log, exporter, connections, room)
                worker.run(Worker(crew, index, lifeline))

            supervise(settings.workers, work, DRAIN_TIME + 0.1, log, crew)
    finally:
        if not passed.listening:
            remove_paths(settings)
        log.info("stopped")


def _listen(
    settings: Settings, values: Mapping[str, Value], passed: list[socket.socket], log: Log
) -> list[list[socket.socket]]:
    """The sockets of each worker: those that were passed, or else what `listen` says, opened."""
    if passed:
        if places := compare(settings.listen, values["listen"], passed):
            log.warning(
                f"the service manager passed {places}: say so in listen, where query, doctor and install-postfix look"
            )
        return [passed] * settings.workers
    if settings.workers > 1:
        # Sharing a port among our workers would share it with another service's as well: see that it is free.
        for each in open_listeners(settings, shared=False):
            each.close()
    shares = [open_listeners(settings, shared=settings.workers > 1)]
    # A unix socket has one queue that all workers share; TCP ports get one for each worker from the kernel.
    return shares + [share(shares[0]) for _ in range(settings.workers - 1)]


def _open_metrics(settings: Settings, log: Log) -> Place:
    """What answers at `metrics_listen`. Raises ListenError, and SettingsError where a package is missing."""
    from pbs_policy.metrics.place import Place  # 60 ms, and 5 MB

    place = Place(settings, loop_name())
    place.announce(log)
    return place
