"""Where lines of the log go: a stream, the journal's socket, syslog's. None of them raises for a line that cannot be
written, and the two sockets never wait: what they do not take for long is lost, which is said when they take lines
again.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import BinaryIO, Literal, Protocol

Word = Literal["info", "warning", "error"]
"""Postfix' words."""

PRIORITIES: dict[Word, int] = {"info": 6, "warning": 4, "error": 3}
"""syslog(3): LOG_INFO, LOG_WARNING, LOG_ERR."""

SYSLOG = "/dev/log"
"""Where syslog listens, for syslog(3) as for us."""

_MAIL = 2 << 3  # the facility
_TAG = "pbs-policy"
_MOST_WAITING = 2_000  # lines, while the socket takes none: some 300 kB


class Writer(Protocol):
    """Where lines go. `begins` is what a line of each word begins with, such as its priority; `lost` counts."""

    begins: dict[Word, str]
    lost: int

    def write(self, lines: list[str]) -> None:
        """Take lines, which have no newlines; none of them: only what waits is tried again."""


class Stream:
    """A file, a terminal or a pipe."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self.begins: dict[Word, str] = dict.fromkeys(PRIORITIES, "")
        self.lost = 0
        self._stream = stream or sys.stderr.buffer

    def write(self, lines: list[str]) -> None:
        """Waits for whoever reads."""
        if not lines:
            return
        try:
            self._stream.write(_encoded("\n".join(lines) + "\n"))
            self._stream.flush()
        except OSError:
            self.lost += len(lines)


class _Socket:
    """Lines wait, in their order and up to a bound, until the socket takes them."""

    def __init__(self, facility: int) -> None:
        self.begins: dict[Word, str] = {word: f"<{facility + number}>" for word, number in PRIORITIES.items()}
        self.lost = 0
        self._told = 0  # of those that were lost
        self._waiting: deque[bytes] = deque()

    def write(self, lines: list[str]) -> None:
        """Give the socket what it takes at once; what is left is tried again next time."""
        if lines and self.lost > self._told and len(self._waiting) < _MOST_WAITING:
            lost, self._told = self.lost - self._told, self.lost
            lines = [f"{self.begins['warning']}warning: {lost} lines of the log were lost before this one", *lines]
        for line in lines:
            if len(self._waiting) < _MOST_WAITING:
                self._waiting.append(_encoded(self._formed(line)))
            else:
                self.lost += 1
        if self._waiting:
            self._send()

    def _formed(self, line: str) -> str:
        raise NotImplementedError

    def _send(self) -> None:
        raise NotImplementedError


class Journal(_Socket):
    """The journal's end of standard error: a stream of lines that begin with their priority, sd-daemon(3)."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(0)
        self._socket = socket.socket(fileno=os.dup(descriptor))

    def close(self) -> None:
        """No line can be written any more."""
        self._socket.close()

    def _formed(self, line: str) -> str:
        return line + "\n"

    def _send(self) -> None:
        try:
            while self._waiting:
                data = b"".join(self._waiting)
                sent = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                self._waiting.clear()
                if sent < len(data):
                    self._waiting.extend(data[sent:].splitlines(keepends=True))
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more, nor will
            self.lost += sum(each.endswith(b"\n") for each in self._waiting)
            self._waiting.clear()


class Syslog(_Socket):
    """syslog's socket: a datagram for each line, in the form that syslog(3) gives it, of the facility mail."""

    def __init__(self, path: str = SYSLOG) -> None:
        super().__init__(_MAIL)
        self._path = path
        self._socket: socket.socket | None = None
        self._head_of = (0, 0)
        self._head = ""

    def _formed(self, line: str) -> str:
        now = int(time.time()), os.getpid()
        if now != self._head_of:
            self._head_of = now
            self._head = time.strftime("%b %e %H:%M:%S ", time.localtime(now[0])) + f"{_TAG}[{now[1]}]: "
        priority, end, text = line.partition(">")
        return f"{priority}{end}{self._head}{text}"

    def _send(self) -> None:
        may_open = True
        while self._waiting:
            try:
                if self._socket is None:
                    may_open = False
                    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                    self._socket.connect(self._path)
                self._socket.send(self._waiting[0])
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    self.lost += 1
                    self._waiting.popleft()
                    continue
                # syslog was started again and listens at a new socket, or is not there; tried again next time.
                self.close()
                if not may_open:
                    return
            else:
                self._waiting.popleft()

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


def standard_error(environment: Mapping[str, str]) -> Stream | Journal:
    """Standard error, or the journal where it is that: systemd.exec(5), JOURNAL_STREAM."""
    try:
        descriptor = sys.stderr.fileno()
    except OSError:
        return Stream()  # it is no file: whoever calls us in his own process catches what we say
    status = os.fstat(descriptor)
    if environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
        return Journal(descriptor)
    return Stream()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
