"""Where the policy service listens, written as Postfix writes it: `inet:HOST:PORT` or `unix:/PATH`."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from ipaddress import ip_address

EXPECTED = "inet:HOST:PORT or unix:/PATH"

_INET = re.compile(r"inet:(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:\[\]]+)):(?P<port>\d{1,5})", re.ASCII)
_UNIX = re.compile(r"unix:(?P<path>/[^\s\0]+)")

LONGEST_PATH = 107
"""Bytes of a unix socket's path; unix(7): sun_path holds 108, one of them the NUL."""


class ListenError(Exception):
    """A listener cannot be opened; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Listener:
    """One place to listen at: `path` (a unix socket), or `host` and `port` (0: any free one)."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Listener:
        """Raises ValueError with what was expected."""
        if match := _INET.fullmatch(text):
            if int(match["port"]) > 65535:
                raise ValueError(f"{text}: a port is at most 65535")
            return cls(host=match["v6"] or match["host"], port=int(match["port"]))
        if match := _UNIX.fullmatch(text):
            if len(match["path"].encode()) > LONGEST_PATH:
                raise ValueError(f"{text}: the path of a unix socket has at most {LONGEST_PATH} bytes")
            return cls(path=match["path"])
        raise ValueError(f"{text}: expected {EXPECTED}")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"inet:[{self.host}]:{self.port}" if ":" in self.host else f"inet:{self.host}:{self.port}"


def listener_of(listening: socket.socket) -> Listener:
    """Where a listening socket can be reached, the port filled in; an abstract name begins with "@"."""
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return Listener(path=name if isinstance(name, str) else "@" + name[1:].decode("utf-8", "replace"))
    return Listener(host=name[0], port=name[1])
