"""Peers that send requests without waiting for answers cost others little time, and the watchdog none."""

from __future__ import annotations

from pathlib import Path

from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis
from tests.faults.clients import fill
from tests.faults.flood import flood


def test_a_flood_of_pipelined_requests_delays_others_little_and_the_watchdog_hears_in_time(
    tmp_path: Path, redis_server: PrivateRedis
) -> None:
    with Redis.from_url(redis_server.url) as redis:
        fill(redis)
    seen = flood(tmp_path, redis_server.url, 150, 2.0)
    assert not seen.harm
    assert seen.asked >= 100
    assert seen.p99 < 0.25, "20 ms on a quiet machine: docs/faults.md"
    assert seen.silence < 5, "a sign of life is due each second"
