"""The command line's connection to Redis."""

from __future__ import annotations

import gc
import socket
import warnings

from pbs_policy.store.redis_client import Connector, RedisClient
from pbs_policy.store.redis_socket import Line


class OpenedBefore(Connector):
    """Gives a connection that is open already, to nobody."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def open(self) -> Line:
        return self._line


def test_a_connection_that_nobody_has_any_more_is_closed_also_in_a_ring_of_objects() -> None:
    """A command's exception holds the command's frame, which holds the client and the exception."""
    ours, theirs = socket.socketpair()
    ring: dict[str, object] = {"client": RedisClient(OpenedBefore(Line(ours, "there")))}
    ring["ring"] = ring
    del ours, ring
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gc.collect()
    assert not said
    theirs.setblocking(False)
    with theirs:
        assert theirs.recv(1) == b"", "closed by now"
