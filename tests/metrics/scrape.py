"""Asking a service for its metrics and its health, as Prometheus and a load balancer do."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.query import connect
from tests.service import Service

Labels = frozenset[tuple[str, str]]


class _Connection(http.client.HTTPConnection):
    """HTTP to a listener of any kind."""

    def __init__(self, listener: Listener) -> None:
        super().__init__("localhost", timeout=60)
        self._listener = listener

    def connect(self) -> None:
        self.sock: socket.socket = connect(self._listener, 10)


def metrics_listener(service: Service) -> Listener:
    """Where a service says that its metrics are."""
    return Listener.parse(re.findall(r"metrics and health at (\S+)", service.log())[-1])


def get(service: Service, path: str) -> tuple[int, str]:
    """Status and text of a page."""
    connection = _Connection(metrics_listener(service))
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


class Scrape:
    """One reading of all metrics."""

    def __init__(self, service: Service) -> None:
        status, text = get(service, "/metrics")
        assert status == 200
        self.text = text
        self.families: list[Metric] = list(text_string_to_metric_families(text))
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        """One number; None where there is none."""
        return self._samples.get((f"pbs_policy_{name}", frozenset(labels.items())))

    def decisions(self) -> dict[str, float]:
        """How many of each `<action> <reason>`, those that there were."""
        found = {
            f"{dict(labels)['action']} {dict(labels)['reason']}": value
            for (name, labels), value in self._samples.items()
            if name == "pbs_policy_decisions_total"
        }
        return {name: value for name, value in found.items() if value}

    def labels(self) -> Iterator[tuple[str, str]]:
        """Each label with each of its values."""
        for _, labels in self._samples:
            yield from labels
