"""Redis, Sentinels and services on hosts of their own, whose links are cut: nobody is told that they are."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.decision.rules import DEFER, DUNNO, OK
from pbs_policy.demo.daemons import PrivateRedis, redis_program, wait_until
from tests.conftest import need
from tests.patience import patient_script
from tests.redis_clients import ALICE
from tests.service import Service
from tests.topology.network import Network
from tests.topology.servers import Sentinel

PORT = 6379


class ServiceOn(Service):
    """A service on a host; asked through a unix socket, which is the same on all of them."""

    def __init__(self, host: list[str], directory: Path, url: str) -> None:
        self._host = host
        super().__init__(directory, {"listen": f"unix:{directory}/policy", "redis_url": url, "log_decisions": "all"})

    def command(self) -> list[str]:
        return [*self._host, *super().command()]


class Site:
    """A master `east` and its replica `west`, three Sentinels at the hub, and a host `mail`."""

    def __init__(self, stack: ExitStack, program: Sequence[str]) -> None:
        self._stack = stack
        self._program = program
        self.network = stack.enter_context(Network("east", "west", "mail"))
        self.east = self._redis("east")
        self.west = self._redis("west", "--replicaof", self.network.address("east"), str(PORT))
        self.to_east, self.to_west = (
            stack.enter_context(Redis(unix_socket_path=str(each.socket_path))) for each in (self.east, self.west)
        )
        assert wait_until(lambda: self.to_west.info("replication")["master_link_status"] == "up")
        self.sentinels = [self._sentinel() for _ in range(3)]
        assert wait_until(lambda: {each.knows() for each in self.sentinels} == {(1, 2)})

    @property
    def url(self) -> str:
        hub = self.network.address("hub")
        return f"redis+sentinel://{','.join(f'{hub}:{each.port}' for each in self.sentinels)}/mymaster"

    def directory(self) -> Path:
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-")))

    def service(self, host: str) -> ServiceOn:
        return self._stack.enter_context(ServiceOn(self.network.on(host), self.directory(), self.url))

    def is_elected(self, host: str) -> bool:
        return all(each.names()[0] == self.network.address(host) for each in self.sentinels)

    def let_elect(self, *, within: int) -> None:
        """Have the Sentinels take the master for down after so many milliseconds of silence."""
        for each in self.sentinels:
            with each.open() as sentinel:
                sentinel.execute_command("SENTINEL", "SET", "mymaster", "down-after-milliseconds", within)

    def lose(self, host: str) -> None:
        """Cut its link, and have the Sentinels find out soon."""
        self.network.cut(host)
        for each in self.sentinels:
            each.be_quick()

    def log_in(self, host: str) -> str:
        """A login on that host; what the script says of it."""
        file = self.directory() / "pbs-policy.conf"
        file.write_text(f"redis_url = {self.url}\n")
        result = subprocess.run(
            [*self.network.on(host), str(patient_script()), "-c", str(file), "pop3", "/bin/echo", "went on"],
            env={"IP": ALICE, "USER": "alice@example.com", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            capture_output=True, check=False, text=True,
        )  # fmt: skip
        assert result.stdout == "went on\n"
        return result.stderr

    def _redis(self, host: str, *arguments: str) -> PrivateRedis:
        program = [*self.network.on(host), *self._program]
        options = ("--bind", "0.0.0.0", "--protected-mode", "no", "--repl-diskless-sync-delay", "0")  # noqa: S104 - in its own namespace
        server = PrivateRedis(
            self.directory(), port=PORT, arguments=[*options, "--repl-timeout", "5", *arguments], program=program
        )
        return self._stack.enter_context(server)

    def _sentinel(self) -> Sentinel:
        host, program = self.network.address("hub"), [*self.network.on("hub"), *self._program]
        sentinel = Sentinel(
            self.directory(), PORT, "", host=host, master_host=self.network.address("east"), program=program
        )
        return self._stack.enter_context(sentinel)


@pytest.fixture
def site(each_redis: list[str]) -> Iterator[Site]:
    need("redis", "iproute2")
    with ExitStack() as stack:
        yield Site(stack, each_redis or redis_program())


def collect(service: Service, until: Callable[[], bool]) -> set[str]:
    """All answers until then, to one question after the other."""
    answers = set()

    def is_time() -> bool:
        answers.add(service.ask(ALICE))
        return until()

    assert wait_until(is_time), service.log()
    return answers


@pytest.mark.long
def test_a_master_whose_link_is_cut_is_left_for_the_elected_one_and_never_asked_again(site: Site) -> None:
    service = site.service("mail")
    assert service.ask(ALICE) == DUNNO
    assert site.log_in("mail") == ""
    assert service.ask(ALICE) == OK
    assert wait_until(lambda: site.to_west.exists(f"pbs:login:{ALICE}") == 1)
    site.let_elect(within=60_000)
    site.lose("east")
    assert service.ask(ALICE) == DEFER  # the connection is half open: found out by the time that it takes
    assert site.log_in("mail").count("\n") == 1  # the session went on, and it is said why nothing is recorded
    site.let_elect(within=500)
    assert collect(service, lambda: site.is_elected("west")) <= {DEFER, OK}
    assert collect(service, lambda: service.ask(ALICE) == OK) <= {DEFER, OK}
    site.to_west.delete(f"pbs:login:{ALICE}", f"pbs:login:{ALICE},alice@example.com")
    assert site.to_east.exists(f"pbs:login:{ALICE}") == 1  # what was revoked still stands there
    site.network.mend("east")
    assert collect(service, lambda: site.to_west.info("replication")["connected_slaves"] == 1) <= {DUNNO, DEFER}
    assert site.log_in("mail") == ""
    assert service.ask(ALICE) == OK


def test_a_service_that_was_cut_off_with_the_former_master_leaves_it_when_it_hears_of_the_new_one(site: Site) -> None:
    """While they are alone together it cannot know, and what was revoked elsewhere is permitted: docs/design.md."""
    service = site.service("east")
    assert site.log_in("east") == ""
    assert service.ask(ALICE) == OK
    assert wait_until(lambda: site.to_west.exists(f"pbs:login:{ALICE}") == 1)
    site.lose("east")
    assert wait_until(lambda: site.is_elected("west"))
    site.to_west.delete(f"pbs:login:{ALICE}", f"pbs:login:{ALICE},alice@example.com")
    assert service.ask(ALICE) == OK
    site.network.mend("east")
    assert collect(service, lambda: service.ask(ALICE) == DUNNO) <= {OK, DUNNO}
    assert service.waits_to_log(f"the master {site.network.address('west')}:{PORT}")
    for _ in range(20):
        assert service.ask(ALICE) == DUNNO


def test_sentinels_that_are_cut_off_take_nothing_from_a_service_that_has_its_master(site: Site) -> None:
    service = site.service("mail")
    assert site.log_in("mail") == ""
    assert service.ask(ALICE) == OK
    for sentinel in site.sentinels[:2]:
        sentinel.stop()
    for _ in range(5):
        assert site.log_in("mail") == ""
        assert service.ask(ALICE) == OK
    assert "unavailable" not in service.log()
