"""Several Redises that belong together: a master and its replica, the Sentinels that watch them, a Cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis, RedisError

from pbs_policy.demo.daemons import PrivateDaemon, PrivateRedis, redis_program, wait_until
from pbs_policy.demo.ports import free_port
from pbs_policy.shipped import shipped
from tests.certificates import Certificates

SLOTS = 16384


@dataclass(frozen=True)
class Guard:
    """What a Sentinel asks of its clients: TLS with their certificate, a password of `pbs-sentinel`."""

    certificates: Certificates
    password: str

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
                    "sentinel down-after-milliseconds mymaster 500",
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
        return Redis(unix_socket_path=str(self._socket), socket_timeout=2, decode_responses=True, protocol=2)

    def names(self) -> tuple[str, int]:
        """Host and port of the master, as this Sentinel has it."""
        with self.open() as sentinel:
            found = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
            return found[0], int(found[1])

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
    """A node of a Cluster."""

    def __init__(self, directory: Path, arguments: Sequence[str] = (), program: Sequence[str] = ()) -> None:
        self._bus = free_port()
        own = ("--cluster-enabled", "yes", "--cluster-port", str(self._bus), "--cluster-node-timeout", "1000")
        super().__init__(directory, port=None, arguments=[*own, *arguments], program=program)

    def ask(self, *command: str | int) -> Any:
        """The reply to one command, asked of this node alone."""
        with Redis(unix_socket_path=str(self.socket_path), protocol=2, socket_timeout=5) as node:
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

    def meet(self, other: Node) -> None:
        """Make these two know one another, and all who know them."""
        self.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other._bus)


@dataclass(frozen=True)
class Cluster:
    """Three masters with a third of the slots each, and a replica of the one that has `{pbs}`."""

    master: Node
    others: list[Node]
    replica: Node

    @classmethod
    def join(cls, nodes: Sequence[Node]) -> Cluster:
        """Make one of four nodes that know nothing yet."""
        slot = int(nodes[0].ask("CLUSTER", "KEYSLOT", "{pbs}"))
        share = SLOTS // 3
        *masters, replica = nodes
        for number, node in enumerate(masters):
            last = SLOTS - 1 if number == 2 else (number + 1) * share - 1
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", number * share, last)
        for node in nodes[1:]:
            nodes[0].meet(node)
        master = masters[min(slot // share, 2)]
        known = lambda: all(len(node.ask("CLUSTER", "NODES").splitlines()) == 4 for node in nodes)  # noqa: E731
        assert wait_until(known)

        def is_replica() -> bool:
            with contextlib.suppress(RedisError):
                replica.ask("CLUSTER", "REPLICATE", master.id)
            return not replica.is_master

        assert wait_until(is_replica)
        cluster = cls(master, [each for each in masters if each is not master], replica)
        assert wait_until(cluster.is_whole)
        return cluster

    def is_whole(self) -> bool:
        """Whether every node serves, and the replica has what its master has."""
        states = [node.ask("CLUSTER", "INFO") for node in (self.master, *self.others, self.replica)]
        role = self.replica.ask("ROLE")
        return all(b"cluster_state:ok" in state for state in states) and role[3] == b"connected"

    @property
    def url(self) -> str:
        """The master is not among those that are named, nor is its replica."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{each.port}" for each in self.others)
