"""The check of the replicas that a master has: is there one to fail over to, and does it have today's logins?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pbs_policy.doctor.finding import Finding, good, not_looked_at, warning
from pbs_policy.doctor.store_facts import StoreFacts
from pbs_policy.log import printable
from pbs_policy.settings import Settings

CHECK = "store.replicas"

LONGEST_LAG = 5
"""Seconds. A replica reports to its master once a second, and whole seconds are counted: 0 or 1 is usual, 2 may be a
busy moment. At more than five several reports in a row are missing, which is no chance."""


def check_replicas(facts: StoreFacts, settings: Settings, place: str) -> Iterator[Finding]:
    """Each replica that the master has heard of: what it lacks is lost to a failover. `place` is where redis_url is
    set. A replica has none to be looked at: `store.replica`."""
    if facts.info is None:
        yield not_looked_at(CHECK, f"INFO: {facts.refused.get('info', '')}", place)
        return
    if facts.info.get("role", "master") != "master":
        return
    replicas = [_fields(value) for name, value in facts.info.items() if re.fullmatch(r"slave\d+", name)]
    if not replicas:
        yield _none(settings, place)
        return
    late = [(each, trouble) for each in replicas if (trouble := _trouble(each))]
    for each, trouble in late:
        name = printable(f"{each.get('ip', '?')}:{each.get('port', '?')}")
        seen = f"the replica {name} {trouble}: after a failover to it the logins of that time are missing"
        yield warning(CHECK, seen, place, f"the network to {name}, its log and its load; INFO replication at both")
    if not late:
        worst = max(_lag(each) for each in replicas)
        yield good(CHECK, f"each of {len(replicas)} replicas is online, the longest silence is {worst} s", place)


def _none(settings: Settings, place: str) -> Finding:
    url = settings.redis_url
    if url.names_master:
        what = "Sentinels" if url.master else "a Cluster"
        seen = f"redis_url names {what}, and the master has no replica: there is nothing to fail over to"
        return warning(CHECK, seen, place, "replicaof HOST PORT, the master's, at a second Redis")
    return good(CHECK, "there is none: a single Redis, without which nobody may relay", place)


def _fields(value: str) -> dict[str, str]:
    """`ip=192.0.2.2,port=6379,state=online,offset=14,lag=1`, as INFO says of each."""
    return {name: said for name, equals, said in (part.partition("=") for part in value.split(",")) if equals}


def _lag(replica: dict[str, str]) -> int:
    lag = replica.get("lag", "")
    return int(lag) if lag.isdecimal() else 0


def _trouble(replica: dict[str, str]) -> str:
    state = replica.get("state", "unknown")
    if state != "online":
        return f"is not online (state {printable(state)})"
    return f"was last heard from {_lag(replica)} s ago" if _lag(replica) > LONGEST_LAG else ""
