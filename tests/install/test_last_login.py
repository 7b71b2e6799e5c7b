"""`pbs-policy install-hook --last-login` where it would record too much, or pretend to know users."""

from __future__ import annotations

import os
from pathlib import Path

import fakeredis
import pytest

from pbs_policy.dovecot.doveconf import read_dovecot
from pbs_policy.host import Host
from pbs_policy.store.errors import StoreUnavailable
from tests.install.support import HOOK, Outcome, assert_named_and_nothing_written, run, snapshot, write
from tests.stores import table_on

OWN = "/etc/dovecot/conf.d/20-own.conf"

OWN_TABLE = """\
dict {
  lastlogin = file:/var/lib/dovecot/lastlogin.db
}
plugin {
  last_login_dict = proxy::lastlogin
  last_login_key = last-login/%s/%u/%d
}
protocol imap {
  mail_plugins = $mail_plugins last_login
}
"""


def install(root: Path, *options: str, sets: tuple[str, ...] = ()) -> Outcome:
    return run(HOOK, "--root", str(root), "--last-login", *options, sets=sets)


def only_23(root: Path) -> None:
    if read_dovecot(Host(), f"{root}/etc/dovecot/dovecot.conf").version != (2, 3):
        pytest.skip("written for Dovecot 2.3: apt-get install dovecot-core on Debian 12")


@pytest.mark.parametrize(
    ("own", "place", "said"),
    [
        (OWN_TABLE, "5", "keeps a table of your own (last-login/%s/%u/%d)"),
        ("auth_mechanisms = plain anonymous\n", "1", "auth_mechanisms has anonymous"),
        ("passdb {\n  driver = static\n  args = user=%u nopassword=y\n}\n", "3", "passdb static has nopassword"),
        ("passdb {\n  driver = static\n  args = password=\n}\n", "3", "passdb static has an empty password"),
        (
            "passdb {\n  driver = static\n  args = nopassword=y\n  result_success = continue\n}\n", "3",
            "passdb static has nopassword",
        ),
        (
            "passdb {\n  driver = static\n  args = nopassword=y\n  mechanisms = xoauth2\n}\n", "3",
            "passdb static has nopassword",
        ),
        (
            "service imap {\n  executable = imap own\n}\nservice own {\n"
            "  executable = script-login /usr/local/lib/pbs-policy/pbs-postlogin imap\n}\n",
            "5",
            "service own runs pbs-postlogin",
        ),
    ],
    ids=[
        "a table of the site's own", "anonymous logins", "no passwords", "an empty password", "no second look",
        "a mechanism that checks nothing", "the script",
    ],
)  # fmt: skip
def test_what_stands_in_the_plugins_way_is_named_and_nothing_is_written(
    root: Path, own: str, place: str, said: str
) -> None:
    only_23(root)
    assert_named_and_nothing_written(root, install, OWN, own, place, said)


@pytest.mark.parametrize(
    "own",
    [
        OWN_TABLE,
        "auth_mechanisms = plain anonymous\n",
        "passdb {\n  driver = static\n  args = nopassword=y allow_nets=192.0.2.0/24\n}\n",
        "passdb {\n  driver = static\n  args = nopassword=y proxy=y host=192.0.2.3\n}\n",
    ],
)
def test_beside_the_script_all_of_that_is_left_alone(root: Path, own: str) -> None:
    only_23(root)
    write(root, OWN, own)
    done = run(HOOK, "--root", str(root), "--apply")
    assert done.status == 0
    assert "note:" not in done.output
    config = read_dovecot(Host(), f"{root}/etc/dovecot/dovecot.conf")
    assert config.value(("plugin",), "last_login_key") in ("", "last-login/%s/%u/%d")


@pytest.mark.parametrize("way", ["--last-login", "--reports"])
def test_one_password_for_everybody_is_to_be_confirmed(root: Path, way: str) -> None:
    only_23(root)
    write(root, OWN, "passdb {\n  driver = static\n  args = password=secret\n}\n")
    sets = ("reports_listen=inet:127.0.0.1:10041", "reports_check_passwords=yes")
    shown = run(HOOK, "--root", str(root), way, sets=sets)
    assert shown.status == 0
    assert f"note: {root}{OWN}:3: passdb static has one password for everybody" in shown.output


def test_logins_without_a_password_are_pointed_out_with_the_script_too(root: Path) -> None:
    only_23(root)
    write(root, OWN, "passdb {\n  driver = static\n  args = nopassword=y\n}\n")
    assert f"note: {root}{OWN}:3: passdb static has nopassword" in run(HOOK, "--root", str(root)).output


@pytest.mark.parametrize(
    "setting", ["max_recipients_per_user=10/1h", "sender_match=domain", "login_domains=example.com"]
)
def test_rules_on_users_are_not_pretended(root: Path, setting: str) -> None:
    refused = install(root, "--apply", sets=(setting,))
    assert refused.status == os.EX_CONFIG
    assert f"{setting.partition('=')[0]} is set, and it records no user" in refused.output


def test_a_file_of_denies_that_names_users_is_a_rule_on_users(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "denies"
    file.write_text("192.0.2.7 spam\n")
    file.chmod(0o644)
    assert install(root, sets=(f"denies={file}",)).status == 0
    file.write_text("alice@example.com stolen\n")
    assert "denies is set, and it records no user" in install(root, sets=(f"denies={file}",)).output


def test_a_user_who_is_denied_keeps_the_plugin_out(root: Path, denies: fakeredis.FakeRedis) -> None:
    table_on(denies, "pbs:").deny_user(b"alice@example.com", "stolen", 3600)
    before = snapshot(root)
    refused = install(root, "--apply")
    assert refused.status == os.EX_CONFIG
    assert "alice@example.com is denied, and last_login records no user" in refused.output
    assert snapshot(root) == before


def test_where_redis_is_away_it_is_said_that_denies_are_unknown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_settings: object) -> None:
        raise StoreUnavailable("connection refused")

    monkeypatch.setattr("pbs_policy.install.last_login.connect", away)
    shown = install(root)
    assert shown.status == 0
    assert "note: whether users are denied, whom last_login does not know, is unknown" in shown.output
