"""Several processes that do the same work: started, replaced when they die, and ended by a parent that does no other.

A worker that is killed takes with it what it had in flight, and nothing else: what it listens on stays open in the
parent, so that connections wait there for its successor. A worker whose parent has gone ends by itself.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from pbs_policy.log import Log

RESTART_INTERVAL = 1.0
"""Seconds between two starts of a worker that does not live: no more than a line of log a second for each."""

LONGEST_MESSAGE = 1 << 20
"""Bytes of what a parent may tell at once; the kernel's own limit for a message is below that."""

_MOST_DESCRIPTORS = 253
"""In one message: the kernel's limit (SCM_MAX_FD)."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Parent:
    """What the parent does besides: this one does nothing."""

    interval = 3600.0
    """Seconds between two calls of `look`, at most."""

    def begun(self) -> None:
        """No signal can catch the parent unprepared any more."""

    def starting(self, index: int) -> None:
        """That worker is about to be started."""

    def started(self, index: int) -> None:
        """That worker has been started, and has what it inherits."""

    def ending(self) -> None:
        """The workers are about to be ended."""

    def receive(self, descriptors: list[int]) -> None:
        """A worker that ends with the others has left these, which are closed afterwards."""

    def hung_up(self) -> bytes | None:
        """SIGHUP has come. Returns what all workers are to be told, if anything."""
        return None

    def look(self) -> Iterable[int]:
        """Called now and then. Returns the workers that hang, to be killed."""
        return ()


@dataclass(frozen=True, slots=True)
class _Child:
    """A worker that runs: our end of its lifeline, and since when."""

    index: int
    lifeline: socket.socket
    started: float


def supervise(
    number: int, work: Callable[[int, int], None], within: float, log: Log, parent: Parent | None = None
) -> None:
    """Run `work(index, lifeline)` in `number` processes until SIGTERM or SIGINT, and then at most `within` seconds.

    `lifeline` is a descriptor from which a worker reads what `parent` has to tell, a message at a time, and the end
    when the parent is gone.
    """
    parent = parent or Parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # from here on they are waited for
    parent.begun()
    due = dict.fromkeys(range(number), 0.0)  # workers to be started, and not before when
    running: dict[int, _Child] = {}  # by process id
    while True:
        for index in [index for index, moment in due.items() if moment <= time.monotonic()]:
            del due[index]
            parent.starting(index)
            pid, lifeline = _start(index, work, [each.lifeline for each in running.values()], log)
            running[pid] = _Child(index, lifeline, time.monotonic())
            parent.started(index)
        now = time.monotonic()
        received = signal.sigtimedwait(_SIGNALS, max(0.0, min([*due.values(), now + parent.interval]) - now))
        if received is not None and received.si_signo in (signal.SIGTERM, signal.SIGINT):
            break
        if received is not None and received.si_signo == signal.SIGHUP and (message := parent.hung_up()):
            _tell(running, message)
        for pid, status in _dead():
            child = running.pop(pid)
            child.lifeline.close()
            log.error(f"worker {child.index} ended {_how(status)}, starting another")
            due[child.index] = max(time.monotonic(), child.started + RESTART_INTERVAL)
        hanging = set(parent.look())
        for pid, child in running.items():
            if child.index in hanging:
                log.error(f"worker {child.index} hangs")
                os.kill(pid, signal.SIGKILL)
    parent.ending()
    _end(running, time.monotonic() + within, parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _start(
    index: int, work: Callable[[int, int], None], others: Iterable[socket.socket], log: Log
) -> tuple[int, socket.socket]:
    """Fork a worker. Returns, in the parent, its process id and our end of its lifeline."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    status = os.EX_SOFTWARE
    try:
        for each in (ours, *others):  # else a worker would keep alive those that it is to end with
            each.close()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent's to obey, also where the whole group gets it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        work(index, theirs.detach())
        status = os.EX_OK
    except Exception as error:  # noqa: BLE001 - the parent has to hear of it, and to start another
        log.error(f"worker {index}: {error!r}")
    finally:
        log.flush()
        sys.stdout.flush()
        os._exit(status)  # not through the parent's exits: its sockets and files are not ours to clean up


def _tell(running: dict[int, _Child], message: bytes) -> None:
    """Tell all workers. One that cannot be told is ended: what follows it knows already."""
    for pid, child in running.items():
        try:
            child.lifeline.send(message, socket.MSG_DONTWAIT)
        except OSError:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def _dead() -> list[tuple[int, int]]:
    dead: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return dead
        if pid == 0:
            return dead
        dead.append((pid, status))


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"with status {code}"
    # Real-time signals have no names in Python.
    return f"by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"by signal {-code}"


def _end(running: dict[int, _Child], deadline: float, parent: Parent) -> None:
    """Ask the workers to end, and make those that have not by `deadline`."""
    for pid in running:
        os.kill(pid, signal.SIGTERM)
    while running and time.monotonic() < deadline:
        signal.sigtimedwait([signal.SIGCHLD], max(0.0, deadline - time.monotonic()))
        for pid, _ in _dead():
            if pid in running:
                _take_leave(running.pop(pid), parent)
    for pid, child in running.items():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        _take_leave(child, parent)


def _take_leave(child: _Child, parent: Parent) -> None:
    """Take what a worker has left on its lifeline."""
    with child.lifeline as lifeline, suppress(OSError):
        while True:
            message, descriptors, _, _ = socket.recv_fds(lifeline, 64, _MOST_DESCRIPTORS, socket.MSG_DONTWAIT)
            if not message:
                return
            parent.receive(descriptors)
            for each in descriptors:
                os.close(each)
