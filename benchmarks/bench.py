"""What every cell is given, and the parts that several of them start: a filled Redis, a service on it."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import CannotRun
from benchmarks.filling import fill
from benchmarks.policy_client import answers
from benchmarks.processes import Programs
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.ports import free_port
from pbs_policy.demo.service import PrivateService
from pbs_policy.programs import missing
from pbs_policy.store.connect import connect
from pbs_policy.store.redis_url import RedisUrl


@dataclass(frozen=True)
class Bench:
    """One cell's surroundings. `stack` ends what was started in it, in reverse."""

    quick: bool
    directory: Path
    programs: Programs
    stack: ExitStack
    started: float

    def pick(self, full: Any, quick: Any) -> Any:
        """How much is measured in a full run, and how much with --quick."""
        return quick if self.quick else full

    def say(self, line: str) -> None:
        """Progress, on standard error."""
        print(f"{time.monotonic() - self.started:7.1f} s  {line}", file=sys.stderr, flush=True)

    def need(self, *daemons: str) -> None:
        """Raises CannotRun where one of `redis`, `dovecot` is absent."""
        lack = missing(*daemons)
        if lack:
            raise CannotRun(lack)

    def redis(self, name: str, *arguments: str) -> PrivateRedis:
        """A private Redis on a port and a socket."""
        self.need("redis")
        return self.stack.enter_context(PrivateRedis(self.directory / name, port=None, arguments=arguments))

    def filled_redis(self, name: str, first: str, count: int) -> PrivateRedis:
        """The same with so many logins in it."""
        redis = self.redis(name)
        fill(redis.socket_path, first, count)
        return redis

    def service(self, name: str, redis_url: str, *, unix: bool = False, **settings: str) -> Service:
        """A policy service that logs no decision and keeps no report, unless the settings say otherwise."""
        settings = {"log_decisions": "none", "usage_kept": "0", **settings}
        return self.shipped_service(name, redis_url, unix=unix, **settings)

    def shipped_service(self, name: str, redis_url: str, *, unix: bool = False, **settings: str) -> Service:
        """A policy service with the settings as they ship, save where it listens, Redis, and these."""
        listen = f"unix:{self.directory / name}.sock" if unix else f"inet:127.0.0.1:{free_port()}"
        lines = {"listen": listen, "redis_url": redis_url, **settings}
        return self.stack.enter_context(Service(self.directory / name, lines))


class Service(PrivateService):
    """A policy service of which the place is known beforehand, and whose log may be emptied while it runs."""

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        super().__init__(directory, settings)
        self.target = settings["listen"]

    def is_ready(self) -> bool:
        """Whether it answers: its log, where it says so, may go elsewhere."""
        return answers(self.target)

    def empty_log(self) -> None:
        """Forget what was logged. The file is open for appending, so the service goes on at its new end."""
        with (self.directory / f"{self.name}.out").open("wb"):
            pass

    def log_size(self) -> int:
        """Bytes logged since it was emptied."""
        return (self.directory / f"{self.name}.out").stat().st_size


def used_memory(redis: PrivateRedis) -> int:
    """Redis' used_memory when it no longer changes: a growing table is moved to a larger one bit by bit."""
    with connect(RedisUrl.parse(f"unix://{redis.socket_path}"), "", "") as client:
        deadline, seen = time.monotonic() + 30, list[int]()
        while time.monotonic() < deadline:
            (memory,) = client.ask([(b"INFO", b"memory")])
            seen.append(int(memory.partition(b"used_memory:")[2].split()[0]))
            if len(seen) >= 4 and max(seen[-4:]) - min(seen[-4:]) <= 4_096:
                break
            time.sleep(0.2)
    return seen[-1]
