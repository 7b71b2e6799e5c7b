"""A Cluster of three masters and a replica: the login table is in one slot, whose master the service, the command
line and the script find from any node, and follow through a failover.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pbs_policy.decision.rules import DEFER, DUNNO, OK
from pbs_policy.demo.daemons import wait_until
from pbs_policy.settings import load
from pbs_policy.store.connect import connect_by
from tests.certificates import Certificates
from tests.redis_clients import ALICE, BOB, Clients, kill
from tests.topology.servers import Cluster, tls_settings

PREFIX = "{pbs}:"


def test_all_find_the_slots_master_from_any_node(clients: Clients, whole_cluster: Cluster) -> None:
    nodes = whole_cluster
    clients.point_at(nodes.url, key_prefix=PREFIX)
    service = clients.assert_all_are_served()
    assert f"the master 127.0.0.1:{nodes.master.port}" in service.log()
    assert nodes.master.ask("GET", f"{PREFIX}login:{ALICE}") is not None
    # And where the first that is named is down, or is the replica.
    for first in (1, nodes.replica.port):
        clients.point_at(nodes.url.replace("//", f"//127.0.0.1:{first},"), key_prefix=PREFIX)
        assert clients.start().ask(ALICE) == OK
        assert clients.check().status == 0
        clients.assert_recorded(BOB)


NAMED = ("--cluster-announce-hostname", "localhost", "--cluster-preferred-endpoint-type", "hostname")


@pytest.mark.parametrize("speaks", ["plainly", pytest.param("TLS, by name", marks=pytest.mark.long)])
def test_after_the_masters_death_all_go_on_with_its_replica(
    speaks: str, clients: Clients, cluster: Callable[..., Cluster], certificates: Certificates
) -> None:
    if speaks == "plainly":
        nodes = cluster()
        clients.point_at(nodes.url, key_prefix=PREFIX)
    else:
        nodes = cluster(*NAMED, certificates=certificates)
        clients.point_at(nodes.url, key_prefix=PREFIX, **tls_settings(certificates))
    service = clients.assert_all_are_served()
    host = "127.0.0.1" if speaks == "plainly" else "localhost"
    assert f"the master {host}:{nodes.master.port}" in service.log()
    assert wait_until(lambda: nodes.replica.ask("DBSIZE") == nodes.master.ask("DBSIZE"))
    kill(nodes.master)
    assert service.ask(ALICE) == DEFER
    clients.assert_check_is_unavailable("Redis is unavailable")
    clients.assert_not_recorded("")
    nodes.miss_nodes_after(1_000)
    answers = []

    def is_permitted() -> bool:
        answers.append(service.ask(ALICE))
        return answers[-1] == OK

    assert wait_until(is_permitted), service.log()
    assert set(answers) <= {OK, DEFER}, "a login that is known was refused"
    nodes.miss_nodes_after(60_000)
    clients.assert_recorded(BOB)
    assert service.ask(BOB) == OK
    assert clients.check(BOB).status == 0


def test_over_tls_all_are_served_but_by_nodes_that_are_not_of_our_authority(
    clients: Clients, cluster: Callable[..., Cluster], certificates: Certificates
) -> None:
    nodes = cluster(certificates=certificates)
    clients.point_at(nodes.url, key_prefix=PREFIX, **tls_settings(certificates))
    clients.assert_all_are_served()
    stranger = {**tls_settings(certificates), "redis_tls_ca_file": str(certificates.stranger.certificate)}
    clients.point_at(nodes.url, key_prefix=PREFIX, **stranger)
    service = clients.start()
    assert service.ask(ALICE) == DEFER
    assert service.waits_to_log("certificate verify failed")
    clients.assert_check_is_unavailable("certificate verify failed")
    clients.assert_not_recorded("")  # it may have no time left to say more, with three to shake hands with


@pytest.mark.long
def test_three_masters_without_a_replica_defer_while_one_is_down_and_go_on_when_it_is_back(
    clients: Clients, cluster: Callable[..., Cluster]
) -> None:
    nodes = cluster(replica=False)
    clients.point_at(nodes.url, key_prefix=PREFIX)
    service = clients.assert_all_are_served()
    kill(nodes.master)
    assert service.ask(ALICE) == DEFER
    clients.assert_check_is_unavailable("Redis is unavailable")
    clients.assert_not_recorded("")
    nodes.master.start()  # it has kept nothing but its place in the Cluster
    assert wait_until(nodes.is_whole)
    assert wait_until(lambda: service.ask(ALICE) == DUNNO), service.log()
    clients.assert_recorded()
    assert service.ask(ALICE) == OK
    assert clients.check().status == 0


@pytest.mark.long
@pytest.mark.parametrize("covers", ["all or nothing", "what is left"])
def test_a_master_of_slots_that_are_not_ours_takes_all_with_it_unless_the_cluster_is_told_otherwise(
    covers: str, clients: Clients, cluster: Callable[..., Cluster]
) -> None:
    nodes = cluster("--cluster-require-full-coverage", "no" if covers == "what is left" else "yes", replica=False)
    clients.point_at(nodes.url, key_prefix=PREFIX)
    service = clients.assert_all_are_served()
    other = nodes.others[1]
    kill(other)
    nodes.miss_nodes_after(1_000)
    told = b"master,fail "
    assert wait_until(lambda: told in nodes.master.ask("CLUSTER", "NODES"))
    if covers == "all or nothing":
        assert wait_until(lambda: service.ask(ALICE) == DEFER)
        assert service.waits_to_log("CLUSTERDOWN")
        clients.assert_check_is_unavailable("CLUSTERDOWN")
        other.start()
        assert wait_until(nodes.is_whole, seconds=60)
    nodes.miss_nodes_after(60_000)
    assert wait_until(lambda: service.ask(ALICE) == OK), service.log()
    clients.assert_recorded(BOB)
    assert service.ask(BOB) == OK
    assert clients.check(BOB).status == 0


def test_a_failover_by_hand_costs_no_answer(clients: Clients, cluster: Callable[..., Cluster]) -> None:
    """The former master lives, keeps the connection, and answers MOVED."""
    nodes = cluster()
    clients.point_at(nodes.url, key_prefix=PREFIX)
    service = clients.assert_all_are_served()
    settings, _ = load(Path("/dev/null"), overrides=[f"redis_url={nodes.url}", f"key_prefix={PREFIX}"])
    command = connect_by(settings)  # such as `watch`, which keeps its connection
    key = f"{PREFIX}login:{ALICE}".encode()
    assert command.ask([(b"EXISTS", key)]) == [1]
    nodes.replica.ask("CLUSTER", "FAILOVER")
    while not nodes.replica.is_master:
        assert service.ask(ALICE) == OK
    for _ in range(20):
        assert service.ask(ALICE) == OK
        assert service.ask("203.0.113.9") == DUNNO
    assert service.waits_to_log(f"the master 127.0.0.1:{nodes.replica.port}")
    clients.assert_recorded(BOB)
    assert nodes.replica.ask("GET", f"{PREFIX}login:{BOB}") is not None
    assert clients.check(BOB).status == 0
    assert command.ask([(b"EXISTS", key), (b"EXISTS", b"{pbs}:absent")]) == [1, 0]
    command.close()


def test_users_who_may_do_only_what_they_must_find_the_master_too(
    clients: Clients, whole_cluster: Cluster, password_file: Callable[[str], str]
) -> None:
    nodes = whole_cluster
    for node in (nodes.master, *nodes.others, *nodes.replicas):
        for line in (
            "service on >of-the-service %R~{pbs}:* -@all +get +mget +pttl",
            "script on >of-the-script %W~{pbs}:* -@all +set",
        ):
            node.ask("ACL", "SETUSER", *line.split())
    of = {
        who: {"redis_user": who, "redis_password_file": password_file(f"of-the-{who}"), "key_prefix": PREFIX}
        for who in ("service", "script")
    }
    clients.point_at(nodes.url, **of["service"])
    service = clients.start()
    assert service.ask(ALICE) == DUNNO
    clients.point_at(nodes.url, **of["script"])
    clients.assert_recorded()
    assert service.ask(ALICE) == OK
    clients.point_at(nodes.url, **of["service"])
    assert clients.check().status == 0


@pytest.mark.parametrize("prefix", ["pbs:", "{}:"])
def test_a_prefix_that_scatters_the_table_is_refused(prefix: str, clients: Clients) -> None:
    clients.point_at("redis+cluster://127.0.0.1:1", key_prefix=prefix)
    said = clients.check()
    assert said.status == 78
    assert f"key_prefix = {prefix}: with redis+cluster expected a hash tag in braces" in said.err
