"""Where lines of the log go: standard error, the journal behind it, syslog's socket. None of them raises for a line
that cannot be written, and none waits: one thread answers all of Postfix, and a reader that hangs would stop every
smtpd. What is not taken for long is lost, and counted; `Log` says so when lines are taken again.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

Word = Literal["info", "warning", "error"]
"""Postfix' words."""

PRIORITIES: dict[Word, int] = {"info": 6, "warning": 4, "error": 3}
"""syslog(3): LOG_INFO, LOG_WARNING, LOG_ERR."""

SYSLOG = "/dev/log"
"""Where syslog listens, for syslog(3) as for us."""

_MAIL = 2 << 3  # the facility
_TAG = "pbs-policy"
_MOST_WAITING = 2_000  # lines, while nobody takes any: some 300 kB


class Writer(ABC):
    """Where lines go. `begins` is what a line of each word begins with, such as its priority."""

    def __init__(self, begin: str, facility: int = 0) -> None:
        """`begin` holds {} for the priority, where there is one."""
        self.begins: dict[Word, str] = {word: begin.format(facility + number) for word, number in PRIORITIES.items()}
        self.lost = 0
        self.waiting = 0  # lines that nobody has taken yet

    @property
    def is_full(self) -> bool:
        """The next line would be lost."""
        return self.waiting >= _MOST_WAITING

    def write(self, lines: list[str]) -> None:
        """Take lines, which have no newlines, and pass on what is taken at once; none: only what waits is tried."""
        room = max(_MOST_WAITING - self.waiting, 0)
        self.lost += max(len(lines) - room, 0)
        self._pass_on(lines[:room])

    @abstractmethod
    def _pass_on(self, lines: list[str]) -> None:
        """Pass on what waits, and then these."""


class Stream(Writer):
    """A stream of lines, such as a file or a pipe. `give` passes on some bytes and says how many, or raises
    BlockingIOError where it would have to wait."""

    def __init__(
        self, give: Callable[[bytes], int], close: Callable[[], None] = lambda: None, *, to_journal: bool = False
    ) -> None:
        """A line to the journal begins with its priority: sd-daemon(3)."""
        super().__init__("<{}>" if to_journal else "")
        self.close = close
        self._give = give
        self._rest = b""

    def _pass_on(self, lines: list[str]) -> None:
        """Lines that were begun are given to their end, in their order."""
        if lines:
            self._rest += _encoded("\n".join(lines) + "\n")
        try:
            while self._rest:
                self._rest = self._rest[self._give(self._rest) :]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more, or the disk is full
            self.lost += self._rest.count(b"\n")
            self._rest = b""
        self.waiting = self._rest.count(b"\n")


class Syslog(Writer):
    """syslog's socket: a datagram for each line, in the form that syslog(3) gives it, of the facility mail."""

    def __init__(self, path: str = SYSLOG) -> None:
        super().__init__("<{}>", _MAIL)
        self._datagrams: deque[bytes] = deque()
        self._path = path
        self._socket: socket.socket | None = None

    def _pass_on(self, lines: list[str]) -> None:
        head = time.strftime("%b %e %H:%M:%S ") + f"{_TAG}[{os.getpid()}]: "
        self._datagrams += [_encoded(line.replace(">", f">{head}", 1)) for line in lines]
        self._send()
        self.waiting = len(self._datagrams)

    def _send(self) -> None:
        may_open = True
        while self._datagrams:
            try:
                if self._socket is None:
                    may_open = False
                    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                    self._socket.connect(self._path)
                self._socket.send(self._datagrams[0])
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    self.lost += 1
                    self._datagrams.popleft()
                    continue
                # syslog was started again and listens at a new socket, or is not there; tried again next time.
                self.close()
                if not may_open:
                    return
            else:
                self._datagrams.popleft()

    def close(self) -> None:
        """End the connection; the next line opens one."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def writer_to(place: str, environment: Mapping[str, str]) -> Writer:
    """The writer for a value of `log_to`."""
    if place == "stderr":
        return standard_error(environment)
    return Syslog(place.partition(":")[2] or SYSLOG)


def standard_error(environment: Mapping[str, str]) -> Stream:
    """Standard error, or the journal where it is that: systemd.exec(5), JOURNAL_STREAM."""
    try:
        descriptor = sys.stderr.fileno()
    except OSError:
        return Stream(sys.stderr.buffer.write)  # no file: whoever calls us in his own process catches it
    status = os.fstat(descriptor)
    is_journal = environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return Stream(*_without_waiting(descriptor), to_journal=is_journal)


def _without_waiting(descriptor: int) -> tuple[Callable[[bytes], int], Callable[[], None]]:
    """How to write to a descriptor that others have as well, and how to close what was opened for that. O_NONBLOCK on
    it would be theirs too, and they would lose lines: so a pipe or terminal is opened once more, for us alone."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        peer = socket.socket(fileno=os.dup(descriptor))
        return partial(_send_now, peer), peer.close
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        return partial(os.write, descriptor), lambda: None  # a file takes what it is given
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # it belongs to the user who started us as another one, as runit and s6 do
        return partial(_write_where_there_is_room, descriptor), lambda: None
    return partial(os.write, own), partial(os.close, own)


def _send_now(peer: socket.socket, data: bytes) -> int:
    return peer.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _write_where_there_is_room(descriptor: int, data: bytes) -> int:
    """A pipe that can be written to has room for PIPE_BUF bytes, unless somebody else is quicker: pipe(7)."""
    if not select.select([], [descriptor], [], 0)[1]:
        raise BlockingIOError
    return os.write(descriptor, data[: select.PIPE_BUF])


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
