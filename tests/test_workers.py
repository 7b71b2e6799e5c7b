"""`workers` greater than one: the policy service as several processes, and the parent that looks after them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import IO

import pytest

from pbs_policy.decision.policy import DUNNO
from pbs_policy.demo.daemons import DaemonError, PrivateRedis, wait_until
from pbs_policy.service.workers import RESTART_INTERVAL
from tests.service import SERVE, Client, Service, request

ALICE = "192.0.2.7"

LONGEST_END = 5
"""Seconds from SIGTERM to the end of the last process: within one on a machine that is not busy otherwise, and never,
or 8 and more, where somebody is waited for in vain."""


def children(pid: int) -> set[int]:
    """The living children of a process."""
    processes = (int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())
    return {each for each in processes if parent(each) == pid}


def parent(pid: int) -> int | None:
    """The parent of a process that lives; None for one that does not, or waits only to be buried."""
    try:
        # The name, in parentheses, may contain anything.
        state, ppid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(ppid)


def is_alive(pid: int) -> bool:
    return parent(pid) is not None


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


class Connection(Client):
    """One connection over TCP to a service with several workers."""

    def worker(self, workers: Iterable[int]) -> int | None:
        """Which of these processes has accepted it, None while none has."""
        ours, theirs = (_as_in_proc(*name) for name in (self.socket.getsockname(), self.socket.getpeername()))
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, *rest = line.split()
            if (local, remote) == (theirs, ours):
                name = f"socket:[{rest[6]}]"
                return next((pid for pid in workers if name in _descriptors(pid)), None)
        return None


def _as_in_proc(host: str, port: int) -> str:
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"


def _descriptors(pid: int) -> set[str]:
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(str(each.readlink()))
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


class Crew:
    """A service with several workers, its worker processes, and connections to it."""

    def __init__(self, service: Service, stack: ExitStack) -> None:
        self.service = service
        self._stack = stack
        self.number = int(re.findall(r"workers='(\d+)'", service.log())[-1])
        assert wait_until(lambda: len(self.pids()) == self.number)

    def pids(self) -> set[int]:
        """The workers that live now."""
        return children(self.service.process.pid)

    def connect(self, which: int = 0) -> Connection:
        """A connection to the listener with this number, closed with the test."""
        return self._stack.enter_context(Connection(self.service.listeners[which]))

    def one_for_each(self) -> dict[int, Connection]:
        """For each worker a connection that it answers."""
        found: dict[int, Connection] = {}
        for _ in range(200):  # the kernel deals them out by a hash of the addresses: all to one worker is 2 ** -200
            connection = self.connect()
            assert connection.ask(ALICE) == DUNNO
            pid = connection.worker(self.pids())
            assert pid is not None
            found.setdefault(pid, connection)
            if found.keys() == self.pids():
                return found
        raise AssertionError(f"of {self.pids()} only {set(found)} have accepted a connection")

    def stop_one(self, pid: int) -> None:
        """SIGSTOP: it neither accepts nor answers from here on."""
        os.kill(pid, signal.SIGSTOP)
        assert wait_until(lambda: is_stopped(pid))


@pytest.fixture
def start_crew(start_service: Callable[..., Service], redis_server: PrivateRedis) -> Iterator[Callable[..., Crew]]:
    """Start a service with so many workers."""
    with ExitStack() as stack:
        yield lambda number, **settings: Crew(
            start_service(workers=str(number), redis_url=redis_server.url, **settings), stack
        )


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """A path for a unix socket: these are short, pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="pbs-") as directory:
        yield Path(directory) / "policy"


# --- the work is shared -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 3])
def test_all_workers_answer(number: int, start_crew: Callable[..., Crew]) -> None:
    crew = start_crew(number)
    connections = crew.one_for_each()
    assert len(connections) == number
    for connection in connections.values():
        connection.send(request(ALICE))
    assert [connection.action() for connection in connections.values()] == [DUNNO] * number


def test_each_worker_has_a_connection_to_redis_of_its_own(start_crew: Callable[..., Crew]) -> None:
    crew = start_crew(3)
    crew.one_for_each()
    assert crew.service.log().count("info: connected to Redis at ") == 3


def test_the_service_is_announced_once(start_crew: Callable[..., Crew]) -> None:
    crew = start_crew(3, listen="inet:0.0.0.0:0")
    crew.one_for_each()
    assert crew.service.log().count(" ready, listening on ") == 1
    assert crew.service.log().count("warning: listening on ") == 1


@pytest.mark.usefixtures("either_loop")
def test_every_worker_serves_tcp_and_the_unix_socket(start_crew: Callable[..., Crew], socket_path: Path) -> None:
    crew = start_crew(2, listen=f"inet:127.0.0.1:0 unix:{socket_path}")
    for pid in crew.one_for_each():
        (other,) = crew.pids() - {pid}
        crew.stop_one(other)  # whatever is answered now, `pid` answers
        assert crew.connect(1).ask(ALICE) == DUNNO
        os.kill(other, signal.SIGCONT)


def test_a_second_service_at_the_same_port_is_refused(start_crew: Callable[..., Crew]) -> None:
    """As it is with one worker: else the kernel would deal out the connections to both."""
    crew = start_crew(2)
    port = crew.service.listeners[0].port
    with pytest.raises(DaemonError, match="Address already in use"):
        start_crew(2, listen=f"inet:127.0.0.1:{port}")


# --- a worker ends ------------------------------------------------------------------------------------------------


def test_a_killed_worker_costs_its_own_connections_and_is_replaced(
    start_crew: Callable[..., Crew], socket_path: Path
) -> None:
    crew = start_crew(3, listen=f"inet:127.0.0.1:0 unix:{socket_path}")
    connections = crew.one_for_each()
    victim = next(iter(connections))
    os.kill(victim, signal.SIGKILL)
    assert connections.pop(victim).is_closed()
    assert crew.service.waits_to_log("ended by SIGKILL, starting another")

    def is_replaced() -> bool:
        for connection in connections.values():
            assert connection.ask(ALICE) == DUNNO
        return len(crew.pids()) == 3

    assert wait_until(is_replaced)
    assert victim not in crew.pids()
    assert connections.keys() < crew.pids()
    assert crew.one_for_each().keys() == crew.pids()
    assert crew.connect(1).ask(ALICE) == DUNNO
    assert crew.service.log().count("error: ") == 1


def test_connections_in_the_queue_of_a_dead_worker_are_served_by_its_successor(
    start_crew: Callable[..., Crew],
) -> None:
    crew = start_crew(2)
    victim, survivor = crew.one_for_each()
    crew.stop_one(victim)
    connections = [crew.connect() for _ in range(40)]
    for connection in connections:
        connection.send(request(ALICE))
    assert wait_until(lambda: 0 in queues(crew.service.listeners[0].port))  # the survivor has accepted all of its own
    waiting = [each for each in connections if each.worker((victim, survivor)) is None]
    assert 0 < len(waiting) < 40
    os.kill(victim, signal.SIGKILL)
    assert [connection.action() for connection in connections] == [DUNNO] * 40
    (successor,) = crew.pids() - {survivor}
    assert {connection.worker((survivor, successor)) for connection in waiting} == {successor}


def queues(port: int) -> list[int]:
    """How many connections wait to be accepted on each of the sockets that listen at a port."""
    listening = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line)
    return [int(fields[4].partition(":")[2], 16) for fields in listening if fields[1].endswith(f":{port:04X}")]


def test_unix_connections_wait_while_no_worker_lives(start_crew: Callable[..., Crew], socket_path: Path) -> None:
    crew = start_crew(2, listen=f"unix:{socket_path}")
    for pid in crew.pids():
        os.kill(pid, signal.SIGKILL)
    with crew.connect() as connection:
        assert connection.ask(ALICE) == DUNNO


@pytest.mark.usefixtures("either_loop")
def test_a_worker_that_is_asked_to_end_leaves_the_listeners_to_the_others(
    start_crew: Callable[..., Crew], socket_path: Path
) -> None:
    """An administrator's kill without -9: it closes what it listens on, and removes what it thinks is its own."""
    crew = start_crew(2, listen=f"inet:127.0.0.1:0 unix:{socket_path}")
    victim = min(crew.one_for_each())  # who answers is ready to be asked
    os.kill(victim, signal.SIGTERM)
    assert crew.service.waits_to_log("ended with status 0, starting another")
    assert wait_until(lambda: len(crew.pids() - {victim}) == 2)
    assert socket_path.is_socket()
    assert crew.connect(1).ask(ALICE) == DUNNO
    assert crew.one_for_each().keys() == crew.pids()


# --- the end ------------------------------------------------------------------------------------------------------


def end(crew: Crew) -> float:
    """SIGTERM to the parent: its status must be 0, no worker may be left; and how long it took."""
    workers = crew.pids()
    started = time.monotonic()
    os.kill(crew.service.process.pid, signal.SIGTERM)
    assert crew.service.process.wait(60) == 0
    took = time.monotonic() - started
    assert not any(is_alive(pid) for pid in workers), "a worker outlived its parent"
    return took


@pytest.mark.usefixtures("either_loop")
def test_idle_connections_do_not_delay_the_end(start_crew: Callable[..., Crew], socket_path: Path) -> None:
    crew = start_crew(2, listen=f"inet:127.0.0.1:0 unix:{socket_path}")
    idle = [*crew.one_for_each().values(), *(crew.connect(number % 2) for number in range(20))]
    assert end(crew) < LONGEST_END
    assert all(connection.is_closed() for connection in idle)
    assert not socket_path.exists()
    assert crew.service.log().count("info: stopped") == 1
    assert "error: " not in crew.service.log()


def test_a_signal_that_comes_with_readiness_ends_it_in_order(socket_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pbs_policy.cli import main\n"
        "from pbs_policy.log import Log\n"
        "class Hasty(Log):\n"
        "    def info(self, line):\n"
        "        super().info(line)\n"
        "        if ' ready, ' in line:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "import pbs_policy.log\n"
        "pbs_policy.log.Log = Hasty\n"
        f"main(['-c', '/dev/null', '--set', 'workers=2', '--set', 'listen=unix:{socket_path}', *{SERVE!r}])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "info: stopped" in result.stderr
    assert not socket_path.exists()


def test_a_signal_to_the_whole_group_ends_it_as_well(start_crew: Callable[..., Crew]) -> None:
    """Ctrl-C at a terminal, and systemd, signal the workers and the parent at once."""
    crew = start_crew(3)
    crew.one_for_each()
    workers = crew.pids()
    started = time.monotonic()
    os.killpg(crew.service.process.pid, signal.SIGINT)
    assert crew.service.process.wait(60) == 0
    assert time.monotonic() - started < LONGEST_END
    assert not any(is_alive(pid) for pid in workers)
    assert "Traceback" not in crew.service.log()


def test_a_worker_that_hangs_does_not_delay_the_end(start_crew: Callable[..., Crew], socket_path: Path) -> None:
    crew = start_crew(2, listen=f"unix:{socket_path}")
    crew.stop_one(min(crew.pids()))
    assert end(crew) < LONGEST_END
    assert not socket_path.exists()


def test_the_end_may_come_while_a_worker_is_waited_for(start_crew: Callable[..., Crew]) -> None:
    crew = start_crew(2)
    os.kill(min(crew.pids()), signal.SIGKILL)
    assert crew.service.waits_to_log("ended by SIGKILL")
    assert end(crew) < LONGEST_END


@pytest.mark.usefixtures("either_loop")
def test_workers_end_when_their_parent_is_killed(start_crew: Callable[..., Crew], socket_path: Path) -> None:
    crew = start_crew(3, listen=f"inet:127.0.0.1:0 unix:{socket_path}")
    idle = crew.one_for_each()
    crew.service.process.kill()
    crew.service.process.wait()
    assert wait_until(lambda: not any(is_alive(pid) for pid in idle))
    assert all(connection.is_closed() for connection in idle.values())
    # The path that nobody was left to remove is no obstacle to the next service.
    port = crew.service.listeners[0].port
    successor = start_crew(2, listen=f"inet:127.0.0.1:{port} unix:{socket_path}")
    assert [successor.connect(which).ask(ALICE) for which in (0, 1)] == [DUNNO, DUNNO]


# --- the parent by itself -----------------------------------------------------------------------------------------


class Supervised:
    """`supervise(number, work, within)` as a process; `work` is the text of a function of `index` and `lifeline`."""

    def __init__(
        self, number: int, work: str, within: float, interval: float, output: IO[bytes], later: Path
    ) -> None:
        program = (
            "import os, signal, sys, time\n"
            "from types import SimpleNamespace\n"
            "from pbs_policy.log import Log\n"
            "from pbs_policy.service import workers\n"
            "def now():\n"
            f"    return time.monotonic() + {LATER} * os.path.exists({str(later)!r})\n"
            "workers.time = SimpleNamespace(monotonic=now)\n"
            f"workers.RESTART_INTERVAL = {interval}\n"
            "def say(*words):\n    os.write(1, (' '.join(map(str, words)) + '\\n').encode())\n"
            "class Telling(workers.Parent):\n"
            "    def starting(self, index):\n        say('starting', index, time.monotonic())\n"
            f"def work(index, lifeline):\n    say('start', index, os.getpid())\n    {work}\n"
            f"workers.supervise({number}, work, {within}, Log(), Telling())\n"
            "say('end')\n"
        )
        self._later = later
        self._output = output
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=output, stderr=output, start_new_session=True
        )

    def says(self) -> str:
        """All that it and its workers have said so far."""
        return os.pread(self._output.fileno(), 1 << 20, 0).decode()

    def starts(self, index: int) -> list[int]:
        """The process id of each start of a worker."""
        return [int(pid) for pid in re.findall(rf"^start {index} (\d+)$", self.says(), re.MULTILINE)]

    def moments(self, index: int) -> list[float]:
        """When the parent was about to start a worker, each time."""
        return [float(each) for each in re.findall(rf"^starting {index} ([0-9.]+)$", self.says(), re.MULTILINE)]

    def let_time_pass(self) -> None:
        """From now on its clock is `LATER` seconds ahead."""
        self._later.touch()

    def has_started(self, number: int) -> bool:
        """Whether so many workers have been started, the dead ones among them, now or soon."""
        return wait_until(lambda: len(re.findall("^start ", self.says(), re.MULTILINE)) >= number)

    def end(self, signal_number: int = signal.SIGTERM) -> float:
        """Signal the parent, which must return from `supervise`; how long that took."""
        started = time.monotonic()
        self.process.send_signal(signal_number)
        assert self.process.wait(60) == 0, self.says()
        assert self.says().endswith("end\n")
        return time.monotonic() - started

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # workers that outlived it, or nobody


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """Supervise workers that do what the text says."""
    with ExitStack() as stack:

        def start(number: int, work: str, within: float = 0.5, interval: float = 0.1) -> Supervised:
            output = stack.enter_context(tempfile.TemporaryFile())
            started = Supervised(number, work, within, interval, output, tmp_path / "later")
            stack.callback(started.close)
            return started

        yield start


HANG = "signal.pause()"
LATER = 1000
"""Seconds by which the clock of `supervise` can be moved."""


def test_workers_that_cannot_live_are_started_once_a_second_each(supervised: Callable[..., Supervised]) -> None:
    crew = supervised(2, "raise OSError('nothing to live on')", interval=RESTART_INTERVAL)
    assert wait_until(lambda: all(len(crew.starts(index)) >= 3 for index in (0, 1)))
    assert crew.end() < LONGEST_END
    for index in (0, 1):
        for earlier, later in pairwise(crew.moments(index)):
            assert RESTART_INTERVAL <= later - earlier < RESTART_INTERVAL + LONGEST_END
    assert f"error: worker 1: {OSError('nothing to live on')!r}\n" in crew.says()
    assert f"error: worker 1 ended with status {os.EX_SOFTWARE}, starting another\n" in crew.says()
    assert "Traceback" not in crew.says()


def test_a_worker_that_lived_for_the_interval_is_replaced_at_once(supervised: Callable[..., Supervised]) -> None:
    crew = supervised(1, HANG, interval=LATER)
    assert crew.has_started(1)
    crew.let_time_pass()
    os.kill(crew.starts(0)[0], signal.SIGKILL)
    assert crew.has_started(2)


def test_however_workers_end_it_is_said_and_they_are_replaced(supervised: Callable[..., Supervised]) -> None:
    crew = supervised(
        5,
        "if index == 1: sys.exit(3)\n"
        "    if index == 2: os._exit(9)\n"
        "    if index == 3: os.kill(os.getpid(), signal.SIGABRT)\n"
        "    if index == 4: os.kill(os.getpid(), signal.SIGKILL)",
    )
    assert wait_until(lambda: all(len(crew.starts(index)) > 1 for index in range(5)))
    crew.end()
    fates = ["with status 0", f"with status {os.EX_SOFTWARE}", "with status 9", "by SIGABRT", "by SIGKILL"]
    for index, fate in enumerate(fates):
        assert f"error: worker {index} ended {fate}, starting another\n" in crew.says()
    assert "Traceback" not in crew.says()


def test_a_signal_without_a_name_is_said_by_its_number(supervised: Callable[..., Supervised]) -> None:
    """Python names the first and the last of the real-time signals only."""
    number = signal.SIGRTMIN + 2
    crew = supervised(1, f"os.kill(os.getpid(), {number})")
    assert crew.has_started(2), crew.says()
    crew.end()
    assert re.search(rf"error: worker 0 ended by .*{number}", crew.says())


def test_all_dead_workers_are_noticed_though_signals_are_counted_once(supervised: Callable[..., Supervised]) -> None:
    crew = supervised(8, HANG)
    assert crew.has_started(8)
    first = {crew.starts(index)[0] for index in range(8)}
    assert children(crew.process.pid) == first
    crew.process.send_signal(signal.SIGSTOP)
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    crew.process.send_signal(signal.SIGCONT)
    assert crew.has_started(16)
    assert not children(crew.process.pid) & first
    assert len(children(crew.process.pid)) == 8
    crew.end()


def test_workers_that_will_not_end_are_killed_in_time(supervised: Callable[..., Supervised]) -> None:
    crew = supervised(2, "signal.signal(signal.SIGTERM, signal.SIG_IGN); say('deaf')\n    while True: signal.pause()")
    assert wait_until(lambda: crew.says().count("deaf\n") == 2)
    workers = children(crew.process.pid)
    assert 0.5 < crew.end() < LONGEST_END
    assert not any(is_alive(pid) for pid in workers)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_workers_that_end_when_asked_are_not_waited_for_longer(
    signal_number: int, supervised: Callable[..., Supervised]
) -> None:
    crew = supervised(3, HANG, within=8)
    assert crew.has_started(3)
    assert crew.end(signal_number) < LONGEST_END


def test_no_worker_holds_the_lifeline_of_another(supervised: Callable[..., Supervised]) -> None:
    """Nor its own: else it would never hear that the parent is gone."""
    crew = supervised(3, "os.read(lifeline, 1)")
    assert crew.has_started(3)
    (victim,) = crew.starts(1)
    os.kill(victim, signal.SIGKILL)
    assert crew.has_started(4)  # one that was started later, when the others' were there to be inherited
    workers = children(crew.process.pid)
    assert len(workers) == 3
    crew.process.kill()
    crew.process.wait()
    assert wait_until(lambda: not any(is_alive(pid) for pid in workers))
