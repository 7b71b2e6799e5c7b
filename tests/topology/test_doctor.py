"""What doctor says of several Redises that belong together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.doctor import Doctor
from pbs_policy.doctor.finding import Finding
from pbs_policy.settings import load
from tests.redis_clients import kill
from tests.topology.servers import Cluster, Watched


def found(url: str, **settings: str) -> dict[str, Finding]:
    """The findings about Redis that are of interest here, by check."""
    overrides = [f"redis_url={url}", *(f"{name}={value}" for name, value in settings.items())]
    loaded, values = load(Path("/dev/null"), overrides=overrides)
    return {each.check: each for each in Doctor(loaded, values).examine_store()}


def test_a_sentinel_that_is_down_is_said_while_the_others_serve(
    own_redis: Callable[..., PrivateRedis], watched: Callable[..., Watched]
) -> None:
    places = watched(own_redis())
    sound = found(places.url)
    assert sound["store.places"].level == "good"
    assert f"the master is 127.0.0.1:{places.master.port}" in sound["store.places"].seen
    assert sound["store.replicas"].level == "warning"
    assert "redis_url names Sentinels, and the master has no replica" in sound["store.replicas"].seen
    kill(places.sentinels[1])
    seen = found(places.url)
    assert seen["store.places"].level == "warning"
    assert f"127.0.0.1:{places.sentinels[1].port} is of no use now" in seen["store.places"].seen
    assert seen["store.replica"].level == "good"


def test_a_cluster_is_looked_at_where_the_table_is_and_not_without_its_scheme(whole_cluster: Cluster) -> None:
    nodes = whole_cluster
    seen = found(nodes.url, key_prefix="{pbs}:")
    assert {each.check for each in seen.values() if each.level == "wrong"} == set()
    assert f"the master is 127.0.0.1:{nodes.master.port}" in seen["store.places"].seen
    plain = found(f"redis://127.0.0.1:{nodes.others[0].port}", key_prefix="{pbs}:")
    assert "redis+cluster://" in plain["store.reachable"].mend
