"""The whole path: a login in a real Dovecot lets that client address relay through a real Postfix, for the ttl.

The example files themselves are loaded (`pbs_policy.demo.real.installation`).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pbs_policy.demo import story
from pbs_policy.demo.daemons import wait_until
from pbs_policy.demo.dovecot import imap_login, pop3_login
from pbs_policy.demo.postfix import LOCAL_DOMAIN, attempt_relay
from pbs_policy.demo.real import Site
from tests.stores import pause, resume

V4, V6 = story.CLIENTS


def relay(site: Site, client_address: str, sender: str = "alice@example.com") -> int:
    """The reply code to one relay attempt."""
    return attempt_relay(site.postfix.port, client_address, sender, "bob@example.net").code


def local(site: Site, client_address: str) -> int:
    """The reply code to one message for a domain of our own."""
    return attempt_relay(site.postfix.port, client_address, "carol@example.org", f"bob@{LOCAL_DOMAIN}").code


@pytest.mark.parametrize(
    ("example", "chroot"), [("main.cf.inet", False), ("main.cf.unix", False), ("main.cf.unix", True)]
)
def test_the_story_is_true_for_each_example(
    install: Callable[..., Site], example: str, chroot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "TTL", 6)  # two logins and two messages are to come within, on a busy machine
    said: list[str] = []
    site = install(postfix_example=example, chroot=chroot, ttl=f"{story.TTL}s")
    assert story.tell(site, said.append), "\n".join(said) + site.service.log_text() + site.postfix.log_text()


@pytest.mark.parametrize("login", ["pop3", "imap"])
@pytest.mark.parametrize("client_address", [V4, V6, f"::ffff:{V4}"])
def test_either_login_permits_either_address(install: Callable[..., Site], login: str, client_address: str) -> None:
    site = install()
    asks_from = client_address.removeprefix("::ffff:")
    assert relay(site, asks_from) == 554
    port = site.dovecot.pop3_port if login == "pop3" else site.dovecot.imap_port
    assert (pop3_login if login == "pop3" else imap_login)(port, client_address).succeeded
    assert relay(site, asks_from) == 250
    assert relay(site, "198.51.100.99") == 554, "only the address of the login is permitted"
    assert f"action=OK client_address={asks_from} reason=login user=alice@example.com service={login}" in (
        site.service.log_text()
    )


def test_a_wrong_password_permits_nothing(install: Callable[..., Site]) -> None:
    site = install()
    assert not pop3_login(site.dovecot.pop3_port, V4, password="wrong").succeeded
    assert relay(site, V4) == 554


def test_while_redis_is_down_logins_go_on_relaying_waits_and_inbound_mail_is_untouched(
    install: Callable[..., Site],
) -> None:
    site = install()
    site.redis.stop()
    assert pop3_login(site.dovecot.pop3_port, V4).succeeded
    assert "pbs-postlogin: error: this login is not recorded" in site.dovecot.log_text()
    assert relay(site, V4) == 450
    assert local(site, V4) == 250
    site.redis.start()
    assert wait_until(lambda: relay(site, V4) == 554), "Redis came back empty: an answer, and no OK"
    assert pop3_login(site.dovecot.pop3_port, V4).succeeded
    assert relay(site, V4) == 250


def test_while_redis_is_mute_logins_go_on_and_relaying_waits(install: Callable[..., Site]) -> None:
    site = install(patient=False)
    pause(site.redis)
    assert imap_login(site.dovecot.imap_port, V6).succeeded
    assert relay(site, V6) == 450
    assert local(site, V6) == 250
    resume(site.redis)
    # What the script had sent before it gave up is carried out when Redis wakes: late, and for the ttl it says.
    assert wait_until(lambda: relay(site, V6) == 250)


def test_while_the_service_is_down_relaying_waits_and_inbound_mail_is_untouched(install: Callable[..., Site]) -> None:
    site = install()
    assert pop3_login(site.dovecot.pop3_port, V4).succeeded
    site.service.stop()
    assert relay(site, V4) == 450
    assert local(site, V4) == 250
    site.service.start()
    assert relay(site, V4) == 250


def test_inbound_mail_never_asks_the_service(install: Callable[..., Site]) -> None:
    site = install()
    assert local(site, V4) == 250
    assert "action=" not in site.service.log_text()


def test_sender_match_narrows_what_neighbours_behind_the_address_can_do(install: Callable[..., Site]) -> None:
    site = install(sender_match="address")
    assert pop3_login(site.dovecot.pop3_port, V4).succeeded
    assert relay(site, V4) == 250
    assert relay(site, V4, sender="Alice@Example.COM") == 250
    assert relay(site, V4, sender="mallory@example.com") == 554
    assert relay(site, V4, sender="") == 554
