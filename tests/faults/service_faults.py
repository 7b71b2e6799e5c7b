"""Faults of the policy service itself, of its clock, and of Postfix."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pbs_policy.demo.daemons import wait_until
from tests.faults.fault import Again, Marks, Scale, fault
from tests.faults.stage import Stage, action


@fault("the service is killed and started again", "SIGKILL and a start, under load, every 2 s")
def service_killed(stage: Stage, _: Scale, __: Marks) -> Iterator[Again | None]:
    def kill() -> None:
        stage.kill(stage.service)
        stage.service.start()

    yield Again(kill, 2.0)


@fault("the service is restarted", "SIGTERM and a start, under load, every 2 s")
def service_restarted(stage: Stage, _: Scale, __: Marks) -> Iterator[Again | None]:
    def restart() -> None:
        stage.service.stop()
        stage.service.start()

    yield Again(restart, 2.0)


@fault("the service is down", "SIGKILL; started again at the end")
def service_down(stage: Stage, _: Scale, marks: Marks) -> Iterator[Again | None]:
    stage.kill(stage.service)
    yield None
    stage.service.start()
    marks.at.append(time.monotonic())


@fault("the service hangs", "SIGSTOP; SIGCONT at the end")
def service_hangs(stage: Stage, _: Scale, marks: Marks) -> Iterator[Again | None]:
    os.kill(stage.service.pid, signal.SIGSTOP)
    yield None
    os.kill(stage.service.pid, signal.SIGCONT)
    marks.at.append(time.monotonic())


_FAKETIME = sorted(map(str, Path("/usr/lib").glob("*-linux-gnu/faketime/libfaketimeMT.so.1")))
"""The library that lies about the time, where there is one."""


def lacks_faketime() -> str:
    """Whether there is none."""
    return "" if _FAKETIME else "libfaketime is not installed: apt-get install libfaketime"


@fault("the service's clock jumps", "by a day, forwards and back, every 0.5 s (libfaketime)", lacks_faketime)
def clock_jumps(stage: Stage, _: Scale, __: Marks) -> Iterator[Again | None]:
    file = stage.directory / "time"
    file.write_text("+0")
    jumps = iter(["+1d", "-1d", "+0"] * 10_000)

    def jump() -> None:
        # In place: the library may read at any moment.
        new = file.with_suffix(".new")
        new.write_text(next(jumps))
        new.replace(file)

    lies = {"LD_PRELOAD": _FAKETIME[0], "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1"}
    lies |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with stage.other_service("env", *(f"{name}={value}" for name, value in lies.items())):
        assert wait_until(lambda: action(stage) == "OK")
        assert "libfaketime" in Path(f"/proc/{stage.service.pid}/maps").read_text(), "nobody lies to it"
        yield Again(jump, 0.5)


@fault("Postfix is reloaded", "SIGHUP for its master, as `postfix reload`, every second")
def postfix_reloaded(stage: Stage, _: Scale, __: Marks) -> Iterator[Again | None]:
    yield Again(lambda: os.kill(stage.site.postfix.pid, signal.SIGHUP), 1.0)


@fault("Postfix is restarted", "stopped and started, every 2 s")
def postfix_restarted(stage: Stage, _: Scale, __: Marks) -> Iterator[Again | None]:
    def restart() -> None:
        stage.site.postfix.stop()
        stage.site.postfix.start()

    yield Again(restart, 2.0)
    with suppress(OSError):
        wait_until(stage.site.postfix.is_ready)
