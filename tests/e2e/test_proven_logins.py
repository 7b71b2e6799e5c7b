"""Whose login a real Dovecot's post-login script records: not one that nobody authenticated, nor a master user's; and
what the user database says of master users changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from pbs_policy.demo.conversation import Conversation
from pbs_policy.demo.daemons import wait_until
from pbs_policy.demo.dovecot import PASSWORD, USER, PrivateDovecot, dovecot_version, imap_login, pop3_login
from pbs_policy.demo.real import Site

ADDRESS, MAPPED = "192.0.2.7", "64:ff9b::c000:207"
MASTER = "master"

_MASTERS_2_3 = """
auth_master_user_separator = *
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {place}/masters
  master = yes
}}
"""
_MASTERS_2_4 = """
auth_master_user_separator = *
passdb masters {{
  driver = passwd-file
  passwd_file_path = {place}/masters
  default_password_scheme = PLAIN
  master = yes
}}
"""


class DovecotWithMasters(PrivateDovecot):
    """It knows SASL ANONYMOUS and a master user, and its user database may name each user as a master user."""

    def __init__(self, directory: Path, *, hook_config: str, names_masters: bool) -> None:
        super().__init__(directory, hook_config=hook_config)
        self._names_masters = names_masters

    def command(self) -> list[str]:
        line = super().command()
        is_2_3 = dovecot_version() < (2, 4)
        self._write_secret(self.place / "masters", f"{MASTER}:{{PLAIN}}{PASSWORD}\n")
        configuration = self.place / "dovecot.conf"
        text = configuration.read_text()
        if self._names_masters:
            home = f"home={self.place}/mail" if is_2_3 else f"home = {self.place}/mail"
            assert home in text
            text = text.replace(home, f"{home} master_user=%u" if is_2_3 else f"{home}\n    master_user = %{{user}}")
        text += (_MASTERS_2_3 if is_2_3 else _MASTERS_2_4).format(place=self.place)
        configuration.write_text(f"{text}auth_mechanisms = plain anonymous\n")
        return line


Start = Callable[..., tuple[Site, DovecotWithMasters]]


@pytest.fixture
def start(install: Callable[..., Site], stack: ExitStack, folder: Callable[[], Path]) -> Start:
    """Start a complete private installation, and a second Dovecot that runs the same script."""

    def start(*, names_masters: bool = False, **settings: str) -> tuple[Site, DovecotWithMasters]:
        site = install(**settings)
        hook = (site.dovecot.place / "hook.conf").read_text()
        return site, stack.enter_context(DovecotWithMasters(folder(), hook_config=hook, names_masters=names_masters))

    return start


def anonymous_login(port: int, client_address: str) -> bool:
    """A login by IMAP of somebody who gives no name and no password."""
    with Conversation("127.0.0.1", port) as client:
        client.read_line()
        client.send(f'a ID ("x-originating-ip" "{client_address}")')
        while not client.read_line().startswith("a OK"):
            pass
        client.send("b AUTHENTICATE ANONYMOUS eEB5")
        while (line := client.read_line()).startswith("* "):
            pass
        return line.startswith("b OK")


def has_said(dovecot: PrivateDovecot, text: str) -> bool:
    return wait_until(lambda: text in dovecot.log_text())


def test_who_logs_in_by_sasl_anonymous_does_not_relay(start: Start) -> None:
    site, dovecot = start()
    assert anonymous_login(dovecot.imap_port, ADDRESS)
    assert has_said(dovecot, f"info: this login is not recorded: it is anonymous, from {ADDRESS}")
    assert not site.attempt_relay(ADDRESS).succeeded
    assert imap_login(dovecot.imap_port, ADDRESS).succeeded
    assert site.attempt_relay(ADDRESS).succeeded, "whoever gave a password does"


@pytest.mark.parametrize("names_masters", [True, False])
def test_a_master_users_login_is_told_from_a_users_whatever_the_user_database_says(
    start: Start, names_masters: bool
) -> None:
    site, dovecot = start(names_masters=names_masters)
    assert pop3_login(dovecot.pop3_port, ADDRESS, f"{USER}*{MASTER}").succeeded
    assert has_said(dovecot, f"info: this login is not recorded: {MASTER} logged in as {USER} from {ADDRESS}")
    assert not site.attempt_relay(ADDRESS).succeeded
    assert pop3_login(dovecot.pop3_port, ADDRESS).succeeded
    assert site.attempt_relay(ADDRESS).succeeded


def test_a_user_who_types_capital_letters_is_no_master_user(start: Start) -> None:
    site, dovecot = start(names_masters=True)
    assert imap_login(dovecot.imap_port, ADDRESS, USER.title()).succeeded
    assert site.attempt_relay(ADDRESS).succeeded


def test_a_login_through_nat64_permits_its_own_ipv4_address_alone(start: Start) -> None:
    site, dovecot = start(ipv6_prefix="64")
    assert imap_login(dovecot.imap_port, MAPPED).succeeded
    assert not site.attempt_relay("64:ff9b::c000:208").succeeded, "a stranger behind the same NAT64"
    assert site.attempt_relay(MAPPED).succeeded
    assert site.attempt_relay(ADDRESS).succeeded


def test_with_login_domains_a_user_of_another_domain_does_not_relay(start: Start) -> None:
    site, dovecot = start(login_domains="example.net")
    assert imap_login(dovecot.imap_port, ADDRESS).succeeded
    assert has_said(dovecot, f"user {USER} from {ADDRESS} is of no domain in login_domains")
    assert not site.attempt_relay(ADDRESS).succeeded
