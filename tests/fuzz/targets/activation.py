"""Whatever the environment says of sockets that a service manager has passed, and whatever the descriptors are: only
listening stream sockets are listened on, what an earlier version left is ended, no descriptor is touched
that was not announced to this process, and everything else is a `ListenError` of one printable line. The manager's
other variables (where to notify, how often) are taken or passed over.
"""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace
from typing import Any, Self

from pbs_policy.postfix.listener import ListenError
from pbs_policy.service import passed
from pbs_policy.service.notify import Notify
from tests.fuzz.targets import Supply

WORDS = (
    b"1", b"2", b"3", b"-1", b"0x3", b" 3", b"+3", b"3_0", b"\xd9\xa3", b"9" * 20, b"connection", b"connection:",
    b":", b"inet:unix", b"\n", b"\x1b[2J", b"LISTEN_PID", b"LISTEN_FDS", b"NOTIFY_SOCKET", b"/run/systemd/notify",
    b"@notify", b"WATCHDOG_USEC", b"WATCHDOG_PID", b"1e9", b"inf", b"\xff",
)  # fmt: skip

_FIRST = 3
_STREAM, _DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
_KINDS: tuple[tuple[int, int, bool] | None, ...] = (
    (socket.AF_UNIX, _STREAM, True),
    (socket.AF_INET, _STREAM, True),
    (socket.AF_INET6, _STREAM, False),
    (socket.AF_UNIX, _DATAGRAM, False),
    (socket.AF_NETLINK, _STREAM, True),
    None,  # a file
)


class _Socket:
    """In place of a socket."""

    def __init__(self, fileno: int, kind: tuple[int, int, bool], ended: set[int]) -> None:
        self.number = fileno
        self._ended = ended
        self.family, self.type, self.listens = kind

    def getsockopt(self, *_: int) -> int:
        return int(self.listens)

    def setblocking(self, _: bool) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert not self.listens
        self._ended.add(self.number)

    def shutdown(self, _: int) -> None: ...

    def detach(self) -> int:
        return self.number


def run(data: bytes) -> None:
    """The first bytes say which descriptors there are and whether they are for us; the others are variables."""
    supply = Supply(data)
    kinds = [_KINDS[supply.number(len(_KINDS))] for _ in range(supply.number(6))]
    touched: set[int] = set()
    ended: set[int] = set()

    def opened(fileno: int) -> _Socket:
        touched.add(fileno)
        kind = kinds[fileno - _FIRST] if fileno - _FIRST < len(kinds) else None
        if kind is None:
            raise OSError(88, "Socket operation on non-socket")
        return _Socket(fileno, kind, ended)

    pid = str(os.getpid()) if supply.number(4) else _text(supply)
    environment = {"LISTEN_PID": pid, "LISTEN_FDS": _text(supply), "LISTEN_FDNAMES": _text(supply), "OTHER": "x"}
    while supply:
        name = _text(supply)
        if not name.startswith("LISTEN"):
            environment[name] = _text(supply)
    _manage(environment)
    announced = environment["LISTEN_FDS"] if pid == str(os.getpid()) else "0"
    names = environment["LISTEN_FDNAMES"].split(":")
    module: Any = passed
    real = module.socket, module.os.set_inheritable
    constants = {name: getattr(socket, name) for name in dir(socket) if name.isupper()}
    module.socket = SimpleNamespace(**{**constants, "socket": opened})
    module.os.set_inheritable = lambda *_: None
    try:
        found: Any = passed.take(environment)
    except ListenError as error:
        said = str(error)
        if not said.isprintable() or len(said) > 600:
            raise AssertionError(said) from None
        return
    finally:
        module.socket, module.os.set_inheritable = real
    assert not any(name.startswith("LISTEN_") for name in environment)
    count = int(announced)
    assert touched == set(range(_FIRST, _FIRST + count))
    assert len(found) + len(ended) == count
    for each in found:
        assert each.listens
        assert (each.family, each.type) in ((socket.AF_UNIX, _STREAM), (socket.AF_INET, _STREAM))
    for number in ended:
        assert names[number - _FIRST] == "connection"


def _manage(environment: dict[str, str]) -> None:
    notify = Notify.from_environment(environment)
    assert 0 <= notify.watchdog < 10**12
    assert (notify.beats > 0) <= (environment.get("NOTIFY_SOCKET", "")[:1] in ("/", "@"))


def _text(supply: Supply) -> str:
    """A variable's text as Python has it; it ends with 0xFF, which stands in it as any byte else does not."""
    return supply.piece().replace(b"\0", b"\xff").decode("utf-8", "surrogateescape")
