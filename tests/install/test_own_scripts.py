"""`pbs-policy install-hook` where the site runs post-login scripts of its own: none of them is taken away, and the
configuration that the refusal shows is one that the next run, doctor and Dovecot accept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pbs_policy.dovecot.doveconf import read_dovecot
from pbs_policy.dovecot.logins import executable, find_hooks
from pbs_policy.host import Host
from tests.install.support import DROP_IN, LIB, Outcome, arrange, pbs, snapshot
from tests.install.support import OWN as OWN_FILE

OURS = f"{LIB}/pbs-postlogin"
BY_HAND = "/etc/dovecot/conf.d/60-by-hand.conf"
APPLY, REMOVE = "install-hook --apply", "install-hook --remove --apply"

OWN = """\
service {0} {{
  executable = {0} {0}-postlogin
}}
service {0}-postlogin {{
  executable = script-login /etc/dovecot/site-postlogin {0}-box
  user = $default_internal_user
  unix_listener {0}-postlogin {{
  }}
}}
"""

SHARED = """\
service imap {
  executable = imap postlogin
}
service pop3 {
  executable = pop3 postlogin
}
service postlogin {
  executable = script-login /usr/local/bin/panel-postlogin
  user = panel
  unix_listener postlogin {
  }
}
"""


PANEL = "/usr/local/bin/panel-postlogin"
PANELS_WITH_OURS = {each: f"script-login {PANEL} {OURS} {each}" for each in ("pop3", "imap")}


def site_chain(*own: str) -> dict[str, str]:
    """What runs where these protocols have a script of the site's."""
    sites = {each: f"/etc/dovecot/site-postlogin {each}-box " if each in own else "" for each in ("pop3", "imap")}
    return {each: f"script-login {script}{OURS} {each}" for each, script in sites.items()}


def refused(root: Path, own: str) -> Outcome:
    """What the site's own configuration has the installer say, which writes nothing."""
    arrange(root, {OWN_FILE: own})
    before = snapshot(root)
    outcome = pbs(root, APPLY)
    assert outcome.status == os.EX_CONFIG
    assert snapshot(root) == before
    return outcome


def by_hand(outcome: Outcome) -> str:
    """The configuration that a refusal shows."""
    lines = outcome.output.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("pbs-policy: "))


def executables(root: Path) -> dict[str, str]:
    config = read_dovecot(Host(), f"{root}/etc/dovecot/dovecot.conf")
    hooks = find_hooks(config)
    return {hook.protocol: config.value((f"service {hook.service}",), "executable") for hook in hooks}


def test_a_script_of_the_sites_is_not_replaced(root: Path) -> None:
    said = refused(root, OWN.format("imap"))
    assert "/conf.d/20-own.conf:2: service imap has executable = imap imap-postlogin: the drop-in" in said.output
    assert by_hand(said) == (
        "service imap-postlogin {\n"
        f"  executable = script-login /etc/dovecot/site-postlogin imap-box {OURS} imap\n"
        "}\n"
        "# then install-hook --apply once more, which puts the script in place, and doveadm reload\n"
    )
    assert "a service for each protocol" in refused(root, SHARED).output


@pytest.mark.parametrize(
    ("own", "expected", "own_protocols"),
    [
        (OWN.format("imap"), site_chain("imap"), ["imap"]),
        (OWN.format("pop3"), site_chain("pop3"), ["pop3"]),
        (OWN.format("imap") + OWN.format("pop3"), site_chain("imap", "pop3"), ["imap", "pop3"]),
        (SHARED, PANELS_WITH_OURS, []),
        (SHARED.replace(PANEL, f"{PANEL} {OURS} pop3"), PANELS_WITH_OURS, []),
    ],
    ids=["imap", "pop3", "both", "one service for both", "one that has ours already"],
)
def test_what_was_chained_by_hand_as_the_refusal_says_runs_until_removed(
    root: Path, own: str, expected: dict[str, str], own_protocols: list[str]
) -> None:
    arrange(root, {BY_HAND: by_hand(refused(root, own))})
    assert pbs(root, APPLY).status == 0
    assert executables(root) == expected
    config = read_dovecot(Host(), f"{root}/etc/dovecot/dovecot.conf")
    assert own_protocols or {hook.user for hook in find_hooks(config)} == {"panel"}
    assert (root / OURS.lstrip("/")).exists()
    has_drop_in = len(own_protocols) == 1
    assert (root / DROP_IN.lstrip("/")).exists() is has_drop_in, "it has the other protocol alone"
    assert "Nothing to do" in pbs(root, APPLY).output
    removed = pbs(root, REMOVE)
    assert removed.status == 0
    assert f"our words taken out: {root}{BY_HAND}\n" in removed.output
    config = read_dovecot(Host(), f"{root}/etc/dovecot/dovecot.conf")
    assert find_hooks(config) == []
    for each in own_protocols:
        assert executable(config, f"{each}-postlogin") == f"script-login /etc/dovecot/site-postlogin {each}-box"
    assert not (root / OURS.lstrip("/")).exists()
    assert not (root / DROP_IN.lstrip("/")).exists()


@pytest.mark.parametrize("words", [f"{OURS} imap /etc/dovecot/site-postlogin", f"{OURS} /etc/dovecot/site-postlogin"])
def test_a_script_behind_ours_is_refused_with_the_right_order(root: Path, words: str) -> None:
    said = refused(root, OWN.format("imap").replace("/etc/dovecot/site-postlogin imap-box", words))
    assert f"20-own.conf:5: service imap-postlogin has executable = script-login {words}" in said.output
    assert f"  executable = script-login /etc/dovecot/site-postlogin {OURS} imap\n" in by_hand(said)


def test_a_chain_in_the_drop_in_itself_is_left_alone(root: Path) -> None:
    assert pbs(root, APPLY).status == 0
    arrange(root, {DROP_IN: lambda text: text.replace("script-login ", "script-login /etc/dovecot/site-postlogin ")})
    chained = snapshot(root)
    assert "Nothing to do" in pbs(root, APPLY).output
    assert snapshot(root) == chained


def test_who_runs_a_chain_and_may_not_read_the_settings_is_pointed_out(root: Path) -> None:
    passwd = "pbs-policy:x:990:990::/:\npanel:x:991:991::/:\n"
    arrange(root, {"/etc/passwd": passwd, "/etc/pbs-policy/pbs-policy.conf": ("", 0o600)})
    arrange(root, {BY_HAND: by_hand(refused(root, SHARED))})
    assert "pbs-policy.conf: panel may not read it" in pbs(root, "install-hook").output
