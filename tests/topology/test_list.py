"""A list of servers, of which one is the master and is moved by hand: all three use that one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from redis import Redis

from pbs_policy.decision.policy import DEFER, DUNNO, OK
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from tests.redis_clients import ALICE, BOB, Clients, kill


def of(*servers: PrivateRedis) -> str:
    return "redis://" + ",".join(f"127.0.0.1:{each.port}" for each in servers)


@pytest.fixture
def pair(own_redis: Callable[..., PrivateRedis]) -> tuple[PrivateRedis, PrivateRedis]:
    """A master, and its replica."""
    master = own_redis("--repl-diskless-sync-delay", "0")
    replica = own_redis("--replicaof", "127.0.0.1", str(master.port))
    with Redis(port=replica.port) as redis:
        assert wait_until(lambda: redis.info("replication")["master_link_status"] == "up")
    return master, replica


def test_the_master_is_used_wherever_it_stands_in_the_list(
    clients: Clients, pair: tuple[PrivateRedis, PrivateRedis]
) -> None:
    master, replica = pair
    clients.point_at(of(replica, master))
    clients.assert_all_are_served()
    clients.point_at(of(master, replica))
    clients.assert_recorded(BOB)
    assert clients.start().ask(BOB) == OK


@pytest.mark.parametrize("end", ["dead", "mute"])
def test_a_server_that_is_gone_is_passed_by(
    end: str, clients: Clients, own_redis: Callable[..., PrivateRedis]
) -> None:
    gone, master = own_redis(), own_redis()
    if end == "dead":
        kill(gone)
    else:
        os.kill(gone.pid, signal.SIGSTOP)
    clients.point_at(of(gone, master))
    clients.assert_all_are_served()


def test_replicas_alone_serve_nobody(clients: Clients, pair: tuple[PrivateRedis, PrivateRedis]) -> None:
    _, replica = pair
    for url in (of(replica), of(replica, replica)):
        clients.point_at(url)
        service = clients.start()
        assert service.ask(ALICE) == DEFER
        assert service.waits_to_log("it is a replica, which may be behind")
        clients.assert_check_is_unavailable("it is a replica, which may be behind")
        clients.assert_not_recorded("READONLY")


def test_all_follow_the_master_that_is_moved_by_hand(
    clients: Clients, pair: tuple[PrivateRedis, PrivateRedis]
) -> None:
    master, replica = pair
    clients.point_at(of(master, replica))
    service = clients.assert_all_are_served()
    with Redis(port=master.port) as old, Redis(port=replica.port) as new:
        assert wait_until(lambda: new.exists(f"pbs:login:{ALICE}") == 1)
        new.replicaof("NO", "ONE")
        new.delete(f"pbs:login:{ALICE}", f"pbs:login:{ALICE},alice@example.com")
        old.execute_command("REPLICAOF", "127.0.0.1", replica.port)
        # Its connections are left as they are: the service finds out by itself.
        assert wait_until(lambda: service.ask(ALICE) == DUNNO)
        assert service.waits_to_log(f"{of(master, replica)}/0, the master 127.0.0.1:{replica.port}")
        clients.assert_recorded(BOB)
        assert new.exists(f"pbs:login:{BOB}")
        assert service.ask(BOB) == OK
        assert clients.check(BOB).status == 0
