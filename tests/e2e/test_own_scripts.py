"""A site's own post-login script beside ours, in a real Dovecot: the last word is ours. And whom a real Postfix
believes about a client's address.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from pbs_policy.demo.conversation import Conversation
from pbs_policy.demo.daemons import wait_until
from pbs_policy.demo.dovecot import PrivateDovecot, imap_login, pop3_login
from pbs_policy.demo.postfix import PrivatePostfix
from pbs_policy.demo.real import Site
from pbs_policy.doctor import Doctor
from pbs_policy.settings import load
from pbs_policy.shipped import shipped

ADDRESS, STRANGER = "192.0.2.7", "192.0.2.8"


Beside = Callable[..., PrivateDovecot]


@pytest.fixture
def site(install: Callable[..., Site]) -> Site:
    return install()


@pytest.fixture
def beside(site: Site, stack: ExitStack, folder: Callable[[], Path]) -> Beside:
    """Start a second Dovecot whose post-login services run a script of the site's, too."""

    def start(own: str, *, ours_last: bool) -> PrivateDovecot:
        directory = folder()
        script = directory / "own-script"
        script.write_text(f"#!/bin/sh\n{own}\n")
        script.chmod(0o755)
        hook = (site.dovecot.place / "hook.conf").read_text()
        order = rf"script-login {script} \1" if ours_last else rf"script-login \1 {script}"
        hook, chained = re.subn(r"script-login (.*)", order, hook)
        assert chained == 2
        return stack.enter_context(PrivateDovecot(directory / "dovecot", hook_config=hook))

    return start


def test_a_login_that_a_script_before_ours_refuses_is_not_recorded(site: Site, beside: Beside) -> None:
    dovecot = beside("exit 1", ours_last=True)
    refused_logins(dovecot)
    assert not site.attempt_relay(ADDRESS).succeeded
    assert chain_level(site, dovecot) == ["good", "good"]


def test_one_that_lets_it_go_on_and_ours_after_it_record_it(site: Site, beside: Beside) -> None:
    dovecot = beside('exec "$@"', ours_last=True)
    assert imap_login(dovecot.imap_port, ADDRESS).succeeded
    assert site.attempt_relay(ADDRESS).succeeded


def test_a_login_that_a_script_after_ours_refuses_is_recorded_by_then_and_doctor_says_so(
    site: Site, beside: Beside
) -> None:
    dovecot = beside("exit 1", ours_last=False)
    refused_logins(dovecot)
    assert site.attempt_relay(ADDRESS).succeeded, "which is why the order matters"
    assert chain_level(site, dovecot) == ["wrong", "wrong"]


def refused_logins(dovecot: PrivateDovecot) -> None:
    """A login by each protocol, at which Dovecot hangs up."""
    with pytest.raises(ConnectionError):
        imap_login(dovecot.imap_port, ADDRESS)
    with pytest.raises(ConnectionError):
        pop3_login(dovecot.pop3_port, ADDRESS)
    assert wait_until(lambda: dovecot.log_text().count("Post-login script denied access to user") == 2)


def chain_level(site: Site, dovecot: PrivateDovecot) -> list[str]:
    """What doctor says of the order of the scripts, of each protocol."""
    settings, values = load(site.service.settings_file)
    doctor = Doctor(settings, values, dovecot_file=str(dovecot.place / "dovecot.conf"))
    return [each.level for each in doctor.examine_dovecot() if each.check == "dovecot.chain"]


@pytest.mark.parametrize(("command", "permitted"), [("XCLIENT", True), ("XFORWARD", False)])
def test_whoever_may_say_xclient_relays_as_somebody_who_logged_in_and_by_xforward_nobody_does(
    site: Site, stack: ExitStack, folder: Callable[[], Path], command: str, permitted: bool
) -> None:
    example = shipped("postfix-examples/main.cf.inet").read_text()
    listener = next(iter(site.service.listeners))
    example = example.replace("inet:127.0.0.1:10040", str(listener))
    example += "smtpd_authorized_xforward_hosts = 0.0.0.0/0\nsmtpd_authorized_xclient_hosts = 0.0.0.0/0\n"
    postfix = stack.enter_context(PrivatePostfix(folder() / "postfix", fragment=example))
    assert site.log_in(ADDRESS).succeeded
    with Conversation("127.0.0.1", postfix.port) as client:
        client.read_line()
        said = [
            reply(client, line)
            for line in (
                "EHLO client.example.net",
                f"XCLIENT NAME=[UNAVAILABLE] ADDR={STRANGER}",
                "EHLO client.example.net",
                f"{command} NAME=[UNAVAILABLE] ADDR={ADDRESS}",
                "EHLO client.example.net",
                "MAIL FROM:<alice@example.com>",
                "RCPT TO:<bob@example.net>",
            )
        ]
    assert all(line.startswith("2") for line in said[:6]), said
    assert said[-1].startswith("250") is permitted


def reply(client: Conversation, line: str) -> str:
    """The last line of the reply."""
    client.send(line)
    while (said := client.read_line())[3:4] == "-":
        pass
    return said
