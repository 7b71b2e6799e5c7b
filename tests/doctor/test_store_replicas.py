"""Doctor's check of a master's replicas: each state that INFO tells, and real replicas that fall behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.doctor import store
from pbs_policy.doctor.finding import Finding
from pbs_policy.doctor.store import StoreFacts, gather
from tests.doctor.test_store import SETTINGS, asking, client_of, settings_of

OwnRedis = Callable[..., PrivateRedis]
ONLINE = "ip=192.0.2.2,port=6379,state=online,offset=14,lag=1"


def findings(*replicas: str, url: str = "redis://192.0.2.1", role: str = "master") -> list[Finding]:
    settings = settings_of(redis_url=url, key_prefix="{pbs}:")  # a Cluster asks for the braces
    info = {"role": role, "connected_slaves": str(len(replicas)), "slave_expires_tracked_keys": "0"}
    info |= {f"slave{number}": replica for number, replica in enumerate(replicas)}
    return list(store._check_replicas(StoreFacts(info=info), settings, "pbs-policy.conf:1"))


def seen_of(server: PrivateRedis) -> list[Finding]:
    return list(store._check_replicas(gather(asking(server)), SETTINGS, ""))


def test_replicas_that_keep_up_are_good() -> None:
    (finding,) = findings(ONLINE, ONLINE.replace("lag=1", "lag=5"))
    assert finding.level == "good"
    assert finding.seen == "each of 2 replicas is online, the longest silence is 5 s"


@pytest.mark.parametrize(
    ("replica", "seen"),
    [
        ("ip=192.0.2.3,port=6380,state=online,offset=14,lag=6", "192.0.2.3:6380 was last heard from 6 s ago"),
        ("ip=192.0.2.3,port=6380,state=send_bulk,offset=0,lag=0", "192.0.2.3:6380 is not online (state send_bulk)"),
        ("ip=2001:db8::3,port=1,state=online,offset=1,lag=60,type=replica", "2001:db8::3:1 was last heard from 60 s"),
    ],
)
def test_a_replica_that_is_late_or_not_online_is_a_warning_and_the_others_are_not(replica: str, seen: str) -> None:
    (finding,) = findings(ONLINE, replica)
    assert (finding.level, finding.place) == ("warning", "pbs-policy.conf:1")
    assert seen in finding.seen
    assert "after a failover to it the logins of that time are missing" in finding.seen
    assert finding.mend


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("redis://192.0.2.1", "good"),
        ("unix:///run/redis/redis.sock", "good"),
        ("redis+sentinel://192.0.2.1,192.0.2.2/mail", "warning"),
        ("redis+sentinel://192.0.2.1/mail", "warning"),
        ("redis+cluster://192.0.2.1", "warning"),
    ],
)
def test_without_a_replica_there_is_nothing_to_fail_over_to_where_a_failover_is_meant(url: str, level: str) -> None:
    (finding,) = findings(url=url)
    assert finding.level == level
    assert ("nothing to fail over to" in finding.seen) is (level == "warning")


def test_a_replica_is_not_asked_for_its_replicas() -> None:
    assert findings(ONLINE, role="slave") == []


def test_a_real_replica_is_good_until_it_falls_silent(own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    master = own_redis("--repl-diskless-sync-delay", "0")
    assert "a single Redis" in seen_of(master)[0].seen
    replica = own_redis("--replicaof", "127.0.0.1", str(master.port))
    assert wait_until(lambda: "each of 1 replicas is online" in seen_of(master)[0].seen)
    monkeypatch.setattr(store, "LONGEST_LAG", 1)  # the real one would keep this test waiting
    os.kill(replica.pid, signal.SIGSTOP)
    try:
        assert wait_until(lambda: seen_of(master)[0].level == "warning")
        assert f"the replica 127.0.0.1:{replica.port} was last heard from" in seen_of(master)[0].seen
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    assert wait_until(lambda: seen_of(master)[0].level == "good")


def test_a_real_replica_that_waits_for_its_first_copy_is_not_online(own_redis: OwnRedis) -> None:
    master = own_redis("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "60")
    replica = own_redis("--replicaof", "127.0.0.1", str(master.port))
    assert wait_until(lambda: seen_of(master)[0].level == "warning")
    assert f"the replica 127.0.0.1:{replica.port} is not online (state wait" in seen_of(master)[0].seen


def test_who_may_not_ask_for_info_is_told_that_nothing_was_looked_at(own_redis: OwnRedis) -> None:
    server = own_redis()
    execute: Any = client_of(server).execute_command  # without types in redis-py
    execute("ACL", "SETUSER", "reader", "on", ">reader", "%R~pbs:*", "-@all", "+get")
    gathered = gather(asking(server, "reader", "reader"))
    (finding,) = store._check_replicas(gathered, SETTINGS, "")
    assert finding.level == "not looked at"
    assert "INFO: " in finding.seen
