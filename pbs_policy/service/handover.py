"""Connections that outlive a process: the service manager keeps them in its descriptor store (FDSTORE=1 of
sd_notify(3)) while the service is restarted, and passes them on to the next process beside the listening sockets.

Why: a Postfix in the middle of an SMTP session takes a closed connection for a failure. With try_limit=2 the
next recipient waits for a second; with 1 it and every other one of that session gets default_action. Kept, the
connection answers late by the time of the restart, and nobody notices. Only what is quiet is kept: no request half
read, none without its answer, nothing that the peer has not taken.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import struct
import termios
from collections.abc import Callable, Mapping, Sequence

from pbs_policy.service.notify import Notify
from pbs_policy.service.passed import CONNECTION

AT_ONCE = 200
"""Descriptors in one message; the kernel takes 253 (SCM_MAX_FD)."""


def room_for_connections(environment: Mapping[str, str]) -> int:
    """How many the manager keeps: FDSTORE, which systemd sets from version 254 on, and the unit before."""
    text = environment.get("FDSTORE", "")
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else 0


class Handover:
    """Up to `room` connections for the next process; `give` takes some of them, to be closed here afterwards."""

    def __init__(self, room: int, give: Callable[[Sequence[int]], object]) -> None:
        self._room = room
        self._give = give
        self._kept: list[int] = []

    def keep(self, transport: asyncio.Transport) -> bool:
        """Keep a connection that is quiet, where there is room: the transport is to be aborted then. TLS has no part
        in this: what is kept is what the kernel has of it."""
        if len(self._kept) >= self._room or transport.is_closing() or transport.get_write_buffer_size():
            return False
        transport.pause_reading()  # from here on the peer's bytes wait in the kernel
        try:
            self._kept.append(os.dup(_descriptor(transport)))
        except OSError:
            return False
        return True

    def send(self) -> None:
        """Give away what was kept. What is not taken is closed."""
        kept, self._kept = self._kept, []
        for at in range(0, len(kept), AT_ONCE):
            self._give(kept[at : at + AT_ONCE])
        for each in kept:
            os.close(each)


def store(notify: Notify, descriptors: Sequence[int]) -> None:
    """Give connections to the manager. It must hear it from the process that it started (NotifyAccess=main)."""
    if notify.send("FDSTORE=1", f"FDNAME={CONNECTION}", descriptors=descriptors):
        notify.wait_until_read()


def forget(notify: Notify) -> None:
    """They are ours now: else the manager's copies would hold open what we close."""
    notify.send("FDSTOREREMOVE=1", f"FDNAME={CONNECTION}")


def bytes_waiting(transport: asyncio.Transport) -> int:
    """How many bytes of the peer's the kernel has, and nobody has read."""
    try:
        found = fcntl.ioctl(_descriptor(transport), termios.FIONREAD, bytes(4))
    except OSError:
        return 0
    return int(struct.unpack("i", found)[0])


def _descriptor(transport: asyncio.Transport) -> int:
    """Raises OSError where it has none any more."""
    socket = transport.get_extra_info("socket")
    if socket is None:
        raise OSError("closed")
    return int(socket.fileno())
