"""Wherever `redis_url` may point to (TCP, a unix socket, TLS, by way of Sentinel), with real servers: the service,
the command line and the post-login script each have a client of Redis of their own, and all three must agree on it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from redis import Redis, RedisError

from pbs_policy.cli import run
from pbs_policy.demo.daemons import PrivateDaemon, PrivateRedis, find_program, wait_until
from pbs_policy.demo.ports import free_port
from pbs_policy.policy import DEFER, DUNNO, OK
from tests.conftest import need
from tests.service import Service

SCRIPT = Path(__file__).parent.parent / "dovecot-hooks" / "pbs-postlogin"
ALICE = "192.0.2.7"
BOB = "198.51.100.8"

LONGEST_LOGIN = 1.5
"""Seconds. 0.5 s are meant, and the rest is the start of two processes on a noisy machine."""


class Said(NamedTuple):
    """How a process ended, and what it said."""

    status: int
    out: str
    err: str


class Clients:
    """The three that talk to Redis, on one settings file each test: the service, the command line, the script."""

    def __init__(
        self, directory: Path, start_service: Callable[..., Service], capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._directory = directory
        self._start_service = start_service
        self._capsys = capsys
        self._settings: dict[str, str] = {}

    def point_at(self, url: str, **settings: str) -> None:
        """From now on Redis is there."""
        self._settings = {"redis_url": url, **settings}

    def start(self) -> Service:
        """A service with these settings."""
        return self._start_service(**self._settings)

    def check(self, client_address: str = ALICE) -> Said:
        """`pbs-policy check`, in this process: a connection that it leaves open is a warning, and so a failure."""
        self._capsys.readouterr()
        status = run(["-c", str(self._file()), "check", client_address])
        return Said(status, *self._capsys.readouterr())

    def log_in(self, client_address: str = ALICE) -> Said:
        """A login by way of the script, whose session says that it went on."""
        started = time.monotonic()
        result = subprocess.run(
            [SCRIPT, "-c", self._file(), "pop3", "/bin/echo", "went on"],
            env={"IP": client_address, "USER": "alice@example.com"},
            capture_output=True,
            check=False,
            text=True,
        )
        assert time.monotonic() - started < LONGEST_LOGIN
        assert (result.returncode, result.stdout) == (0, "went on\n"), result.stderr
        return Said(result.returncode, result.stdout, result.stderr)

    def assert_recorded(self, client_address: str = ALICE) -> None:
        """The script records a login, and says nothing."""
        assert self.log_in(client_address).err == ""

    def assert_not_recorded(self, reason: str) -> None:
        """The script says in one line why it did not record, and the session goes on."""
        line = self.log_in().err
        assert line.startswith("pbs-postlogin: error: this login is not recorded: ")
        assert line.count("\n") == 1
        assert reason in line

    def assert_check_is_unavailable(self, reason: str) -> None:
        """The command line ends with 69, and says why."""
        status, out, err = self.check()
        assert status == os.EX_UNAVAILABLE
        assert reason in out + err
        assert "Traceback" not in err

    def assert_all_are_served(self) -> Service:
        """A login that the script records is OK to the service and to the command line; another address is not."""
        service = self.start()
        assert service.ask(ALICE) == DUNNO, service.log()
        self.assert_recorded()
        assert service.ask(ALICE) == OK, service.log()
        assert service.ask(BOB) == DUNNO
        assert self.check(ALICE).status == 0
        assert self.check(BOB).status == 1
        assert "error: " not in service.log()
        return service

    def assert_none_is_served(self, reason: str, *, of_service: str = "") -> None:
        """Unavailable to all three, each naming the reason."""
        service = self.start()
        assert service.ask(ALICE) == DEFER
        assert service.waits_to_log(of_service or reason), service.log()
        assert "Traceback" not in service.log()
        assert "connected to Redis" not in service.log()
        self.assert_check_is_unavailable(reason)
        self.assert_not_recorded(reason)

    def _file(self) -> Path:
        file = self._directory / "pbs-policy.conf"
        file.write_text("".join(f"{name} = {value}\n" for name, value in self._settings.items()))
        return file


@pytest.fixture
def clients(
    tmp_path: Path,
    start_service: Callable[..., Service],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Clients:
    for name in [name for name in os.environ if name.startswith(("PBS_", "SSL_CERT_"))]:
        monkeypatch.delenv(name)
    return Clients(tmp_path, start_service, capsys)


# --- TLS ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, in PEM."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        own = self._paths(name)
        self._openssl("req", "-x509", *self._request(own, name), "-days", "2")
        self._own = own

    @property
    def certificate(self) -> Path:
        """What those who trust this authority are given."""
        return self._own.certificate

    def certify(self, name: str, subject_alternative: str) -> Certificate:
        """A certificate of this authority for `subject_alternative`, such as `DNS:localhost`."""
        issued = self._paths(name)
        request, extensions = issued.certificate.with_suffix(".csr"), issued.certificate.with_suffix(".ext")
        extensions.write_text(f"subjectAltName = {subject_alternative}\nbasicConstraints = critical, CA:false\n")
        self._openssl("req", *self._request(issued, name)[:-2], "-out", request)
        self._openssl(
            *("x509", "-req", "-in", request, "-days", "2", "-extfile", extensions, "-out", issued.certificate),
            *("-CA", self._own.certificate, "-CAkey", self._own.key, "-set_serial", str(time.monotonic_ns())),
        )
        return issued

    def _paths(self, name: str) -> Certificate:
        return Certificate(self._directory / f"{name}.pem", self._directory / f"{name}.key")

    @staticmethod
    def _request(to: Certificate, name: str) -> tuple[str | Path, ...]:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        return (*curve, "-keyout", to.key, "-subj", f"/CN={name}", "-out", to.certificate)

    @staticmethod
    def _openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@dataclass(frozen=True)
class Certificates:
    """All that the tests of TLS present, or trust."""

    authority: Path
    server: Certificate
    other_host: Certificate
    stranger: Certificate
    client: Certificate
    client_in_one_file: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    need("openssl")
    directory = tmp_path_factory.mktemp("certificates")
    ours, unknown = Authority(directory, "authority"), Authority(directory, "unknown-authority")
    here = "DNS:localhost, IP:127.0.0.1"
    client = ours.certify("client", "DNS:mail.example.com")
    both = directory / "client-both.pem"
    both.write_bytes(client.certificate.read_bytes() + client.key.read_bytes())
    return Certificates(
        ours.certificate,
        ours.certify("server", here),
        ours.certify("other-host", "DNS:redis.example.com, IP:192.0.2.1"),
        unknown.certify("stranger", here),
        client,
        both,
    )


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


@pytest.mark.usefixtures("either_loop")
def test_without_the_certificate_that_redis_asks_for_nobody_is_served(
    clients: Clients, tls_redis: Callable[..., TlsRedis], certificates: Certificates
) -> None:
    redis = tls_redis(certificates.server, asks_for_ours=True)
    clients.point_at(redis.url, redis_tls_ca_file=str(certificates.authority))
    # TLS 1.3 lets a client in first and complains later: some hear why, some only that the connection is closed.
    clients.assert_none_is_served("", of_service="certificate required")


@pytest.mark.usefixtures("either_loop")
def test_a_server_of_an_unknown_authority_is_refused_by_all(
    clients: Clients, tls_redis: Callable[..., TlsRedis], certificates: Certificates
) -> None:
    redis = tls_redis(certificates.stranger)
    clients.point_at(redis.url, redis_tls_ca_file=str(certificates.authority))
    clients.assert_none_is_served("certificate verify failed: unable to get local issuer certificate")


def test_without_a_ca_file_the_systems_authorities_are_trusted_and_ours_is_none(
    clients: Clients, tls_redis: Callable[..., TlsRedis], certificates: Certificates
) -> None:
    clients.point_at(tls_redis(certificates.server).url)
    clients.assert_none_is_served("certificate verify failed: ")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_with_another_hosts_certificate_is_refused_by_all(
    host: str, clients: Clients, tls_redis: Callable[..., TlsRedis], certificates: Certificates
) -> None:
    redis = tls_redis(certificates.other_host)
    clients.point_at(f"rediss://{host}:{redis.port}", redis_tls_ca_file=str(certificates.authority))
    clients.assert_none_is_served(f"certificate is not valid for '{host}'")


def test_one_who_speaks_tls_and_one_who_does_not_are_unavailable_to_each_other(
    clients: Clients, tls_redis: Callable[..., TlsRedis], certificates: Certificates
) -> None:
    redis = tls_redis(certificates.server)
    clients.point_at(f"rediss://127.0.0.1:{redis.server.port}")
    clients.assert_none_is_served("", of_service="Redis is unavailable at rediss://")  # it waits for a line's end
    clients.point_at(f"redis://127.0.0.1:{redis.port}")
    clients.assert_none_is_served("onnection", of_service="Redis is unavailable at redis://")


def test_a_server_that_never_shakes_hands_costs_each_its_time_and_no_more(clients: Clients) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        clients.point_at(f"rediss://127.0.0.1:{mute.getsockname()[1]}")
        started = time.monotonic()
        clients.assert_none_is_served("", of_service="no answer within 0.5 s")
        assert time.monotonic() - started < 5  # three times 0.5 s, and the start of processes


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
        return Locked(server, url, {"redis_tls_ca_file": str(certificates.authority)})

    return start


@pytest.fixture
def password_file(tmp_path: Path) -> Callable[[str], str]:
    """Write a password file, and return its path."""

    def write(password: str) -> str:
        file = tmp_path / f"password-{time.monotonic_ns()}"
        file.write_text(password + "\n")
        return str(file)

    return write


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


# --- Sentinel -----------------------------------------------------------------------------------------------------


class Sentinel(PrivateDaemon):
    """One process that watches the master `mymaster` at a port."""

    def __init__(self, directory: Path, master_port: int, settings: str) -> None:
        super().__init__("sentinel", directory)
        self.port = free_port()
        self._settings_file = directory / "sentinel.conf"
        self._settings_file.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor mymaster 127.0.0.1 {master_port} 2\n"
            "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 2000\n"
            f"{settings}\n"
        )

    def command(self) -> list[str]:
        program = find_program("redis-server", "valkey-server")
        assert program is not None
        return [program, str(self._settings_file), "--sentinel"]

    def is_ready(self) -> bool:
        with contextlib.suppress(RedisError), self.open() as sentinel:
            return bool(sentinel.ping())
        return False

    def open(self) -> Redis:
        """A client of this Sentinel."""
        return Redis(host="127.0.0.1", port=self.port, socket_timeout=2, decode_responses=True, protocol=2)

    def names(self) -> int:
        """The port of the master, as this Sentinel has it."""
        with self.open() as sentinel:
            found = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
            return int(found[1])

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

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{each.port}' for each in self.sentinels)}/mymaster"


@pytest.fixture
def watched(own_redis: Callable[..., PrivateRedis]) -> Iterator[Callable[..., Watched]]:
    """Have a master watched by three Sentinels."""
    need("redis")
    with ExitStack() as stack:

        def watch(master: PrivateRedis, settings: str = "") -> Watched:
            sentinels = []
            for _ in range(3):
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-"))
                sentinels.append(stack.enter_context(Sentinel(Path(directory), master.port, settings)))
            return Watched(master, sentinels)

        yield watch


def kill(daemon: PrivateDaemon) -> None:
    """Kill it as a crash does, and wait until it is gone."""
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.stop()


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
    assert wait_until(lambda: service.ask(ALICE) == OK, seconds=3)
    assert connected.ask(ALICE) == OK
    assert clients.check().status == 0


def test_a_name_that_no_sentinel_knows_is_named(
    clients: Clients, own_redis: Callable[..., PrivateRedis], watched: Callable[..., Watched]
) -> None:
    places = watched(own_redis())
    clients.point_at(places.url.replace("mymaster", "another"))
    clients.assert_none_is_served("another", of_service="knows no master another")


def test_after_a_failover_all_go_on_with_the_new_master(
    clients: Clients,
    own_redis: Callable[..., PrivateRedis],
    watched: Callable[..., Watched],
) -> None:
    master = own_redis("--repl-diskless-sync-delay", "0")
    replica = own_redis("--replicaof", "127.0.0.1", str(master.port))
    with Redis(host="127.0.0.1", port=master.port) as old, Redis(host="127.0.0.1", port=replica.port) as new:
        assert wait_until(lambda: new.info("replication")["master_link_status"] == "up")
        places = watched(master)
        assert wait_until(lambda: {each.knows() for each in places.sentinels} == {(1, 2)})
        clients.point_at(places.url)
        service = clients.assert_all_are_served()
        assert old.wait(1, 5000) == 1  # the login is with the replica, too
        kill(master)
        assert wait_until(lambda: any(each.names() == replica.port for each in places.sentinels))
        answers = []

        def is_permitted() -> bool:
            answers.append(service.ask(ALICE))
            return answers[-1] == OK

        assert wait_until(is_permitted, seconds=3), service.log()
        assert set(answers) <= {OK, DEFER}, "a login that is known was refused"
        assert wait_until(lambda: {each.names() for each in places.sentinels} == {replica.port})
        clients.assert_recorded(BOB)
        assert new.exists(f"pbs:login:{BOB}")
        assert service.ask(BOB) == OK
        assert clients.check(BOB).status == 0
