"""Loopback ports for private daemons: which are free, and who answers there."""

from __future__ import annotations

import itertools
import random
import socket

# Below Linux' ephemeral range (32768-60999): no outgoing connection can be sitting on the port we picked.
PORT_RANGE = range(20000, 32768)

# Shuffled once, then handed out in turn: the second port asked for is never the first, which its daemon may not have
# bound yet.
_ports = itertools.cycle(random.sample(PORT_RANGE, len(PORT_RANGE)))


def has_ipv6() -> bool:
    """Whether ::1 can be listened on here; many containers have no IPv6 at all."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def free_port() -> int:
    """Return a port that nothing listens on, on 127.0.0.1 and, where there is IPv6, on ::1.

    None is handed out twice before all others were. Raises OSError if a thousand of them are taken.
    """
    for port in itertools.islice(_ports, 1000):
        if _can_bind(socket.AF_INET, "127.0.0.1", port) and (
            not has_ipv6() or _can_bind(socket.AF_INET6, "::1", port)
        ):
            return port
    raise OSError(f"no free port between {PORT_RANGE.start} and {PORT_RANGE.stop - 1}")


def _can_bind(family: socket.AddressFamily, host: str, port: int) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the daemons do it: a connection in TIME_WAIT does not occupy the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def greets(port: int, greeting: bytes, *, host: str = "127.0.0.1") -> bool:
    """Whether a server on this port opens the conversation with these bytes, as SMTP, POP3 and IMAP do."""
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection:
            return connection.recv(512).startswith(greeting)
    except OSError:
        return False
