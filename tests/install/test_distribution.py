"""What the packages of Debian made, both installers on it, and then a login permits a relay attempt: no other step.

The real Postfix, Dovecot and Redis run, privately. What is removed again leaves every byte as it was.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pbs_policy.demo.daemons import PrivateDaemon, PrivateRedis, wait_until
from pbs_policy.demo.dovecot import imap_login, pop3_login
from pbs_policy.demo.ports import free_port
from pbs_policy.demo.postfix import LOCAL_DOMAIN, attempt_relay
from pbs_policy.demo.service import PrivateService
from tests.conftest import need
from tests.install.distribution import DistributionDovecot, DistributionPostfix
from tests.install.support import HOOK, POSTFIX, Outcome, run, snapshot

CLIENT, OTHER = "192.0.2.7", "192.0.2.8"


@dataclass
class Place:
    """The parts of a mail host. Nothing runs yet but Redis."""

    top: Path
    redis: PrivateRedis
    postfix: DistributionPostfix
    dovecot: DistributionDovecot
    service: PrivateService

    def hook(self, *options: str) -> Outcome:
        """`pbs-policy install-hook`, with the places of this host."""
        return run(
            HOOK,
            *("--dovecot-config", str(self.dovecot.configuration), "--lib-dir", f"{self.top}/lib/pbs-policy"),
            *("--record-dir", f"{self.top}/installed", "--user", "nobody", *options),
            file=self.service.settings_file,
        )

    def mail(self, *options: str) -> Outcome:
        """`pbs-policy install-postfix`, with the places of this host."""
        return run(
            POSTFIX,
            *("--postfix-config", str(self.postfix.configuration), "--record-dir", f"{self.top}/installed"),
            *("--user", "nobody", *options),
            file=self.service.settings_file,
        )

    def let_root_serve(self) -> None:
        """The socket's folder belongs to the user of the service; here root runs it, and makes none there."""
        folder = self.postfix.queue_directory / "pbs-policy"
        if folder.exists():
            shutil.chown(folder, "root")

    def relay(self, client_address: str, recipient: str = "bob@example.net") -> int:
        """The reply code to one RCPT."""
        return attempt_relay(self.postfix.port, client_address, "alice@example.com", recipient).code


@contextmanager
def running(*daemons: PrivateDaemon) -> Iterator[None]:
    """The daemons run, and are stopped after it; unlike with themselves, what they have on disk stays."""
    with ExitStack() as stack:
        for daemon in daemons:
            stack.callback(daemon.stop)
            daemon.start()
        yield


@pytest.fixture(params=["inet", "unix"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    need("redis", "postfix", "dovecot")
    with tempfile.TemporaryDirectory(prefix="pbs-") as name:
        top = Path(name)
        top.chmod(0o755)
        redis = PrivateRedis(top / "redis", port=None)
        postfix, dovecot = DistributionPostfix(top / "postfix"), DistributionDovecot(top / "dovecot")
        listen = f"inet:127.0.0.1:{free_port()}"
        if request.param == "unix":
            listen = f"unix:{postfix.queue_directory}/pbs-policy/policy"
        settings = {"redis_url": redis.url, "ttl": "5m", "listen": listen}
        service = PrivateService(top, settings)
        try:
            with redis:
                yield Place(top, redis, postfix, dovecot, service)
        finally:
            for daemon in (postfix, dovecot, service):
                daemon.close()


def test_both_installed_on_what_the_packages_made_a_login_permits_relaying(place: Place) -> None:
    etc = place.postfix.configuration, place.dovecot.configuration
    before = snapshot(*etc)
    for install in (place.hook, place.mail):
        untouched = snapshot(place.top, place.postfix.place, place.dovecot.place)
        assert install().status == 0
        assert snapshot(place.top, place.postfix.place, place.dovecot.place) == untouched, "--dry-run is the default"
        done = install("--apply")
        assert done.status == 0, done.output
        assert "Now: " in done.output
        assert "Nothing to do" in install("--apply").output
    place.let_root_serve()
    with running(place.service, place.dovecot, place.postfix):
        assert place.relay(CLIENT) in (454, 554)
        assert pop3_login(place.dovecot.pop3_port, CLIENT).succeeded
        assert place.relay(CLIENT) == 250, place.service.log_text() + place.dovecot.log_text()
        assert imap_login(place.dovecot.imap_port, OTHER).succeeded
        assert place.relay(OTHER) == 250
        assert place.relay("192.0.2.9") in (454, 554)
        assert place.relay("192.0.2.9", f"carol@{LOCAL_DOMAIN}") == 250
        place.service.stop()
        assert place.relay(CLIENT) in (450, 454)
        assert place.relay("192.0.2.9", f"carol@{LOCAL_DOMAIN}") == 250
    for install in (place.mail, place.hook):
        shown = install("--remove")
        assert shown.status == 0
        assert "Nothing was changed" in shown.output
        assert install("--remove", "--apply").status == 0
        assert "Nothing to remove" in install("--remove", "--apply").output
    assert snapshot(*etc) == before
    assert not (place.postfix.queue_directory / "pbs-policy").exists()
    assert not (place.top / "lib").exists()
    assert not (place.top / "installed").exists()


def test_the_script_stays_until_dovecot_has_forgotten_it(place: Place) -> None:
    before = snapshot(place.dovecot.configuration)
    assert place.hook("--apply").status == 0
    script = place.top / "lib/pbs-policy/pbs-postlogin"
    dovecot = place.dovecot
    with running(dovecot):
        first = place.hook("--remove", "--apply")
        assert first.status == 1
        assert "The script stays for now" in first.output
        assert "doveadm reload" in first.output
        assert snapshot(dovecot.configuration) == before
        assert pop3_login(dovecot.pop3_port, CLIENT).succeeded
        os.kill(dovecot.pid, signal.SIGHUP)  # what doveadm reload does
        assert wait_until(lambda: place.hook("--remove", "--apply").status == 0), (
            place.hook("--remove", "--apply").output + dovecot.log_text()
        )
        assert not script.exists()
        assert pop3_login(dovecot.pop3_port, CLIENT).succeeded
    assert not (place.top / "installed").exists()


def test_the_last_login_plugin_installed_permits_relaying(place: Place) -> None:
    before = snapshot(place.dovecot.configuration)
    done = place.hook("--last-login", "--apply")
    assert done.status == 0, done.output
    assert "Nothing to do" in place.hook("--last-login", "--apply").output
    assert place.mail("--apply").status == 0
    place.let_root_serve()
    with running(place.service, place.dovecot, place.postfix):
        assert place.relay(CLIENT) in (454, 554)
        assert pop3_login(place.dovecot.pop3_port, CLIENT).succeeded
        assert wait_until(lambda: place.relay(CLIENT) == 250), place.dovecot.log_text()
        assert place.hook("--remove", "--apply").status == 0
    assert snapshot(place.dovecot.configuration) == before
