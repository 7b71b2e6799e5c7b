"""Several Redises that belong together: a master and its replica, the Sentinels that watch them, a Cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from redis import Redis, RedisError

from pbs_policy.demo.daemons import PrivateDaemon, PrivateRedis, redis_program, wait_until
from pbs_policy.demo.ports import free_port
from pbs_policy.shipped import shipped
from tests.certificates import Certificates

SLOTS = 16384


def secure(certificates: Certificates, port: int) -> list[str]:
    """Arguments of a Redis that speaks TLS alone, on this port, and asks for a certificate."""
    return [
        *("--port", "0", "--tls-port", str(port), "--tls-ca-cert-file", str(certificates.authority)),
        *("--tls-cert-file", str(certificates.server.certificate), "--tls-key-file", str(certificates.server.key)),
        *("--tls-auth-clients", "yes", "--tls-replication", "yes"),
    ]


def tls_settings(certificates: Certificates) -> dict[str, str]:
    """Of whoever such a Redis lets in."""
    return {
        "redis_tls_ca_file": str(certificates.authority),
        "redis_tls_cert_file": str(certificates.client_in_one_file),
    }


@dataclass(frozen=True)
class Guard:
    """What a Sentinel asks of its clients: TLS with their certificate, a password of `pbs-sentinel`."""

    certificates: Certificates
    password: str

    def settings(self, password_file: Callable[[str], str]) -> dict[str, str]:
        """Of whoever is let in."""
        return {
            **tls_settings(self.certificates),
            "sentinel_user": "pbs-sentinel",
            "sentinel_password_file": password_file(self.password),
        }

    def options(self, port: int) -> list[str]:
        """As lines of redis.conf, which are the same for Redis and Sentinel."""
        ours = self.certificates
        return [
            *("port 0", f"tls-port {port}", "tls-replication yes", "tls-auth-clients yes"),
            *(f"tls-cert-file {ours.server.certificate}", f"tls-key-file {ours.server.key}"),
            f"tls-ca-cert-file {ours.authority}",
        ]


class Sentinel(PrivateDaemon):
    """One process that watches the master `mymaster` at a port."""

    def __init__(
        self,
        directory: Path,
        master_port: int,
        settings: str,
        guard: Guard | None = None,
        *,
        host: str = "127.0.0.1",
        master_host: str = "127.0.0.1",
        program: Sequence[str] = (),
    ) -> None:
        super().__init__("sentinel", directory)
        self.port = free_port()
        self._guard = guard
        self._program = program
        self._socket = directory / "sentinel.sock"
        self._settings_file = directory / "sentinel.conf"
        users = [f"{shipped('redis-examples/sentinel.acl').read_text().strip()} >{guard.password}",
                 "user default on nopass ~* &* +@all"] if guard else []  # fmt: skip
        self._settings_file.write_text(
            "\n".join(
                [
                    *(guard.options(self.port) if guard else [f"port {self.port}"]),
                    *users,
                    f"bind {host}",
                    f"unixsocket {self._socket}",
                    "protected-mode no",
                    f"dir {directory}",
                    f"sentinel monitor mymaster {master_host} {master_port} 2",
                    "sentinel down-after-milliseconds mymaster 60000",  # until `be_quick`
                    "sentinel failover-timeout mymaster 2000",
                    settings,
                    "",
                ]
            )
        )

    def command(self) -> list[str]:
        return [*(self._program or redis_program()), str(self._settings_file), "--sentinel"]

    def is_ready(self) -> bool:
        with contextlib.suppress(RedisError), self.open() as sentinel:
            return bool(sentinel.ping())
        return False

    def open(self) -> Redis:
        """A client of this Sentinel."""
        return Redis(unix_socket_path=str(self._socket), socket_timeout=20, decode_responses=True, protocol=2)

    def names(self) -> tuple[str, int]:
        """Host and port of the master, as this Sentinel has it."""
        with self.open() as sentinel:
            found = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
            return found[0], int(found[1])

    def be_quick(self) -> None:
        """From now on take a master for dead after 0.5 s. Before that one that is merely slow, on a busy machine, is
        left alone."""
        with self.open() as sentinel:
            sentinel.execute_command("SENTINEL", "SET", "mymaster", "down-after-milliseconds", "500")

    def knows(self) -> tuple[int, int]:
        """How many replicas and how many other Sentinels it could count on."""
        with self.open() as sentinel:
            flat = sentinel.execute_command("SENTINEL", "MASTERS")[0]
            flat = list(flat.items()) if isinstance(flat, dict) else list(zip(flat[::2], flat[1::2], strict=True))
            master = dict(flat)
            return int(master["num-slaves"]), int(master["num-other-sentinels"])


@dataclass(frozen=True)
class Watched:
    """A master, and the three Sentinels that watch it."""

    master: PrivateRedis
    sentinels: list[Sentinel]
    tls: bool = False

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        return f"redis{'s' if self.tls else ''}+sentinel://{places}/mymaster"


class Node(PrivateRedis):
    """A node of a Cluster. With certificates it speaks TLS alone, with the other nodes as well."""

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str] = (),
        program: Sequence[str] = (),
        certificates: Certificates | None = None,
    ) -> None:
        port, self._bus = free_port(), free_port()
        self.tls = certificates is not None
        own = ["--cluster-enabled", "yes", "--cluster-port", str(self._bus), "--cluster-node-timeout", "2000"]
        own += ["--cluster-replica-validity-factor", "0"]  # a replica may take over however late it is
        if certificates:
            own += [*secure(certificates, port), "--tls-cluster", "yes"]
        super().__init__(directory, port=port, arguments=[*own, *arguments], program=program)

    def ask(self, *command: str | int) -> Any:
        """The reply to one command, asked of this node alone."""
        with Redis(unix_socket_path=str(self.socket_path), protocol=2, socket_timeout=20) as node:
            execute: Any = node.execute_command  # without types in redis-py
            return execute(*command)

    @property
    def id(self) -> str:
        """Its name in the Cluster."""
        return str(self.ask("CLUSTER", "MYID").decode())

    @property
    def is_master(self) -> bool:
        """Whether it takes itself for a master."""
        return bool(self.ask("ROLE")[0] == b"master")

    def follows(self, master: Node) -> bool:
        """Make it a replica of that one; whether it is."""
        with contextlib.suppress(RedisError):
            self.ask("CLUSTER", "REPLICATE", master.id)
        return not self.is_master

    def meet(self, others: Sequence[Node]) -> None:
        """Make these know one another. To be said again where one was too slow to shake hands: that is forgotten."""
        known = self.ask("CLUSTER", "NODES")
        for other in others:
            if b":%d@" % other.port not in known:
                self.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other._bus)

    def acquaintances(self) -> int:
        """How many nodes it knows, itself among them."""
        return sum(b"handshake" not in each for each in self.ask("CLUSTER", "NODES").splitlines())


@dataclass(frozen=True)
class Cluster:
    """Three masters with a third of the slots each, and a replica of the one that has `{pbs}`, or none."""

    master: Node
    others: list[Node]
    replicas: list[Node]

    @classmethod
    def join(cls, nodes: Sequence[Node]) -> Cluster:
        """Make one of three or four nodes that know nothing yet."""
        slot = int(nodes[0].ask("CLUSTER", "KEYSLOT", "{pbs}"))
        share = SLOTS // 3
        masters, replicas = nodes[:3], nodes[3:]
        for number, node in enumerate(masters):
            last = SLOTS - 1 if number == 2 else (number + 1) * share - 1
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", number * share, last)
        master = masters[min(slot // share, 2)]

        def all_are_known() -> bool:
            nodes[0].meet(nodes[1:])
            return all(node.acquaintances() == len(nodes) for node in nodes)

        assert wait_until(all_are_known)
        for replica in replicas:
            assert wait_until(partial(replica.follows, master))
        cluster = cls(master, [each for each in masters if each is not master], list(replicas))
        assert wait_until(cluster.is_whole)
        cluster.miss_nodes_after(60_000)
        return cluster

    def miss_nodes_after(self, milliseconds: int) -> None:
        """Take a node for failed after so long a silence: a second is soon over on a busy machine."""
        for node in (self.master, *self.others, *self.replicas):
            with contextlib.suppress(RedisError):  # that is down itself
                node.ask("CONFIG", "SET", "cluster-node-timeout", milliseconds)

    @property
    def replica(self) -> Node:
        """The one there is."""
        (replica,) = self.replicas
        return replica

    def is_whole(self) -> bool:
        """Whether every node serves, and the replica has what its master has."""
        states = [node.ask("CLUSTER", "INFO") for node in (self.master, *self.others, *self.replicas)]
        linked = all(each.ask("ROLE")[3] == b"connected" for each in self.replicas)
        return linked and all(b"cluster_state:ok" in state for state in states)

    @property
    def url(self) -> str:
        """The master is not among those that are named, nor is its replica."""
        scheme = "rediss+cluster" if self.master.tls else "redis+cluster"
        return f"{scheme}://" + ",".join(f"127.0.0.1:{each.port}" for each in self.others)
