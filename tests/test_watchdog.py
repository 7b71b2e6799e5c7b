"""The watchdog hears of a service whose event loop turns, and of no other; and the manager of how it is."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.service.notify import Notify
from tests.manager import Manager

WATCHDOG = 0.8
"""Seconds: four signs of life in each."""

StartWatched = Callable[..., Manager]


@pytest.fixture
def start_watched(tmp_path: Path, redis_server: PrivateRedis) -> Iterator[StartWatched]:
    """Start a service that is watched."""
    with ExitStack() as stack:

        def start(kind: type[Manager] = Manager, watchdog: float = WATCHDOG, **settings: str) -> Manager:
            settings = {"redis_url": redis_server.url, **settings}
            return stack.enter_context(kind(tmp_path, settings, watchdog=watchdog))

        yield start


class Stuck(Manager):
    """A service whose loop is stuck for as long as the file `stuck` is there."""

    def command(self) -> list[str]:
        program = (
            "import os, time\n"
            "from pbs_policy.cli import main\n"
            "from pbs_policy.service.upkeep import Upkeep\n"
            "async def look(self):\n"
            f"    while os.path.exists({str(self.directory / 'stuck')!r}):\n"
            "        time.sleep(0.01)\n"
            "Upkeep.look = look\n"
            f"main({super().command()[3:]!r})\n"
        )
        return [sys.executable, "-c", program]


def signs(service: Manager) -> int:
    """How many signs of life were heard since `service.messages` was cleared."""
    service.listen()
    return sum(message.startswith("WATCHDOG=1") for message in service.messages)


def hears_signs(service: Manager) -> bool:
    """Whether signs of life go on from now."""
    service.listen()
    service.messages.clear()
    return wait_until(lambda: signs(service) >= 3)


def hears_nothing(service: Manager) -> bool:
    """Whether, from now, nothing comes for longer than the manager would wait."""
    service.listen()
    service.messages.clear()
    return not wait_until(lambda: signs(service) > 0, seconds=WATCHDOG)


def test_the_watchdog_hears_of_a_service_that_lives(start_watched: StartWatched) -> None:
    assert hears_signs(start_watched())


def test_signs_of_life_come_four_times_in_the_time_of_the_watchdog_and_once_a_second_at_least() -> None:
    def beats(**environment: str) -> float:
        return Notify.from_environment(environment).beats

    assert beats(NOTIFY_SOCKET="/run/n", WATCHDOG_USEC="800000") == pytest.approx(0.2)
    assert beats(NOTIFY_SOCKET="/run/n", WATCHDOG_USEC="30000000") == 1
    assert beats(NOTIFY_SOCKET="/run/n") == 1
    assert beats() == 0


def test_the_watchdog_hears_nothing_of_a_loop_that_does_not_turn(start_watched: StartWatched, tmp_path: Path) -> None:
    """The process lives, its other threads run, and its loop is stuck."""
    service = start_watched(Stuck)
    assert hears_signs(service)
    (tmp_path / "stuck").touch()
    assert wait_until(lambda: hears_nothing(service))
    assert service.process.poll() is None
    (tmp_path / "stuck").unlink()
    assert hears_signs(service)


def test_the_manager_is_told_of_redis_and_of_the_end(
    start_watched: StartWatched, own_redis: Callable[..., PrivateRedis]
) -> None:
    redis = own_redis()
    service = start_watched(redis_url=redis.url)
    assert wait_until(lambda: service.hears(lambda line: line.startswith("STATUS=listening on inet:127.0.0.1:")))
    assert wait_until(lambda: service.hears(lambda line: line.endswith("; Redis answers")))
    redis.stop()
    assert wait_until(lambda: service.hears(lambda line: line.endswith("; Redis is unavailable")))
    redis.start()
    service.messages.clear()
    assert wait_until(lambda: service.hears(lambda line: line.endswith("; Redis answers")))
    service.process.send_signal(signal.SIGTERM)
    assert wait_until(lambda: service.hears(lambda line: line == "STOPPING=1"))
