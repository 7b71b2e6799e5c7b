"""Sentinels that name the master, and real failovers: the service, the command line and the script go on with the new
master without a restart.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from redis import Redis

from pbs_policy.decision.rules import DEFER, DUNNO, OK
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.demo.ports import free_port
from tests.certificates import Certificates
from tests.redis_clients import ALICE, BOB, Clients, kill
from tests.topology.servers import Guard, Watched, secure


@pytest.mark.parametrize("master", ["open to everybody", "with a password"])
def test_all_find_the_master_that_sentinels_name(
    master: str,
    clients: Clients,
    own_redis: Callable[..., PrivateRedis],
    watched: Callable[..., Watched],
    password_file: Callable[[str], str],
) -> None:
    """The password is the master's: Sentinels are asked without one."""
    if master == "with a password":
        places = watched(own_redis("--requirepass", "sesame"), "sentinel auth-pass mymaster sesame")
        clients.point_at(places.url + "/3", redis_password_file=password_file("sesame"))
    else:
        places = watched(own_redis())
        clients.point_at(places.url + "/3")
    clients.assert_all_are_served()
    with Redis(
        unix_socket_path=str(places.master.socket_path),
        password="sesame" if master != "open to everybody" else None,
        db=3,
    ) as third:
        assert third.exists(f"pbs:login:{ALICE}")


@pytest.mark.parametrize("end", ["dead", "mute"])
def test_with_the_first_sentinel_gone_the_others_are_asked(
    end: str,
    clients: Clients,
    own_redis: Callable[..., PrivateRedis],
    watched: Callable[..., Watched],
) -> None:
    places = watched(own_redis())
    clients.point_at(places.url)
    if end == "dead":
        kill(places.sentinels[0])
    else:
        os.kill(places.sentinels[0].pid, signal.SIGSTOP)
    clients.assert_all_are_served()


def test_with_all_sentinels_dead_nobody_is_served_until_one_is_back(
    clients: Clients, own_redis: Callable[..., PrivateRedis], watched: Callable[..., Watched]
) -> None:
    places = watched(own_redis())
    clients.point_at(places.url)
    connected = clients.start()
    for each in places.sentinels:
        kill(each)
    service = clients.start()
    assert service.ask(ALICE) == DEFER
    assert service.waits_to_log("Sentinel 127.0.0.1")
    clients.assert_check_is_unavailable("mymaster")
    clients.assert_not_recorded("no Sentinel of redis+sentinel://")
    assert connected.ask(ALICE) == DUNNO  # whoever has found the master needs no Sentinel
    places.sentinels[2].start()
    clients.assert_recorded()
    assert wait_until(lambda: service.ask(ALICE) == OK)
    assert connected.ask(ALICE) == OK
    assert clients.check().status == 0


def test_a_name_that_no_sentinel_knows_is_named(
    clients: Clients, own_redis: Callable[..., PrivateRedis], watched: Callable[..., Watched]
) -> None:
    places = watched(own_redis())
    clients.point_at(places.url.replace("mymaster", "another"))
    clients.assert_none_is_served("another", of_service="knows no master another")


def test_sentinels_with_a_login_of_their_own_and_tls_lead_to_a_master_with_tls_and_another_login(
    clients: Clients,
    certificates: Certificates,
    own_redis: Callable[..., PrivateRedis],
    watched: Callable[..., Watched],
    password_file: Callable[[str], str],
) -> None:
    guard = Guard(certificates, "of-sentinel")
    port = free_port()
    master = own_redis(*secure(certificates, port), "--requirepass", "of redis", port=port)
    places = watched(master, 'sentinel auth-pass mymaster "of redis"', guard, count=1)
    settings = {**guard.settings(password_file), "redis_password_file": password_file("of redis")}
    clients.point_at(places.url, **settings)
    service = clients.start()
    assert service.ask(ALICE) == DUNNO, service.log()
    clients.assert_recorded()
    assert service.ask(ALICE) == OK
    assert clients.check().status == 0
    for change, reason in [
        ({"sentinel_password_file": password_file("wrong")}, "username-password pair"),
        ({"redis_password_file": password_file("wrong")}, "username-password pair"),
        ({"redis_tls_ca_file": ""}, "certificate verify failed"),
    ]:
        clients.point_at(places.url, **{**settings, **change})
        service = clients.start()
        assert service.ask(ALICE) == DEFER
        assert service.waits_to_log(reason), service.log()
        clients.assert_check_is_unavailable(reason)
        clients.assert_not_recorded(reason)


@pytest.fixture
def pair(own_redis: Callable[..., PrivateRedis]) -> Callable[..., tuple[PrivateRedis, PrivateRedis]]:
    """A master and its replica, with TLS where there are certificates."""

    def start(certificates: Certificates | None) -> tuple[PrivateRedis, PrivateRedis]:
        ports = free_port(), free_port()
        options = [secure(certificates, port) if certificates else [] for port in ports]
        master = own_redis("--repl-diskless-sync-delay", "0", *options[0], port=ports[0])
        replica = own_redis("--replicaof", "127.0.0.1", str(ports[0]), *options[1], port=ports[1])
        with Redis(unix_socket_path=str(replica.socket_path)) as new:
            assert wait_until(lambda: new.info("replication")["master_link_status"] == "up")
        return master, replica

    return start


@pytest.mark.parametrize(
    ("end", "speaks"),
    [("killed", "plainly"), pytest.param("stopped", "plainly", marks=pytest.mark.long), ("killed", "TLS")],
)
def test_after_a_failover_all_go_on_with_the_new_master(
    end: str,
    speaks: str,
    clients: Clients,
    pair: Callable[..., tuple[PrivateRedis, PrivateRedis]],
    watched: Callable[..., Watched],
    certificates: Certificates,
    password_file: Callable[[str], str],
) -> None:
    guard = Guard(certificates, "of-sentinel") if speaks == "TLS" else None
    master, replica = pair(guard and guard.certificates)
    with (
        Redis(unix_socket_path=str(master.socket_path)) as old,
        Redis(unix_socket_path=str(replica.socket_path)) as new,
    ):
        places = watched(master, guard=guard)
        assert wait_until(lambda: {each.knows() for each in places.sentinels} == {(1, 2)})
        clients.point_at(places.url, **(guard.settings(password_file) if guard else {}))
        service = clients.assert_all_are_served()
        assert old.wait(1, 5000) == 1  # the login is with the replica, too
        for each in places.sentinels:
            each.be_quick()
        if end == "killed":
            kill(master)
        else:
            os.kill(master.pid, signal.SIGSTOP)
        assert wait_until(lambda: any(each.names()[1] == replica.port for each in places.sentinels))
        answers = []

        def is_permitted() -> bool:
            answers.append(service.ask(ALICE))
            return answers[-1] == OK

        assert wait_until(is_permitted), service.log()
        assert set(answers) <= {OK, DEFER}, "a login that is known was refused"
        assert wait_until(lambda: {each.names()[1] for each in places.sentinels} == {replica.port})
        clients.assert_recorded(BOB)
        assert new.exists(f"pbs:login:{BOB}")
        assert service.ask(BOB) == OK
        assert clients.check(BOB).status == 0
        if end == "killed":
            return
        # It wakes, takes itself for the master, and has what was revoked meanwhile.
        new.delete(f"pbs:login:{ALICE}", f"pbs:login:{ALICE},alice@example.com")
        os.kill(master.pid, signal.SIGCONT)
        answers.clear()

        def is_demoted() -> bool:
            answers.append(service.ask(ALICE))
            role: list[bytes] = old.execute_command("ROLE")
            return role[0] == b"slave"

        assert wait_until(is_demoted)
        assert set(answers) == {DUNNO}
