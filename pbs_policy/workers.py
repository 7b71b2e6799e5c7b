"""Several processes that do the same work: started, replaced when they die, and ended by a parent that does no other.

A worker that is killed takes with it what it had in flight, and nothing else: what it listens on stays open in the
parent, so that connections wait there for its successor. A worker whose parent has gone ends by itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

from pbs_policy.log import Log

RESTART_INTERVAL = 1.0
"""Seconds between two starts of a worker that does not live: no more than a line of log a second for each."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


def supervise(
    number: int, work: Callable[[int, int], None], within: float, log: Log, begun: Callable[[], None] = lambda: None
) -> None:
    """Run `work(index, lifeline)` in `number` processes until SIGTERM or SIGINT, and then at most `within` seconds.

    `lifeline` is a descriptor that becomes readable when the parent is gone; `begun` is called when a signal can
    no longer catch the parent unprepared.
    """
    lifeline, hold = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # from here on they are waited for
    begun()
    due = dict.fromkeys(range(number), 0.0)  # workers to be started, and not before when
    started: dict[int, float] = {}
    running: dict[int, int] = {}  # process id: index
    while True:
        for index in [index for index, moment in due.items() if moment <= time.monotonic()]:
            del due[index]
            running[_start(index, work, lifeline, hold, log)] = index
            started[index] = time.monotonic()
        patience = min(due.values()) - time.monotonic() if due else 3600.0
        received = signal.sigtimedwait(_SIGNALS, max(0.0, patience))
        if received is not None and received.si_signo != signal.SIGCHLD:
            break
        for pid, status in _dead():
            index = running.pop(pid)
            log.error(f"worker {index} ended {_how(status)}, starting another")
            due[index] = max(time.monotonic(), started[index] + RESTART_INTERVAL)
    _end(running, time.monotonic() + within)
    os.close(hold)
    os.close(lifeline)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _start(index: int, work: Callable[[int, int], None], lifeline: int, hold: int, log: Log) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = os.EX_SOFTWARE
    try:
        os.close(hold)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        work(index, lifeline)
        status = os.EX_OK
    except Exception as error:  # noqa: BLE001 - the parent has to hear of it, and to start another
        log.error(f"worker {index}: {error!r}")
    finally:
        log.flush()
        sys.stdout.flush()
        os._exit(status)  # not through the parent's exits: its sockets and files are not ours to clean up


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


def _end(running: dict[int, int], deadline: float) -> None:
    """Ask the workers to end, and make those that have not by `deadline`."""
    for pid in running:
        os.kill(pid, signal.SIGTERM)
    while running and time.monotonic() < deadline:
        signal.sigtimedwait([signal.SIGCHLD], max(0.0, deadline - time.monotonic()))
        for pid, _ in _dead():
            running.pop(pid, None)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
