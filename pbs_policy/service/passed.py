"""What a service manager passes at the start (sd_listen_fds(3)): descriptors from 3 on, which LISTEN_FDS counts,
LISTEN_FDNAMES names and LISTEN_PID addresses: listening sockets. What they are is looked at, since an environment is
easily inherited by somebody whom it does not concern.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import MutableMapping, Sequence
from contextlib import suppress

from pbs_policy.log import printable
from pbs_policy.postfix.listener import Listener, ListenError, listener_of
from pbs_policy.settings.sources import SettingsError, Value

_FIRST = 3
_KEPT = "connection"  # what a process of version 0.1 left with the manager for the next one, whose unit still lets it
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - to recognise them, not to listen there


def take(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """Take the listening sockets that were passed to this process, and what says so out of `environment`. Where there
    are none, `listen` says what to open.

    Raises ListenError where they are not what they should be.
    """
    pid, number, names = (environment.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    passed: list[socket.socket] = []
    if pid != str(os.getpid()):
        return passed  # nothing, or somebody else's
    if not re.fullmatch("[0-9]{1,9}", number):
        raise ListenError(f"LISTEN_FDS={printable(number)}: expected the number of the sockets that are passed")
    called = names.split(":") if names else []
    for at in range(int(number)):
        name = called[at] if at < len(called) else ""
        each = _socket(_FIRST + at, name)
        if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            passed.append(each)
        elif name == _KEPT:
            _end(each)
        else:
            raise ListenError(f"{_what(_FIRST + at, name)} does not listen: expected Accept=no in the socket unit")
    return passed


def _end(connection: socket.socket) -> None:
    """Not only close it: the manager has a copy, which would keep the peer waiting."""
    with connection, suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _socket(descriptor: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        found = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ListenError(f"{_what(descriptor, name)} is not a socket: {error.strerror}") from None
    if found.family not in _FAMILIES or found.type != socket.SOCK_STREAM:
        found.detach()  # not ours to close
        raise ListenError(f"{_what(descriptor, name)} is not a stream socket: expected ListenStream=")
    found.setblocking(False)
    return found


def _what(descriptor: int, name: str) -> str:
    return f"descriptor {descriptor}, passed as {printable(name, 100) or 'nothing'!r},"


def compare(listen: Sequence[Listener], value: Value, listening: Sequence[socket.socket]) -> str:
    """Where `listen`, which is `value`, names something that was not passed: what was passed, else nothing.

    Raises SettingsError where somebody wrote it down: Postfix may be asking there. More may be passed than it names.
    """
    places = [listener_of(each) for each in listening]
    missing = [str(each) for each in listen if not any(_serves(place, each) for place in places)]
    if not missing:
        return ""
    passed = " ".join(map(str, places))
    if value.place == "default":
        return passed
    raise SettingsError(
        [f"{value.place}: listen: the service manager passed {passed}, and not {' '.join(missing)}: "
         "make listen and the socket unit's ListenStream= equal"]
    )  # fmt: skip


def _serves(place: Listener, wanted: Listener) -> bool:
    """Whether who listens at `place` is reached at `wanted`."""
    if wanted.path or place.path:
        return bool(wanted.path and place.path) and os.path.realpath(place.path) == os.path.realpath(wanted.path)
    if wanted.port not in (0, place.port):
        return False
    if place.host in _WILDCARDS:
        return True
    try:
        found = socket.getaddrinfo(wanted.host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return place.host in {address[0] for *_, address in found}
