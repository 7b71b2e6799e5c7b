"""The policy service, from its start to its end: an inventory of its parts. What happens in between is `process`."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pbs_policy.extras import why_no_metrics
from pbs_policy.log import Log
from pbs_policy.service.notify import Notify
from pbs_policy.service.passed import compare, take
from pbs_policy.service.process import Process, raise_descriptor_limit
from pbs_policy.service.reload import Configuration, Load
from pbs_policy.service.service import Service
from pbs_policy.service.sockets import open_listeners, remove_paths
from pbs_policy.settings import Settings
from pbs_policy.settings.sources import Value

if TYPE_CHECKING:
    from pbs_policy.metrics import Metrics


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
    listening = _listen(settings, values, passed, log)
    metrics = _open_metrics(settings, log) if settings.metrics_listen else None
    service = Service(configuration, load, listening, notify, log)
    try:
        Process(service, logins, listening, metrics).run()
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
