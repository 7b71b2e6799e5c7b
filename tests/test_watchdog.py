"""The watchdog hears of a service whose event loops turn, and of no other; and the manager of how it is."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.policy import DUNNO
from tests.manager import Manager
from tests.test_workers import children

WATCHDOG = 0.8
"""Seconds: four signs of life in each."""

StartManaged = Callable[..., Manager]


@pytest.fixture
def start_watched(tmp_path: Path, redis_server: PrivateRedis) -> Iterator[StartManaged]:
    """Start a service that is watched."""
    with ExitStack() as stack:

        def start(kind: type[Manager] = Manager, **settings: str) -> Manager:
            settings = {"redis_url": redis_server.url, **settings}
            return stack.enter_context(kind(tmp_path, settings, watchdog=WATCHDOG))

        yield start


def signs(service: Manager, seconds: float) -> int:
    """How many signs of life come within so many seconds."""
    service.listen()
    service.messages.clear()
    wait_until(lambda: service.hears(lambda _: False), seconds=seconds)
    return sum(message.startswith("WATCHDOG=1") for message in service.messages)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_watchdog_hears_of_a_service_that_lives(workers: str, start_watched: StartManaged) -> None:
    service = start_watched(workers=workers)
    assert signs(service, WATCHDOG * 2) >= 4


def test_the_watchdog_hears_nothing_of_a_loop_that_does_not_turn(start_watched: StartManaged, tmp_path: Path) -> None:
    """The process lives, its other threads run, and its loop is stuck."""
    stuck = tmp_path / "stuck"

    class Stuck(Manager):
        def command(self) -> list[str]:
            program = (
                "import os, time\n"
                "from pbs_policy.cli import main\n"
                "from pbs_policy.upkeep import Upkeep\n"
                "async def look(self):\n"
                f"    while os.path.exists({str(stuck)!r}):\n"
                "        time.sleep(0.01)\n"
                "Upkeep.look = look\n"
                f"main({super().command()[3:]!r})\n"
            )
            return [sys.executable, "-c", program]

    service = start_watched(Stuck)
    assert signs(service, WATCHDOG) >= 2
    stuck.touch()
    assert wait_until(lambda: signs(service, WATCHDOG * 0.75) == 0, seconds=5)
    assert service.process.poll() is None
    stuck.unlink()
    assert wait_until(lambda: signs(service, WATCHDOG / 2) > 0, seconds=5)


def test_a_worker_that_hangs_is_replaced_and_the_watchdog_waits_until_then(start_watched: StartManaged) -> None:
    service = start_watched(workers="2")
    assert wait_until(lambda: len(children(service.process.pid)) == 2)
    before = children(service.process.pid)
    victim = min(before)
    os.kill(victim, signal.SIGSTOP)
    assert service.waits_to_log("hangs\n")
    assert service.waits_to_log("ended by SIGKILL, starting another")
    assert wait_until(lambda: len(children(service.process.pid)) == 2)
    assert children(service.process.pid) - before
    assert signs(service, WATCHDOG * 2) >= 2
    assert {service.ask("192.0.2.7") for _ in range(10)} == {DUNNO}


def test_workers_that_do_nothing_but_hang_are_not_passed_off_as_life(start_watched: StartManaged) -> None:
    """Each is stopped again as soon as it is there: the manager hears nothing and restarts the service."""
    service = start_watched(workers="2")
    assert wait_until(lambda: len(children(service.process.pid)) == 2)

    def stop_all() -> None:
        for pid in children(service.process.pid):
            try:
                os.kill(pid, signal.SIGSTOP)
            except ProcessLookupError:
                continue

    def heard() -> bool:
        stop_all()
        return service.hears(lambda line: line == "WATCHDOG=1")

    stop_all()
    wait_until(lambda: heard() and False, seconds=WATCHDOG * 2)  # what was said before
    service.messages.clear()
    assert not wait_until(heard, seconds=WATCHDOG * 2)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_manager_is_told_of_redis_and_of_the_end(
    workers: str, start_watched: StartManaged, own_redis: Callable[..., PrivateRedis]
) -> None:
    redis = own_redis()
    service = start_watched(workers=workers, redis_url=redis.url)
    assert wait_until(lambda: service.hears(lambda line: line.startswith("STATUS=listening on inet:127.0.0.1:")))
    assert wait_until(lambda: service.hears(lambda line: line.endswith("; Redis answers")))
    redis.stop()
    assert wait_until(lambda: service.hears(lambda line: line.endswith("; Redis is unavailable")))
    redis.start()
    service.messages.clear()
    assert wait_until(lambda: service.hears(lambda line: line.endswith("; Redis answers")))
    service.process.send_signal(signal.SIGTERM)
    assert wait_until(lambda: service.hears(lambda line: line == "STOPPING=1"))


def test_without_a_watchdog_a_stopped_worker_is_left_alone(tmp_path: Path, redis_server: PrivateRedis) -> None:
    """An administrator who stops a process to look at it finds it again."""
    with Manager(tmp_path, {"redis_url": redis_server.url, "workers": "2"}) as service:
        assert wait_until(lambda: len(children(service.process.pid)) == 2)
        before = children(service.process.pid)
        os.kill(min(before), signal.SIGSTOP)
        wait_until(lambda: service.hears(lambda _: False), seconds=WATCHDOG)
        assert children(service.process.pid) == before
