"""Wherever `redis_url` may point to on one host (TCP, a unix socket, TLS), with real servers: the service,
the command line and the post-login script each have a client of Redis of their own, and all three must agree on it.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from redis import Redis

from pbs_policy.decision.rules import DUNNO, OK
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.ports import free_port
from pbs_policy.settings import load
from pbs_policy.store.connect import connect_by
from pbs_policy.store.in_time import TlsConnection
from tests.certificates import Certificate, Certificates
from tests.redis_clients import ALICE, Clients

# --- TLS ----------------------------------------------------------------------------------------------------------


class TlsRedis(NamedTuple):
    server: PrivateRedis
    port: int

    @property
    def url(self) -> str:
        return f"rediss://127.0.0.1:{self.port}"


@pytest.fixture
def tls_redis(own_redis: Callable[..., PrivateRedis], certificates: Certificates) -> Callable[..., TlsRedis]:
    """Start a Redis that speaks TLS on a port of its own, with this certificate."""

    def start(presents: Certificate, *arguments: str, asks_for_ours: bool = False) -> TlsRedis:
        port = free_port()
        server = own_redis(
            *("--tls-port", str(port), "--tls-ca-cert-file", str(certificates.authority)),
            *("--tls-cert-file", str(presents.certificate), "--tls-key-file", str(presents.key)),
            *("--tls-auth-clients", "yes" if asks_for_ours else "no"),
            *arguments,
        )
        return TlsRedis(server, port)

    return start


@pytest.mark.usefixtures("either_loop")
def test_all_reach_redis_over_tls(
    clients: Clients, tls_redis: Callable[..., TlsRedis], certificates: Certificates
) -> None:
    redis = tls_redis(certificates.server)
    clients.point_at(redis.url, redis_tls_ca_file=str(certificates.authority))
    clients.assert_all_are_served()


def test_a_host_name_is_compared_with_the_certificate_and_the_database_is_selected(
    clients: Clients, tls_redis: Callable[..., TlsRedis], certificates: Certificates
) -> None:
    redis = tls_redis(certificates.server)
    clients.point_at(f"rediss://localhost:{redis.port}/3", redis_tls_ca_file=str(certificates.authority))
    clients.assert_all_are_served()
    with Redis(unix_socket_path=str(redis.server.socket_path), db=3) as third:
        assert third.exists(f"pbs:login:{ALICE}")


@pytest.mark.parametrize("key", ["in a file of its own", "in the certificate's file"])
def test_all_present_their_certificate_where_redis_asks_for_one(
    key: str, clients: Clients, tls_redis: Callable[..., TlsRedis], certificates: Certificates
) -> None:
    redis = tls_redis(certificates.server, asks_for_ours=True)
    if key == "in a file of its own":
        files = {
            "redis_tls_cert_file": str(certificates.client.certificate),
            "redis_tls_key_file": str(certificates.client.key),
        }
    else:
        files = {"redis_tls_cert_file": str(certificates.client_in_one_file)}
    clients.point_at(redis.url, redis_tls_ca_file=str(certificates.authority), **files)
    clients.assert_all_are_served()


def test_the_tickets_of_a_tls_session_are_not_taken_for_an_answer_that_nobody_asked_for(
    tls_redis: Callable[..., TlsRedis], certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = TlsConnection.can_read

    def when_they_are_here(connection: TlsConnection, timeout: float = 0) -> bool:
        if connection._sock is not None:
            select.select([connection._sock], [], [], 0.2)
        return bool(at_once(connection, timeout))

    monkeypatch.setattr(TlsConnection, "can_read", when_they_are_here)
    overrides = [f"redis_url={tls_redis(certificates.server).url}", f"redis_tls_ca_file={certificates.authority}"]
    settings, _ = load(Path("/dev/null"), overrides=overrides)
    with connect_by(settings, even_replica=True) as redis:
        assert redis.ask([(b"EXISTS", b"pbs:absent")]) == [0]


@pytest.mark.usefixtures("either_loop")
@pytest.mark.parametrize(
    ("presents", "host", "trusts", "reason", "of_service"),
    [
        # TLS 1.3 lets a client in first and complains later: some hear why, some only that the connection is closed.
        ("server", "127.0.0.1", "ours", "", "certificate required"),
        ("stranger", "127.0.0.1", "ours", "certificate verify failed: unable to get local issuer certificate", ""),
        ("server", "127.0.0.1", "the system's", "certificate verify failed: ", ""),
        ("other_host", "127.0.0.1", "ours", "certificate is not valid for '127.0.0.1'", ""),
        ("other_host", "localhost", "ours", "certificate is not valid for 'localhost'", ""),
    ],
    ids=["ours is asked for", "an unknown authority", "no ca_file", "another address", "another host's"],
)
def test_nobody_is_served_without_the_right_certificate(
    presents: str, host: str, trusts: str, reason: str, of_service: str,
    clients: Clients, tls_redis: Callable[..., TlsRedis], certificates: Certificates,
) -> None:  # fmt: skip
    redis = tls_redis(getattr(certificates, presents), asks_for_ours=bool(of_service))
    files = {"redis_tls_ca_file": str(certificates.authority)} if trusts == "ours" else {}
    clients.point_at(f"rediss://{host}:{redis.port}", **files)
    clients.assert_none_is_served(reason, of_service=of_service)


def test_one_who_speaks_tls_and_one_who_does_not_are_unavailable_to_each_other(
    clients: Clients, tls_redis: Callable[..., TlsRedis], certificates: Certificates
) -> None:
    redis = tls_redis(certificates.server)
    clients.have_patience = False  # it is mute to each
    clients.point_at(f"rediss://127.0.0.1:{redis.server.port}")
    clients.assert_none_is_served("", of_service="Redis is unavailable at rediss://")  # it waits for a line's end
    clients.point_at(f"redis://127.0.0.1:{redis.port}")
    clients.assert_none_is_served("onnection", of_service="Redis is unavailable at redis://")


def test_a_server_that_never_shakes_hands_costs_each_its_time_and_no_more(clients: Clients) -> None:
    clients.have_patience = False
    with socket.create_server(("127.0.0.1", 0)) as mute:
        clients.point_at(f"rediss://127.0.0.1:{mute.getsockname()[1]}")
        clients.assert_none_is_served(" within 0.", of_service="no answer within 0.5 s")  # each says its own time


@pytest.mark.parametrize("setting", ["redis_tls_ca_file", "redis_tls_cert_file"])
def test_a_file_for_tls_that_is_not_there_is_named_by_the_script(
    setting: str, clients: Clients, tls_redis: Callable[..., TlsRedis], certificates: Certificates
) -> None:
    clients.point_at(tls_redis(certificates.server).url, **{setting: "/nonexistent.pem"})
    clients.assert_not_recorded("No such file or directory")


# --- passwords, ACL users and database numbers --------------------------------------------------------------------

# As the README has it, with SELECT for a database other than 0.
SERVICE_MAY = ("on", ">of the service", "%R~pbs:*", "-@all", "+get", "+mget", "+pttl", "+select")
SCRIPT_MAY = ("on", ">of the script", "~pbs:*", "-@all", "+set", "+select")


@dataclass(frozen=True)
class Locked:
    """A Redis that lets nobody in without a password, and how to reach it."""

    server: PrivateRedis
    url: str
    settings: dict[str, str]


@pytest.fixture(params=["tcp", "unix", "tls"])
def locked(
    request: pytest.FixtureRequest, tls_redis: Callable[..., TlsRedis], certificates: Certificates
) -> Callable[..., Locked]:
    """Start a Redis with further arguments; its database 3 is meant."""

    def start(*arguments: str) -> Locked:
        server, port = tls_redis(certificates.server, *arguments)
        url = {
            "tcp": f"redis://127.0.0.1:{server.port}/3",
            "unix": f"unix://{server.socket_path}?db=3",
            "tls": f"rediss://127.0.0.1:{port}/3",
        }[request.param]
        trusted = {"redis_tls_ca_file": str(certificates.authority)} if request.param == "tls" else {}
        return Locked(server, url, trusted)

    return start


def test_a_password_opens_redis_to_all_and_a_wrong_one_to_none(
    clients: Clients, locked: Callable[..., Locked], password_file: Callable[[str], str]
) -> None:
    redis = locked("--requirepass", "open sesame")
    clients.point_at(redis.url, redis_password_file=password_file("open sesame"), **redis.settings)
    clients.assert_all_are_served()
    with Redis(unix_socket_path=str(redis.server.socket_path), password="open sesame", db=3) as third:
        assert third.exists(f"pbs:login:{ALICE}")
    clients.point_at(redis.url, redis_password_file=password_file("wrong"), **redis.settings)
    clients.assert_none_is_served("username-password pair")
    clients.point_at(redis.url, **redis.settings)
    clients.assert_check_is_unavailable("uthentication required")
    clients.assert_not_recorded("uthentication required")


def test_users_who_may_do_only_what_they_must_are_enough(
    clients: Clients, locked: Callable[..., Locked], password_file: Callable[[str], str]
) -> None:
    redis = locked("--user", "service", *SERVICE_MAY, "--user", "script", *SCRIPT_MAY)
    by_service = {"redis_user": "service", "redis_password_file": password_file("of the service"), **redis.settings}
    by_script = {"redis_user": "script", "redis_password_file": password_file("of the script"), **redis.settings}
    clients.point_at(redis.url, **by_service)
    service = clients.start()
    assert service.ask(ALICE) == DUNNO
    clients.assert_not_recorded("NOPERM")
    clients.point_at(redis.url, **by_script)
    clients.assert_recorded()
    clients.assert_check_is_unavailable("permission")
    clients.point_at(redis.url, **by_service)
    assert service.ask(ALICE) == OK
    assert clients.check().status == 0
    clients.point_at(redis.url, **{**by_service, "redis_user": "nobody"})
    clients.assert_check_is_unavailable("username-password pair")
    clients.assert_not_recorded("username-password pair")
