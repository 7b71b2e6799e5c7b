"""Several Redises that belong together, started for a test."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pbs_policy.demo.daemons import PrivateRedis
from tests.conftest import need
from tests.topology.servers import Cluster, Guard, Node, Sentinel, Watched


@pytest.fixture
def watched() -> Iterator[Callable[..., Watched]]:
    """Have a master watched by three Sentinels."""
    need("redis")
    with ExitStack() as stack:

        def watch(
            master: PrivateRedis, settings: str = "", guard: Guard | None = None, port: int = 0, count: int = 3
        ) -> Watched:
            """By `count` Sentinels; `port` is the master's for TLS."""
            sentinels: list[Sentinel] = []
            for _ in range(count):
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-"))
                sentinels.append(Sentinel(Path(directory), port or master.port, settings, guard))
                stack.enter_context(sentinels[-1])
            return Watched(master, sentinels, tls=guard is not None)

        yield watch


@pytest.fixture
def cluster() -> Iterator[Callable[..., Cluster]]:
    """Start a Cluster of three masters and a replica, with further arguments of redis-server."""
    need("redis")
    with ExitStack() as stack:

        def start(*arguments: str, program: list[str] | None = None) -> Cluster:
            directories = [stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-")) for _ in range(4)]
            nodes = [Node(Path(each), arguments, program or ()) for each in directories]
            return Cluster.join([stack.enter_context(node) for node in nodes])

        yield start
