"""Redis and Valkey of each version there is, alone, under either spelling of the URL. (All else here runs on each of
them, too.)
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pbs_policy.demo.daemons import PrivateRedis
from tests.redis_clients import Clients


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_it_serves_all_three(scheme: str, clients: Clients, own_redis: Callable[..., PrivateRedis]) -> None:
    clients.point_at(own_redis().url.replace("redis://", f"{scheme}://"))
    clients.assert_all_are_served()
