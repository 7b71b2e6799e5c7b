"""Redis and Valkey of another Debian than this one, such as Redis 8 and Valkey 8, from the tree that PBS_TREE names:
run here with the tree's own libraries. Alone, behind Sentinel and in a Cluster, through a failover of each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.policy import DEFER, OK
from tests.redis_clients import ALICE, BOB, Clients, kill
from tests.service import Service
from tests.topology.servers import Cluster, Sentinel, Watched
from tests.tree_programs import OF_THE_TREE, tree_program


@pytest.fixture(params=OF_THE_TREE)
def program(request: pytest.FixtureRequest) -> list[str]:
    """How the tree's program of this name is run."""
    return tree_program(request.param)


@pytest.fixture
def servers(program: list[str]) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(servers: ExitStack, program: list[str], *arguments: str) -> PrivateRedis:
    directory = servers.enter_context(tempfile.TemporaryDirectory(prefix="pbs-"))
    return servers.enter_context(PrivateRedis(Path(directory), port=None, arguments=arguments, program=program))


def follows(service: Service) -> None:
    """The login that is known is permitted again, and refused at no time."""
    answers = []

    def is_permitted() -> bool:
        answers.append(service.ask(ALICE))
        return answers[-1] == OK

    assert wait_until(is_permitted), service.log()
    assert set(answers) <= {OK, DEFER}


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_it_serves_all_three(scheme: str, clients: Clients, servers: ExitStack, program: list[str]) -> None:
    server = start(servers, program)
    clients.point_at(server.url.replace("redis://", f"{scheme}://"))
    clients.assert_all_are_served()


def test_its_sentinels_lead_to_the_new_master(clients: Clients, servers: ExitStack, program: list[str]) -> None:
    master = start(servers, program, "--repl-diskless-sync-delay", "0")
    replica = start(servers, program, "--replicaof", "127.0.0.1", str(master.port))
    directories = [servers.enter_context(tempfile.TemporaryDirectory(prefix="pbs-")) for _ in range(3)]
    sentinels = [Sentinel(Path(each), master.port, "", program=program) for each in directories]
    places = Watched(master, [servers.enter_context(each) for each in sentinels])
    assert wait_until(lambda: {each.knows() for each in sentinels} == {(1, 2)})
    clients.point_at(places.url)
    service = clients.assert_all_are_served()
    with Redis(unix_socket_path=str(replica.socket_path)) as new:
        assert wait_until(lambda: new.exists(f"pbs:login:{ALICE}") == 1)
        kill(master)
        follows(service)
        clients.assert_recorded(BOB)
        assert new.exists(f"pbs:login:{BOB}")
    assert clients.check(BOB).status == 0


def test_its_cluster_is_followed(clients: Clients, cluster: Callable[..., Cluster], program: list[str]) -> None:
    nodes = cluster(program=program)
    clients.point_at(nodes.url, key_prefix="{pbs}:")
    service = clients.assert_all_are_served()
    assert wait_until(lambda: nodes.replica.ask("DBSIZE") == nodes.master.ask("DBSIZE"))
    kill(nodes.master)
    follows(service)
    clients.assert_recorded(BOB)
    assert service.ask(BOB) == OK
    assert clients.check(BOB).status == 0
