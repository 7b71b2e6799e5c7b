"""`pbs-policy install-hook` where the site runs post-login scripts of its own: none of them is taken away, and the
configuration that the refusal shows is one that the next run, doctor and Dovecot accept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pbs_policy.dovecot.doveconf import read_dovecot
from pbs_policy.dovecot.logins import executable, find_hooks
from pbs_policy.host import Host
from tests.install.support import HOOK, Outcome, run, snapshot, write

OURS = "/usr/local/lib/pbs-policy/pbs-postlogin"
DROP_IN = "etc/dovecot/conf.d/99-pbs-policy.conf"
BY_HAND = "/etc/dovecot/conf.d/60-by-hand.conf"

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


def install(root: Path, *options: str) -> Outcome:
    return run(HOOK, "--root", str(root), *options)


def by_hand(refused: Outcome) -> str:
    """The configuration that a refusal shows."""
    lines = refused.output.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("pbs-policy: "))


def executables(root: Path) -> dict[str, str]:
    config = read_dovecot(Host(), f"{root}/etc/dovecot/dovecot.conf")
    hooks = find_hooks(config)
    return {hook.protocol: config.value((f"service {hook.service}",), "executable") for hook in hooks}


def test_a_script_of_the_sites_is_not_replaced(root: Path) -> None:
    write(root, "/etc/dovecot/conf.d/20-own.conf", OWN.format("imap"))
    before = snapshot(root)
    refused = install(root, "--apply")
    assert refused.status == os.EX_CONFIG
    assert "/conf.d/20-own.conf:2: service imap has executable = imap imap-postlogin: the drop-in" in refused.output
    assert by_hand(refused) == (
        "service imap-postlogin {\n"
        f"  executable = script-login /etc/dovecot/site-postlogin imap-box {OURS} imap\n"
        "}\n"
        "# then install-hook --apply once more, which puts the script in place, and doveadm reload\n"
    )
    assert snapshot(root) == before


@pytest.mark.parametrize("own", [("imap",), ("pop3",), ("imap", "pop3")], ids="-".join)
def test_what_was_chained_by_hand_as_the_refusal_says_runs_until_removed(root: Path, own: tuple[str, ...]) -> None:
    write(root, "/etc/dovecot/conf.d/20-own.conf", "".join(map(OWN.format, own)))
    refused = install(root, "--apply")
    assert refused.status == os.EX_CONFIG
    write(root, BY_HAND, by_hand(refused))
    assert install(root, "--apply").status == 0
    assert executables(root) == {
        each: f"script-login /etc/dovecot/site-postlogin {each}-box {OURS} {each}"
        if each in own
        else f"script-login {OURS} {each}"
        for each in ("pop3", "imap")
    }
    assert (root / OURS.lstrip("/")).exists()
    assert (root / DROP_IN).exists() is (len(own) == 1), "the drop-in has the other protocol alone"
    assert "Nothing to do" in install(root, "--apply").output
    removed = install(root, "--remove", "--apply")
    assert removed.status == 0
    assert f"our words taken out: {root}{BY_HAND}\n" in removed.output
    config = read_dovecot(Host(), f"{root}/etc/dovecot/dovecot.conf")
    assert find_hooks(config) == []
    for each in own:
        assert executable(config, f"{each}-postlogin") == f"script-login /etc/dovecot/site-postlogin {each}-box"
    assert not (root / OURS.lstrip("/")).exists()
    assert not (root / DROP_IN).exists()


def test_a_service_that_both_protocols_share_becomes_two_that_keep_the_panels_script(root: Path) -> None:
    write(root, "/etc/dovecot/conf.d/20-own.conf", SHARED)
    refused = install(root, "--apply")
    assert refused.status == os.EX_CONFIG
    assert "a service for each protocol" in refused.output
    write(root, BY_HAND, by_hand(refused))
    assert install(root, "--apply").status == 0
    assert executables(root) == {
        each: f"script-login /usr/local/bin/panel-postlogin {OURS} {each}" for each in ("pop3", "imap")
    }
    config = read_dovecot(Host(), f"{root}/etc/dovecot/dovecot.conf")
    assert [hook.user for hook in find_hooks(config)] == ["panel", "panel"]
    assert not (root / DROP_IN).exists()


@pytest.mark.parametrize(
    "executable",
    [f"script-login {OURS} imap /etc/dovecot/site-postlogin", f"script-login {OURS} /etc/dovecot/site-postlogin"],
)
def test_a_script_behind_ours_is_refused_with_the_right_order(root: Path, executable: str) -> None:
    own = OWN.format("imap").replace("script-login /etc/dovecot/site-postlogin imap-box", executable)
    write(root, "/etc/dovecot/conf.d/20-own.conf", own)
    refused = install(root, "--apply")
    assert refused.status == os.EX_CONFIG
    assert f"20-own.conf:5: service imap-postlogin has executable = {executable}" in refused.output
    assert f"  executable = script-login /etc/dovecot/site-postlogin {OURS} imap\n" in by_hand(refused)


def test_a_chain_in_the_drop_in_itself_is_left_alone(root: Path) -> None:
    assert install(root, "--apply").status == 0
    drop_in = root / DROP_IN
    chained = drop_in.read_text().replace("script-login ", "script-login /etc/dovecot/site-postlogin ")
    drop_in.write_text(chained)
    assert "Nothing to do" in install(root, "--apply").output
    assert drop_in.read_text() == chained


def test_who_runs_a_chain_and_may_not_read_the_settings_is_pointed_out(root: Path) -> None:
    write(root, "/etc/passwd", "pbs-policy:x:990:990::/:\npanel:x:991:991::/:\n")
    write(root, "/etc/pbs-policy/pbs-policy.conf", "", mode=0o600)
    write(root, "/etc/dovecot/conf.d/20-own.conf", SHARED)
    write(root, BY_HAND, by_hand(install(root)))
    assert "pbs-policy.conf: panel may not read it" in install(root).output


def test_a_shared_service_with_ours_for_one_protocol_becomes_two(root: Path) -> None:
    chained = f"/usr/local/bin/panel-postlogin {OURS} pop3"
    write(root, "/etc/dovecot/conf.d/20-own.conf", SHARED.replace("/usr/local/bin/panel-postlogin", chained))
    refused = install(root, "--apply")
    assert refused.status == os.EX_CONFIG
    write(root, BY_HAND, by_hand(refused))
    assert install(root, "--apply").status == 0
    assert executables(root) == {
        each: f"script-login /usr/local/bin/panel-postlogin {OURS} {each}" for each in ("pop3", "imap")
    }
