"""Hosts with addresses of their own and links that can be cut: network namespaces on a bridge, which is in a
namespace as well. The machine's own network has no part in it.
"""

from __future__ import annotations

import os
import subprocess
from types import TracebackType
from typing import Self

NETWORK = "192.0.2"
HUB = f"{NETWORK}.254"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Network:
    """`hosts` get 192.0.2.1 and so on, in their order; the hub is 192.0.2.254."""

    def __init__(self, *hosts: str) -> None:
        self._hosts = hosts

    def name(self, host: str) -> str:
        """The namespace of a host, or of the hub."""
        return f"pbs-{os.getpid()}-{host}"

    def address(self, host: str) -> str:
        """The address of a host, or of the hub."""
        return HUB if host == "hub" else f"{NETWORK}.{self._hosts.index(host) + 1}"

    def on(self, host: str) -> list[str]:
        """What stands before a command that is to run there."""
        return ["ip", "netns", "exec", self.name(host)]

    def cut(self, host: str) -> None:
        """Nothing comes from or goes to this host any more, and neither side is told."""
        _ip("-n", self.name("hub"), "link", "set", f"to-{host}", "down")

    def mend(self, host: str) -> None:
        """Its link is up again."""
        _ip("-n", self.name("hub"), "link", "set", f"to-{host}", "up")

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def _make(self) -> None:
        hub = self.name("hub")
        _ip("netns", "add", hub)
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        _ip("-n", hub, "address", "add", f"{HUB}/24", "dev", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        _ip("-n", hub, "link", "set", "lo", "up")
        for host in self._hosts:
            there = self.name(host)
            _ip("netns", "add", there)
            _ip("-n", hub, "link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth0", "netns", there)
            _ip("-n", hub, "link", "set", f"to-{host}", "master", "bridge", "up")
            _ip("-n", there, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("-n", there, "link", "set", "lo", "up")
            _ip("-n", there, "link", "set", "eth0", "up")

    def _remove(self) -> None:
        for host in (*self._hosts, "hub"):
            subprocess.run(["ip", "netns", "delete", self.name(host)], check=False, capture_output=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()
