"""Several Redises that belong together, started for a test: of each version there is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from pbs_policy.demo.daemons import PrivateRedis
from tests.certificates import Certificates
from tests.conftest import need
from tests.topology.servers import Cluster, Guard, Node, Sentinel, Watched


@pytest.fixture
def own_redis(own_redis: Callable[..., PrivateRedis], each_redis: list[str]) -> Callable[..., PrivateRedis]:
    """As elsewhere, and of each version there is."""
    return partial(own_redis, program=each_redis)


@pytest.fixture
def watched(each_redis: list[str]) -> Iterator[Callable[..., Watched]]:
    """Have a master watched by three Sentinels."""
    need("redis")
    with ExitStack() as stack:

        def watch(master: PrivateRedis, settings: str = "", guard: Guard | None = None, count: int = 3) -> Watched:
            """By `count` Sentinels, with TLS where there is a guard."""
            sentinels: list[Sentinel] = []
            for _ in range(count):
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-"))
                sentinels.append(Sentinel(Path(directory), master.port, settings, guard, program=each_redis))
                stack.enter_context(sentinels[-1])
            return Watched(master, sentinels, tls=guard is not None)

        yield watch


@pytest.fixture
def cluster(each_redis: list[str]) -> Iterator[Callable[..., Cluster]]:
    """Start a Cluster of three masters and a replica, with further arguments of redis-server."""
    need("redis")
    with ExitStack() as stack:
        yield partial(_start_cluster, stack, each_redis)


@pytest.fixture(scope="session")
def _shared_cluster(each_redis: list[str]) -> Iterator[Cluster]:
    need("redis")
    with ExitStack() as stack:
        yield _start_cluster(stack, each_redis)


@pytest.fixture
def whole_cluster(_shared_cluster: Cluster) -> Cluster:
    """One Cluster for all tests that only read and write; each begins with an empty table."""
    _shared_cluster.master.ask("FLUSHALL")
    return _shared_cluster


def _start_cluster(
    stack: ExitStack,
    program: list[str],
    *arguments: str,
    certificates: Certificates | None = None,
    replica: bool = True,
) -> Cluster:
    """With TLS where there are `certificates`; of the masters alone without the `replica`."""
    directories = [stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-")) for _ in range(3 + replica)]
    nodes = [Node(Path(each), arguments, program, certificates) for each in directories]
    return Cluster.join([stack.enter_context(node) for node in nodes])
