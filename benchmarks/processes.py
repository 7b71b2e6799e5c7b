"""The processes under measurement: built, pinned, and what /proc says of them.

Every process is a child of ours and ends with its context; none is looked up by name.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures import CannotRun
from benchmarks.policy_client import answers
from pbs_policy.demo.daemons import PrivateDaemon
from pbs_policy.demo.ports import free_port
from pbs_policy.programs import find_program

SOURCES = Path(__file__).parent
_FIRST = -19  # as a priority
_TICK = os.sysconf("SC_CLK_TCK")
_CPU = Path("/sys/devices/system/cpu")


class Placement(NamedTuple):
    """On which cores the server runs, and on which everything that is not the server."""

    name: str
    server: Set[int]
    others: Set[int]

    @property
    def cores(self) -> Set[int]:
        """All that are used."""
        return self.server | self.others


def _second_core(cores: list[int]) -> int:
    """A core that shares no arithmetic with the first one (hyper-threads do)."""
    text = ""
    with suppress(OSError):
        text = (_CPU / f"cpu{cores[0]}/topology/thread_siblings_list").read_text().strip()
    siblings = {int(each) for part in text.split(",") for each in part.split("-") if each}
    return next((core for core in cores[1:] if core not in siblings), cores[-1])


CORES = sorted(os.sched_getaffinity(0))
PINNED = Placement("pinned", {CORES[0]}, {_second_core(CORES)})
UNPINNED = Placement("unpinned", set(CORES), set(CORES))


class Programs(NamedTuple):
    """The C programs, built."""

    loadgen: Path
    limit: Path


def build(directory: Path) -> Programs:
    """Compile both. Raises CannotRun without a compiler."""
    compiler = find_program("cc", "gcc", "clang")
    if compiler is None:
        raise CannotRun("no C compiler: apt-get install gcc libc6-dev")
    programs = Programs(directory / "loadgen", directory / "limit")
    for program in programs:
        source = SOURCES / f"{program.name}.c"
        subprocess.run([compiler, "-O2", "-std=gnu11", "-o", program, source], check=True, timeout=120)
    return programs


class Limit(PrivateDaemon):
    """The C limit on a TCP port, or with `unix` on a socket in its directory."""

    def __init__(self, directory: Path, program: Path, *, unix: bool = False) -> None:
        super().__init__("limit", directory)
        self._program = program
        self._port = 0 if unix else free_port()
        self._path = directory / "limit.sock"

    @property
    def target(self) -> str:
        """Where it listens, as Postfix writes it."""
        return f"inet:127.0.0.1:{self._port}" if self._port else f"unix:{self._path}"

    def command(self) -> list[str]:
        """The command line."""
        return [str(self._program), *(["127.0.0.1", str(self._port)] if self._port else [str(self._path)])]

    def is_ready(self) -> bool:
        """Whether it answers."""
        return answers(self.target)


@contextmanager
def on_cores(cores: Set[int]) -> Iterator[None]:
    """What is started inside runs on these cores, and stays there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def before_others() -> Iterator[None]:
    """What is started inside goes before all else on this machine, as far as that may be had (root may). The kernel
    weighs sessions against each other first (sched(7), autogroup), and processes of one session after that."""
    session = Path("/proc/self/autogroup")
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _FIRST)
        session.write_text(str(_FIRST))
    try:
        yield
    finally:
        with suppress(OSError):
            session.write_text("0")
        os.setpriority(os.PRIO_PROCESS, 0, before)


def place(pid: int, cores: Set[int]) -> None:
    """Move a running process with its descendants and all their threads to these cores."""
    for each in tree(pid):
        with suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                os.sched_setaffinity(int(task.name), cores)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (proc(5)), none if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def tree(pid: int) -> list[int]:
    """The process and its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, its descendants, and those of them that have ended."""
    return sum(_own_seconds(each, fields) + _ticks(fields[13:15]) for each in tree(pid) if (fields := _stat(each)))


def _own_seconds(pid: int, fields: list[str]) -> float:
    """In nanoseconds the kernel counts for single threads (schedstat); of several it has ticks, 10 ms each."""
    if fields[17] == "1":
        with suppress(OSError, ValueError, IndexError):
            return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    return _ticks(fields[11:13])


def _ticks(fields: list[str]) -> float:
    return sum(map(int, fields)) / _TICK


def rss(pid: int, *, peak: bool = False) -> int:
    """Resident bytes of a process and its descendants now, or the sum of each one's most."""
    name, total = ("VmHWM:" if peak else "VmRSS:"), 0
    for each in tree(pid):
        with suppress(OSError):
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    return total


class Clock(NamedTuple):
    """CPU seconds of everybody at one moment: `busy` is what the cores did for any process, or had stolen."""

    at: float
    server: float
    redis: float
    own: float
    busy: float


def read_clock(server: int, redis: int | None, cores: Set[int]) -> Clock:
    """Interrupt time is left out of `busy`: the kernel's work for our own packets is among it."""
    busy = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
            busy += sum(int(ticks[each]) for each in (0, 1, 2, 7))  # user, nice, system, steal
    return Clock(
        time.monotonic(), cpu_seconds(server), cpu_seconds(redis) if redis else 0.0, time.process_time(), busy / _TICK
    )
