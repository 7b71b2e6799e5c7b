"""`pbs-policy install-hook --remove` after changes by hand: our words are gone, everything else is as it would be
had they never been there; and what was configured by hand goes the same way."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from pbs_policy.dovecot.doveconf import DovecotConfig, parse_lines
from pbs_policy.dovecot.editing import edited
from pbs_policy.install.dovecot_removal import _plugin_changes, _script_changes
from pbs_policy.shipped import shipped
from tests.install.support import CONF_D, DROP_IN, LIB, OWN, SETTINGS, VERSION, Edit, arrange, pbs, snapshot

SCRIPT = f"{LIB}/pbs-postlogin"
APPLY, REMOVE = "install-hook --apply", "install-hook --remove --apply"


def replaced(pattern: str, new: str) -> Edit:
    return lambda text: re.sub(pattern, new, text)


MINE = "service mine {\n  executable = script-login /etc/dovecot/mine\n  unix_listener mine {\n  }\n}\n"

# A name for what was done to the drop-in, the edit, and what is left of it at last.
BY_HAND: dict[str, tuple[Edit, str]] = {
    "a comment at its end": (lambda text: text + "# mine\n", "# mine\n"),
    "a service more": (lambda text: text + MINE, MINE),
    "a setting in a service that is theirs": (
        replaced(r"(?m)^(  executable = imap imap-postlogin)$", r"  vsz_limit = 512M\n\1 # who is there"),
        "service imap {\n  vsz_limit = 512M\n}\n",
    ),
    "another user for the script": (replaced("user = pbs-policy", "user = mail"), ""),
    "one protocol alone": (replaced(r"(?ms)^service pop3 \{.*?^\}\n", ""), ""),
    "a script of their own before ours": (
        replaced("script-login ", "script-login /etc/dovecot/mine "),
        "".join(
            [f"service {each} {{\n  executable = {each} {each}-postlogin\n}}\n" for each in ("pop3", "imap")]
            + [
                f"service {each}-postlogin {{\n  executable = script-login /etc/dovecot/mine\n  user = pbs-policy\n"
                f"  unix_listener {each}-postlogin {{\n  }}\n}}\n"
                for each in ("pop3", "imap")
            ]
        ),
    ),
    "a script of their own besides": (
        replaced("executable = imap imap-postlogin", "executable = imap imap-postlogin mine"),
        "service imap {\n  executable = imap mine\n}\n",
    ),
    "a socket by its path, and one that was nobody's before": (
        replaced("executable = imap imap-postlogin", "executable = imap /run/dovecot/imap-postlogin nobodys"),
        "service imap {\n  executable = imap nobodys\n}\n",
    ),
    "other blanks and quotes": (replaced("executable = script-login (.*)", r'executable="script-login \1"'), ""),
    "the chain over two lines": (replaced("script-login ", "script-login \\\\\n    "), ""),
}  # fmt: skip


def bare(text: str) -> list[list[str]]:
    """The lines that say something, word by word."""
    return [line.split() for line in text.splitlines() if line.strip()]


def effective(root: Path) -> str:
    command = ["doveconf", "-c", f"{root}/etc/dovecot/dovecot.conf", "-n"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("done", BY_HAND)
def test_after_a_change_by_hand_our_words_are_gone_and_theirs_are_kept(root: Path, done: str) -> None:
    edit, kept = BY_HAND[done]
    arrange(root, {f"{CONF_D}/10-mine.conf": MINE})
    assert pbs(root, APPLY).status == 0
    arrange(root, {DROP_IN: edit})
    drop_in = root / DROP_IN.lstrip("/")
    assert SCRIPT in effective(root)
    assert pbs(root, REMOVE).status == 0
    left = drop_in.read_text() if drop_in.exists() else ""
    assert bare(left) == bare(kept)
    assert "pbs-postlogin" not in left
    assert "pbs-postlogin" not in effective(root)
    assert not (root / SCRIPT.lstrip("/")).exists()
    assert not (root / "var/lib").exists(), "the record is gone"
    assert "Nothing to remove" in pbs(root, REMOVE).output


@pytest.mark.parametrize("place", [f"{CONF_D}/20-ours.conf", "/etc/dovecot/dovecot.conf"])
@pytest.mark.parametrize("example", ["pbs-policy", f"last-login-{VERSION}", f"report-{VERSION}"])
def test_what_was_configured_by_hand_is_taken_out_too(root: Path, place: str, example: str) -> None:
    arrange(root, {SECRET: ("auth_policy_server_api_header = x\n", 0o600)})
    expected = effective(root)
    file = root / place.lstrip("/")
    before = file.read_text() if file.exists() else ""
    file.write_text(before + shipped(f"dovecot-hooks/{example}.conf").read_text())
    assert effective(root) != expected
    assert pbs(root, REMOVE).output.startswith(f"our words taken out: {file}\n")
    assert effective(root) == expected
    assert file.read_text().startswith(before)


@pytest.mark.parametrize(
    "own",
    [
        shipped(f"dovecot-hooks/last-login-{VERSION}.conf").read_text().replace("pbs:login:", "mine:").replace(
            "remote_ip" if VERSION == "2.4" else "rip", "user"),
        "auth_policy_server_url = http://127.0.0.1:8084/\nauth_policy_hash_nonce = salt\n",
    ],
    ids=["a plugin with a table of their own", "a policy server of their own"],
)  # fmt: skip
def test_what_is_the_sites_own_stays(root: Path, own: str) -> None:
    arrange(root, {OWN: own})
    before = effective(root)
    assert "Nothing to remove" in pbs(root, REMOVE).output
    assert effective(root) == before


def test_settings_that_were_changed_since_stay(root: Path) -> None:
    pbs(root, APPLY)
    arrange(root, {SETTINGS: "ttl = 1h\n"})
    removed = pbs(root, REMOVE)
    assert removed.status == 0
    assert f"{root}{SETTINGS}: stays, since it was changed\n" in removed.output
    assert (root / SETTINGS.lstrip("/")).read_text() == "ttl = 1h\n"
    assert not (root / "var/lib").exists(), "the record is gone"


SECRET = f"{CONF_D}/pbs-policy-secret.conf.ext"
REPORTS = "--reports --set reports_listen=inet:127.0.0.1:1 --set reports_check_passwords=yes"


@pytest.mark.parametrize("drop_in_is_there", [True, False])
@pytest.mark.parametrize(
    "added",
    ["login_greeting = hi\n", "  login_greeting = hi", "login_greeting = hi\nauth_policy_server_api_header = b\n"],
)
def test_the_secret_goes_from_a_file_that_was_changed_and_what_is_left_unread_is_said(
    root: Path, added: str, drop_in_is_there: bool
) -> None:
    arrange(root, {"/secret": ("Authorization: Bearer 3f0c1b7e5a9d\n", 0o640)})
    pbs(root, f"{APPLY} {REPORTS} --set reports_secret_file=ROOT/secret")
    arrange(root, {SECRET: lambda text: text + added, **({} if drop_in_is_there else {DROP_IN: None})})
    removed = pbs(root, REMOVE)
    assert removed.status == 0
    assert f"our words taken out: {root}{SECRET}\n" in removed.output
    assert (root / SECRET.lstrip("/")).read_text().split() == ["login_greeting", "=", "hi"]
    assert f"note: {root}{SECRET}: stays, but Dovecot does not read it any more" in removed.output
    assert "Move what is left in it (login_greeting) to" in removed.output
    assert not (root / "var/lib").exists(), "the record is gone"


@pytest.mark.parametrize("version", ["2.3", "2.4"])
@pytest.mark.parametrize("last_login", [False, True])
def test_the_words_of_either_version_are_found_among_others(version: str, last_login: bool) -> None:
    """Without Dovecot, so that the words of both versions are tried wherever this runs."""
    example = shipped(f"dovecot-hooks/{f'last-login-{version}' if last_login else 'pbs-policy'}.conf").read_text()
    more = "mail_plugins {\n  quota = yes\n}\n" if version == "2.4" else "mail_plugins = quota\n"
    text = f"{MINE}{example}protocol imap {{\n{more}}}\n"
    lines = tuple(parse_lines(text, "x"))
    config = DovecotConfig("x", lines, lines)
    found = dict([*_script_changes(config), *_plugin_changes(config, "pbs:")])
    left = edited(text, {int(place.rpartition(":")[2]): value for place, value in found.items()})
    comments = [line for line in example.splitlines() if line.startswith("#")]
    kept = [line for line in left.splitlines() if line.strip() and line not in comments]
    assert kept == f"{MINE}protocol imap {{\n{more}}}".splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is led elsewhere")
def test_root_edits_nothing_that_another_user_could_have_led_it_to(root: Path) -> None:
    arrange(root, {
        "/etc/dovecot/20-ours.conf": shipped("dovecot-hooks/pbs-policy.conf").read_text(),
        "/etc/dovecot/dovecot.conf": lambda text: text + "!include theirs/*.conf\n",
    })  # fmt: skip
    theirs = root / "etc/dovecot/theirs"
    theirs.mkdir()
    (theirs / "link.conf").symlink_to(root / "etc/dovecot/20-ours.conf")
    os.chown(theirs, 65534, -1)
    before = snapshot(root)
    refused = pbs(root, REMOVE)
    assert refused.status == os.EX_CONFIG
    assert "root writes nothing there" in refused.output
    assert snapshot(root) == before
