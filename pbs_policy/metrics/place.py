"""Where metrics and health are asked: the sockets, and what never changes."""

from __future__ import annotations

import time

from pbs_policy.log import Log
from pbs_policy.metrics.exporter import Exporter
from pbs_policy.metrics.exposition import About
from pbs_policy.postfix.listener import listener_of
from pbs_policy.service.sockets import open_at
from pbs_policy.settings import Settings

_BACKLOG = 16
"""Connections that the kernel holds for us: whoever floods the place keeps others out for half a second."""


class Place:
    """Where metrics and health are asked."""

    def __init__(self, settings: Settings, event_loop: str) -> None:
        """Raises ListenError."""
        self._about = About(time.time(), event_loop)
        self._sockets = open_at(settings.metrics_listen, settings)
        for each in self._sockets:
            each.listen(_BACKLOG)

    def announce(self, log: Log) -> None:
        """Say where it is."""
        for each in self._sockets:
            listener = listener_of(each)
            if not listener.is_local:
                log.warning(
                    f"metrics are told at {listener} to whoever can reach it; "
                    "127.0.0.1, [::1] or a unix socket keep them to this machine"
                )
        log.info(f"metrics and health at {' '.join(str(listener_of(each)) for each in self._sockets)}")

    def exporter(self) -> Exporter:
        """What answers there."""
        return Exporter(self._about, self._sockets)
