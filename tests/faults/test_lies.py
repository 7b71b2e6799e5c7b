"""A Redis whose replies are changed on their way: nobody is told OK wrongly, and nobody waits for long."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis
from tests.faults.clients import fill
from tests.faults.lies import CHANGES, tell

LATEST = 0.6
BUSY = 0.4
"""Seconds that a machine which has too much to do may add."""


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "displaced"])
def test_nobody_is_told_ok_wrongly_and_nobody_waits_for_long_where_replies_are(
    name: str, tmp_path: Path, redis_server: PrivateRedis
) -> None:
    """Not where they are displaced by valid ones of the same shape: the page has how often that is."""
    with Redis.from_url(redis_server.url) as redis:
        fill(redis)
    told = tell(tmp_path, redis_server.port, CHANGES[name], 3_000)
    assert told.changed >= 5
    assert told.wrong == 0
    assert told.slowest < LATEST + BUSY
