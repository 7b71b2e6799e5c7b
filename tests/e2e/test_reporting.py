"""Dovecot's reports where something is amiss: a recorder that is away or hangs costs no login anything; and a proxy
that leaves passwords to its backend reports every one as right.
"""

from __future__ import annotations

import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.demo.dovecot import USER, PrivateDovecot, dovecot_version, imap_login, pop3_login
from pbs_policy.demo.ports import free_port
from pbs_policy.shipped import shipped
from pbs_policy.store.redis_url import RedisUrl
from tests.conftest import need
from tests.recorder import PrivateRecorder
from tests.stores import connect, pause, resume
from tests.tree_programs import TREE, dovecot

ADDRESS, STRANGER = "192.0.2.7", "192.0.2.8"
LOG_IN = {"pop3": pop3_login, "imap": imap_login}

# What is said of every user: that the login goes on, and where nobody is to check the password here.
_FIELDS = {
    (2, 3): "  override_fields = proxy=y host=127.0.0.1 port={port}",
    (2, 4): "  fields {{\n    proxy = y\n    host = 127.0.0.1\n    port = {port}\n  }}",
}
_BLIND = {
    (2, 3): "passdb {{\n  driver = static\n  args = nopassword=y\n{fields}\n}}",
    (2, 4): "passdb static {{\n{fields}\n}}",
}


class Proxy(PrivateDovecot):
    """A Dovecot that has every login go on to another one. `checks`: it asks for the password itself."""

    def __init__(self, directory: Path, hook: str, program: list[str], port: int, *, checks: bool) -> None:
        super().__init__(directory, hook_config=hook, program=program)
        self._its_version, self._port, self._checks = dovecot_version(program), port, checks

    def command(self) -> list[str]:
        line = super().command()
        fields = _FIELDS[self._its_version].format(port=self._port)
        blind = _BLIND[self._its_version].format(fields=fields).replace("proxy = y", "proxy = y\n    nopassword = y")
        file = self.place / "dovecot.conf"

        def instead(found: re.Match[str]) -> str:
            return f"{found[1]}{fields}\n}}" if self._checks else blind

        file.write_text(re.sub(r"(?ms)^(passdb [^{]*\{.*?)^\}", instead, file.read_text(), count=1))
        return line


class Site:
    """Dovecots that report to one recorder, which writes into one Redis."""

    def __init__(self, stack: ExitStack, program: list[str], **settings: str) -> None:
        self.stack, self.program = stack, program
        self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-")))
        self.redis = stack.enter_context(PrivateRedis(self.directory / "redis", port=None))
        self.port = free_port()
        listens = {"reports_listen": f"inet:127.0.0.1:{self.port}", "reports_check_passwords": "yes"}
        settings = {"redis_url": self.redis.url, "renew_sessions": "0", **listens, **settings}
        self.recorder = stack.enter_context(PrivateRecorder(self.directory, settings))

    @property
    def hook(self) -> str:
        """The shipped configuration, which reports to this recorder."""
        version = "2.3" if dovecot_version(self.program) < (2, 4) else "2.4"
        text = shipped(f"dovecot-hooks/report-{version}.conf").read_text()
        return text.replace("127.0.0.1:10041", f"127.0.0.1:{self.port}")

    def start(self, *, reports: bool = True, header: str = "") -> PrivateDovecot:
        """A Dovecot of its own users. `header` is the secret that it has."""
        directory = self.directory / f"dovecot-{time.monotonic_ns()}"
        hook = self.hook if reports else ""
        server = PrivateDovecot(directory, hook_config=hook, program=self.program)
        if header:
            secret = server.place / "pbs-policy-secret.conf.ext"
            secret.touch(0o600)
            secret.write_text(f"auth_policy_server_api_header = {header}\n")
        return self.stack.enter_context(server)

    def start_proxy(self, backend: PrivateDovecot, protocol: str, *, checks: bool, reports: bool = True) -> Proxy:
        """A proxy in front of it."""
        port = backend.pop3_port if protocol == "pop3" else backend.imap_port
        hook = self.hook if reports else ""
        return self.stack.enter_context(Proxy(self.directory / "proxy", hook, self.program, port, checks=checks))

    def is_recorded(self, address: str) -> bool:
        """Whether a login from there is in the table, now or in a while."""
        with connect(RedisUrl.parse(self.redis.url)) as client:
            return wait_until(lambda: bool(client.exists(f"pbs:login:{address},{USER}")), seconds=10)

    def is_left_out(self, address: str) -> bool:
        """Whether the recorder says, now or in a while, that a proxied login from there is not recorded; and it is
        not."""
        said = f"it goes on to another host, from {address}: record_proxied_logins = no"
        with connect(RedisUrl.parse(self.redis.url)) as client:
            told = wait_until(lambda: said in self.recorder.log_text(), seconds=10)
            return told and not client.exists(f"pbs:login:{address}")


@pytest.fixture(params=["installed", pytest.param("of the tree", marks=pytest.mark.tree)])
def site(request: pytest.FixtureRequest) -> Iterator[Callable[..., Site]]:
    """A recorder with these settings."""
    need("redis", "dovecot")
    if request.param == "of the tree" and not TREE:
        pytest.skip("no Debian tree with Dovecot 2.4 given: PBS_TREE=DIR, made as tests/trees/README.md says")
    program = dovecot() if request.param == "of the tree" else []
    with ExitStack() as stack:
        yield lambda **settings: Site(stack, program, **settings)


@pytest.mark.parametrize("protocol", LOG_IN)
def test_a_proxy_that_checks_passwords_reports_its_clients_own_addresses(
    site: Callable[..., Site], protocol: str
) -> None:
    here = site(record_proxied_logins="yes")
    backend = here.start(reports=False)
    proxy = here.start_proxy(backend, protocol, checks=True)
    port = proxy.pop3_port if protocol == "pop3" else proxy.imap_port
    assert not LOG_IN[protocol](port, STRANGER, password="no").succeeded
    assert LOG_IN[protocol](port, ADDRESS).succeeded
    assert here.is_recorded(ADDRESS)
    with connect(RedisUrl.parse(here.redis.url)) as client:
        assert not client.exists(f"pbs:login:{STRANGER}")


def test_without_being_told_so_no_login_of_a_proxy_is_recorded(site: Callable[..., Site]) -> None:
    here = site()
    proxy = here.start_proxy(here.start(reports=False), "pop3", checks=True)
    assert pop3_login(proxy.pop3_port, ADDRESS).succeeded
    assert here.is_left_out(ADDRESS)


def test_a_proxy_that_does_not_check_passwords_reports_a_wrong_one_as_right_and_it_is_not_recorded(
    site: Callable[..., Site],
) -> None:
    here = site()
    proxy = here.start_proxy(here.start(reports=False), "pop3", checks=False)
    assert not pop3_login(proxy.pop3_port, STRANGER, password="no").succeeded
    assert here.is_left_out(STRANGER)


def test_what_such_a_proxy_would_do_where_the_recorder_is_told_that_it_checks_them(site: Callable[..., Site]) -> None:
    here = site(record_proxied_logins="yes")
    proxy = here.start_proxy(here.start(reports=False), "pop3", checks=False)
    assert not pop3_login(proxy.pop3_port, STRANGER, password="no").succeeded
    assert here.is_recorded(STRANGER), "the open relay that the installer refuses, and doctor calls wrong"


@pytest.mark.parametrize("protocol", LOG_IN)
def test_behind_such_a_proxy_the_backend_reports_the_clients_own_address(
    site: Callable[..., Site], protocol: str
) -> None:
    here = site()
    proxy = here.start_proxy(here.start(), protocol, checks=False, reports=False)
    port = proxy.pop3_port if protocol == "pop3" else proxy.imap_port
    assert not LOG_IN[protocol](port, STRANGER, password="no").succeeded
    assert LOG_IN[protocol](port, ADDRESS).succeeded
    assert here.is_recorded(ADDRESS)
    with connect(RedisUrl.parse(here.redis.url)) as client:
        assert not client.exists(f"pbs:login:{STRANGER}")


@pytest.mark.parametrize("header", ["Authorization: Bearer 3f0c1b7e5a9d", "3f0c1b7e5a9d"])
def test_only_the_dovecot_that_has_the_secret_can_report(
    site: Callable[..., Site], tmp_path: Path, header: str
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{header}\n")
    here = site(reports_secret_file=str(file))
    refused = "a report is refused: not with the header that reports_secret_file names"
    for stranger in (here.start(), here.start(header=header.replace("3", "4"))):
        assert pop3_login(stranger.pop3_port, STRANGER).succeeded
        assert wait_until(lambda: refused in here.recorder.log_text(), seconds=10)
    assert pop3_login(here.start(header=header).pop3_port, ADDRESS).succeeded
    assert here.is_recorded(ADDRESS)
    with connect(RedisUrl.parse(here.redis.url)) as client:
        assert not client.exists(f"pbs:login:{STRANGER}")
    assert header.split()[-1] not in here.recorder.log_text()


@contextmanager
def killed(here: Site) -> Iterator[None]:
    here.recorder.stop()
    yield


@contextmanager
def stopped(here: Site) -> Iterator[None]:
    pause(here.recorder)
    try:
        yield
    finally:
        resume(here.recorder)


@contextmanager
def hanging(here: Site) -> Iterator[None]:
    here.recorder.stop()
    with socket.create_server(("127.0.0.1", here.port), backlog=100):  # it never answers
        yield


SLOWER = 0.2
"""Seconds."""


@pytest.mark.parametrize("fault", [killed, stopped, hanging])
def test_a_recorder_that_is_away_or_hangs_refuses_no_login_and_delays_none(
    site: Callable[..., Site], fault: Callable[[Site], AbstractContextManager[None]]
) -> None:
    here = site()
    server = here.start()
    usual = max(_log_in(server) for _ in range(20))
    slowest = []
    for _ in range(3):  # a busy machine may be slow for a while, and is not each time
        with fault(here):
            slowest.append(max(_log_in(server) for _ in range(40)))
        if slowest[-1] <= usual + SLOWER:
            return
        if fault is not stopped:
            here.recorder.start()
    pytest.fail(f"a login took {usual:.3f} s at the most, and {slowest} s with this recorder")


def _log_in(server: PrivateDovecot) -> float:
    began = time.monotonic()
    assert pop3_login(server.pop3_port, ADDRESS).succeeded
    return time.monotonic() - began
