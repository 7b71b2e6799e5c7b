"""`pbs-policy install-postfix` on all kinds of main.cf: changed where it is understood, otherwise refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pbs_policy.install import postfix
from pbs_policy.postfix.configuration import PostfixConfig
from pbs_policy.shipped import shipped
from tests.install.support import (
    DEBIAN_MAIN_CF,
    INET_CHECK,
    MASTER_CF,
    age,
    postconf,
    set_main_cf,
    snapshot,
    write,
)
from tests.install.support import install_postfix_in as install

pytestmark = pytest.mark.usefixtures("aged_files")


def relay_restrictions(root: Path) -> str:
    return postconf(root / "etc/postfix", "-h", "smtpd_relay_restrictions")


def test_the_dry_run_shows_a_diff_and_the_commands_and_changes_nothing(root: Path) -> None:
    before = snapshot(root)
    shown = install(root)
    assert shown.status == 0
    assert snapshot(root) == before
    main_cf = root / "etc/postfix/main.cf"
    assert f"--- {main_cf}\n+++ {main_cf}\n" in shown.output
    assert (
        "\n-smtpd_relay_restrictions = permit_mynetworks permit_sasl_authenticated defer_unauth_destination\n"
        "+smtpd_relay_restrictions = permit_mynetworks permit_sasl_authenticated permit_auth_destination "
        f"{INET_CHECK} defer_unauth_destination\n"
    ) in shown.output
    assert f"would run: postconf -c {main_cf.parent} -e 'smtpd_relay_restrictions = " in shown.output
    assert shown.output.endswith("Nothing was changed; --apply does it.\n")


def test_apply_changes_one_line_keeps_mode_and_owner_and_is_undone_to_the_byte(root: Path) -> None:
    before = snapshot(root)
    done = install(root, "--apply")
    assert done.status == 0
    assert "Now: postfix reload\n" in done.output
    main_cf = root / "etc/postfix/main.cf"
    now = main_cf.read_text().splitlines()
    assert [line for line in DEBIAN_MAIN_CF.splitlines() if line not in now] == [
        "smtpd_relay_restrictions = permit_mynetworks permit_sasl_authenticated defer_unauth_destination"
    ]
    assert main_cf.stat().st_mode & 0o777 == 0o640
    after = snapshot(root)
    assert install(root, "--apply").output == "Nothing to do: everything is in place.\n"
    assert snapshot(root) == after
    assert "restored: " in install(root, "--remove", "--apply").output
    assert snapshot(root) == before
    assert "Nothing to remove" in install(root, "--remove", "--apply").output


def test_the_check_is_the_one_of_the_example(root: Path) -> None:
    install(root, "--apply")
    write(root, "/example/main.cf", shipped("postfix-examples/main.cf.inet").read_text())
    example = postconf(root / "example", "-h", "smtpd_relay_restrictions").replace("  ", " ")
    assert INET_CHECK in " ".join(example.split())
    assert INET_CHECK in relay_restrictions(root)


@pytest.mark.parametrize(
    ("listen", "named"),
    [
        ("inet:127.0.0.1:12345", "inet:127.0.0.1:12345"),
        ("inet:0.0.0.0:12345", "inet:127.0.0.1:12345"),
        ("inet:[::]:12345", "inet:[::1]:12345"),
        ("inet:192.0.2.1:12345", "inet:192.0.2.1:12345"),
        ("unix:/var/spool/postfix/pbs-policy/policy", "unix:pbs-policy/policy"),
        ("unix:/run/pbs.sock inet:127.0.0.1:12345", "inet:127.0.0.1:12345"),
    ],
)
def test_postfix_asks_where_the_service_listens(root: Path, listen: str, named: str) -> None:
    before = snapshot(root)
    assert install(root, "--apply", sets=(f"listen={listen}",)).status == 0
    assert f"check_policy_service {{ {named}, timeout=2s" in relay_restrictions(root)
    folder = root / "var/spool/postfix/pbs-policy"
    assert folder.exists() == named.startswith("unix:")
    if folder.exists():
        assert folder.stat().st_mode & 0o7777 == 0o2750
    assert "Nothing to do" in install(root, "--apply", sets=(f"listen={listen}",)).output
    assert install(root, "--remove", "--apply").status == 0
    assert snapshot(root) == before


@pytest.mark.parametrize("listen", ["unix:/run/pbs.sock", "inet:127.0.0.1:0"])
def test_a_service_that_postfix_cannot_reach_is_refused(root: Path, listen: str) -> None:
    refused = install(root, sets=(f"listen={listen}",))
    assert refused.status == os.EX_CONFIG
    assert listen in refused.output
    assert "Expected in the settings file: inet:127.0.0.1:10040 or unix:/var/spool/postfix/" in refused.output


def test_without_the_user_no_socket_folder_is_made(root: Path) -> None:
    write(root, "/etc/passwd", "postfix:x:101:101::/:\n")
    unix = ("listen=unix:/var/spool/postfix/pbs-policy/policy",)
    useradd = "useradd --system --no-create-home --shell /usr/sbin/nologin pbs-policy"
    assert f"before --apply: there is no user pbs-policy to own /var/spool/postfix/pbs-policy. First: {useradd}" in (
        install(root, sets=unix).output
    )
    before = snapshot(root)
    refused = install(root, "--apply", sets=unix)
    assert refused.status == os.EX_CONFIG
    assert useradd in refused.output
    assert snapshot(root) == before


def test_the_settings_file_of_the_tree_counts(root: Path) -> None:
    write(root, "/etc/pbs-policy/pbs-policy.conf", "listen = inet:127.0.0.1:4711\n")
    assert "inet:127.0.0.1:4711" in install(root).output


def test_a_later_apply_follows_the_settings_and_the_first_copy_is_what_comes_back(root: Path) -> None:
    before = snapshot(root)
    install(root, "--apply")
    assert install(root, "--apply", sets=("listen=inet:127.0.0.1:4711",)).status == 0
    assert "10040" not in relay_restrictions(root)
    assert "4711" in relay_restrictions(root)
    install(root, "--remove", "--apply")
    assert snapshot(root) == before


def test_where_the_list_is_not_set_the_default_is_the_start(root: Path) -> None:
    set_main_cf(root, "")
    assert install(root, "--apply").status == 0
    before, after = "permit_mynetworks, permit_sasl_authenticated", "defer_unauth_destination"
    assert relay_restrictions(root) == f"{before}, permit_auth_destination, {INET_CHECK}, {after}"


def test_a_list_over_several_lines_with_comments_is_restored_to_the_byte(root: Path) -> None:
    set_main_cf(
        root,
        "smtpd_relay_restrictions =\n\tpermit_mynetworks,\n# why\n\n    reject_unauth_destination\n"
        "relayhost =\n  # the last line has no end",
    )
    before = snapshot(root)
    assert install(root, "--apply").status == 0
    assert relay_restrictions(root) == (
        f"permit_mynetworks, permit_auth_destination, {INET_CHECK}, reject_unauth_destination"
    )
    install(root, "--remove", "--apply")
    assert snapshot(root) == before


def test_bytes_that_are_no_text_stay(root: Path) -> None:
    main_cf = root / "etc/postfix/main.cf"
    main_cf.write_bytes(main_cf.read_bytes() + b"# Caf\xe9\nmail_name = Caf\xe9\n")
    age(main_cf)
    before = snapshot(root)
    assert install(root).status == 0
    assert install(root, "--apply").status == 0
    assert main_cf.read_bytes().endswith(b"# Caf\xe9\nmail_name = Caf\xe9\n")
    assert "Nothing to do" in install(root, "--apply").output
    install(root, "--remove", "--apply")
    assert snapshot(root) == before


def test_a_check_that_was_put_there_by_hand_is_left_alone(root: Path) -> None:
    set_main_cf(root, shipped("postfix-examples/main.cf.inet").read_text())
    before = snapshot(root)
    assert install(root, "--apply").output == "Nothing to do: everything is in place.\n"
    assert snapshot(root) == before


def test_a_check_in_the_recipient_list_beside_an_empty_relay_list_is_left_alone(root: Path) -> None:
    example = shipped("postfix-examples/main.cf.inet").read_text()
    relay, recipient = (f"smtpd_{name}_restrictions =" for name in ("relay", "recipient"))
    set_main_cf(root, example.replace(relay, f"{relay}\n{recipient}"))
    before = snapshot(root)
    assert install(root, "--apply").output == "Nothing to do: everything is in place.\n"
    assert snapshot(root) == before


@pytest.mark.parametrize("port", ["127.0.0.1:10025", "[::1]:10025", "10587"])
def test_an_entry_that_is_not_for_strangers_may_refuse_whomever_it_does_not_know(root: Path, port: str) -> None:
    closed = f"{port} inet n - y - - smtpd\n  -o smtpd_client_restrictions=permit_mynetworks,reject\n"
    write(root, "/etc/postfix/master.cf", MASTER_CF + closed)
    assert install(root, "--apply").status == 0
    assert INET_CHECK in relay_restrictions(root)


def test_a_submission_service_that_inherits_the_check_is_pointed_out(root: Path) -> None:
    submission = "submission inet n - y - - smtpd\n"
    write(root, "/etc/postfix/master.cf", MASTER_CF + submission)
    note = f"note: {root}/etc/postfix/master.cf:3: submission/inet has no smtpd_relay_restrictions of its own"
    assert note in install(root).output
    own = "  -o { smtpd_relay_restrictions = permit_sasl_authenticated, reject }\n"
    write(root, "/etc/postfix/master.cf", MASTER_CF + submission + own)
    quiet = install(root)
    assert quiet.status == 0
    assert "note:" not in quiet.output


def test_where_main_cf_was_changed_since_another_check_is_not_put_there(root: Path) -> None:
    install(root, "--apply")
    main_cf = root / "etc/postfix/main.cf"
    main_cf.write_text(main_cf.read_text() + "relayhost = [relay.example.net]\n")
    age(main_cf)
    changed = main_cf.read_bytes()
    assert "Nothing to do" in install(root, "--apply").output, "the check is where it belongs"
    refused = install(root, "--apply", sets=("listen=inet:127.0.0.1:4711",))
    assert refused.status == os.EX_CONFIG
    assert "was changed since the installation" in refused.output
    assert main_cf.read_bytes() == changed


def test_a_result_that_postfix_reads_otherwise_is_put_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(root)
    honest = postfix.read_config

    def lie(folder: Path) -> PostfixConfig:
        config = honest(folder)
        installed = folder == root / "etc/postfix" and "10040" in (folder / "main.cf").read_text()
        return replace(config, written={"smtpd_relay_restrictions": "permit"}) if installed else config

    monkeypatch.setattr(postfix, "read_config", lie)
    refused = install(root, "--apply")
    assert refused.status == os.EX_CONFIG
    assert "postconf reads permit, not " in refused.output
    assert "Everything was put back." in refused.output
    assert snapshot(root) == before
