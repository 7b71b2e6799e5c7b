"""`pbs-policy install-hook --reports`: put in place, taken out to the byte, refused where a report proves nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pbs_policy.demo.dovecot import dovecot_version
from pbs_policy.dovecot.doveconf import read_dovecot
from pbs_policy.dovecot.logins import find_hooks
from pbs_policy.dovecot.reports import read_reports
from pbs_policy.host import Host
from pbs_policy.shipped import shipped
from tests.install.support import HOOK, Outcome, assert_named_and_nothing_written, run, snapshot, write
from tests.install.test_last_login import only_23

OWN = "/etc/dovecot/conf.d/20-own.conf"
DROP_IN = "etc/dovecot/conf.d/99-pbs-policy.conf"
SECRET = "etc/dovecot/conf.d/pbs-policy-secret.conf.ext"
LISTENS, CHECKS = "reports_listen=inet:127.0.0.1:10041", "reports_check_passwords=yes"
HEADER = "Authorization: Bearer 3f0c1b7e5a9d"


def install(root: Path, *options: str, sets: tuple[str, ...] = ()) -> Outcome:
    return run(HOOK, "--root", str(root), "--reports", *options, sets=(LISTENS, CHECKS, *sets))


@pytest.fixture
def secret(tmp_path: Path) -> str:
    file = tmp_path / "secret"
    file.write_text(f"{HEADER}\n")
    file.chmod(0o640)
    return f"reports_secret_file={file}"


def test_apply_has_dovecot_report_and_remove_leaves_every_byte_as_it_was(root: Path, secret: str) -> None:
    before = snapshot(root)
    shown = install(root, sets=(secret,))
    assert snapshot(root) == before
    assert f"+++ {root}/{DROP_IN}\n" in shown.output
    done = install(root, "--apply", sets=(secret,))
    assert done.status == 0
    assert done.output.endswith("Now: doveadm reload\n")
    version = "2.3" if dovecot_version() < (2, 4) else "2.4"
    assert (root / DROP_IN).read_bytes() == shipped(f"dovecot-hooks/report-{version}.conf").read_bytes()
    reports = read_reports(read_dovecot(Host(), f"{root}/etc/dovecot/dovecot.conf"))
    assert reports is not None
    assert (reports.url, reports.value("server_api_header")) == ("http://127.0.0.1:10041/", HEADER)
    assert not reports.tells_hash
    assert install(root, "--apply", sets=(secret,)).output.endswith("Nothing to do: everything is in place.\n")
    assert install(root, "--remove", "--apply").status == 0
    assert snapshot(root) == before


def test_the_secret_is_for_root_alone_and_is_never_shown(root: Path, secret: str) -> None:
    said = install(root, sets=(secret,)).output + install(root, "--apply", sets=(secret,)).output
    assert (root / SECRET).stat().st_mode & 0o777 == 0o600
    said += install(root, "--remove").output + install(root, "--remove", "--apply").output
    assert HEADER.split()[-1] not in said
    assert f"{root}/{SECRET}: what is in it is not shown" in said


@pytest.mark.parametrize("drop_in_is_there", [True, False])
@pytest.mark.parametrize(
    "added",
    ["login_greeting = hi\n", "  login_greeting = hi", "login_greeting = hi\nauth_policy_server_api_header = b\n"],
)
def test_the_secret_goes_from_a_file_that_was_changed_and_what_is_left_unread_is_said(
    root: Path, secret: str, added: str, drop_in_is_there: bool
) -> None:
    install(root, "--apply", sets=(secret,))
    with (root / SECRET).open("a") as file:
        file.write(added)
    if not drop_in_is_there:
        (root / DROP_IN).unlink()
    removed = install(root, "--remove", "--apply")
    assert removed.status == 0
    assert f"our words taken out: {root}/{SECRET}\n" in removed.output
    assert (root / SECRET).read_text().split() == ["login_greeting", "=", "hi"]
    assert f"note: {root}/{SECRET}: stays, but Dovecot does not read it any more" in removed.output
    assert "Move what is left in it (login_greeting) to" in removed.output
    assert not (root / "var/lib").exists(), "the record is gone"


def test_where_its_group_exists_the_recorder_may_ask_who_is_connected(root: Path, secret: str) -> None:
    before = snapshot(root)
    place = root / "etc/dovecot/conf.d/99-pbs-policy-sessions.conf"
    assert "note: there is no group pbs-policy, so the recorder may not ask who is connected" in install(root).output
    write(root, "/etc/group", "root:x:0:\nmail-policy:x:998:\n")
    install(root, "--apply", "--user", "mail-policy", sets=(secret, "renew_sessions=0"))
    assert not place.exists()
    done = install(root, "--apply", "--user", "mail-policy", sets=(secret,))
    assert "note: the recorder may ask who is connected once Dovecot is restarted" in done.output
    shipped_text = shipped("dovecot-hooks/sessions.conf").read_text()
    assert place.read_text() == shipped_text.replace("group = pbs-policy", "group = mail-policy")
    install(root, "--remove", "--apply")
    (root / "etc/group").unlink()
    assert snapshot(root) == before


def test_without_a_secret_it_is_said_who_can_report(root: Path) -> None:
    assert "note: reports_secret_file is not set: every user of this host can report a login" in install(root).output


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("inet:0.0.0.0:10099", "http://127.0.0.1:10099/"),
        ("inet:[::1]:10041", "http://[::1]:10041/"),
        ("inet:127.0.0.1:10042 inet:[::1]:10042", "http://127.0.0.1:10042/"),
    ],
)
def test_the_url_is_where_the_recorder_can_be_reached(root: Path, secret: str, listen: str, url: str) -> None:
    assert install(root, "--apply", sets=(f"reports_listen={listen}", secret)).status == 0
    assert f"auth_policy_server_url = {url}\n" in (root / DROP_IN).read_text()


PROXY = "passdb {{\n  driver = static\n  args = proxy=y host=192.0.2.3{0}\n}}\n"


@pytest.mark.parametrize(
    ("own", "place", "said"),
    [
        (
            "auth_policy_server_url = http://user:word@127.0.0.1:8084/\nauth_policy_hash_nonce = salt\n", "1",
            "auth_policy_server_url is http://127.0.0.1:8084/, and Dovecot reports to one server alone. Use",
        ),
        (PROXY.format(" nopassword=y"), "3", "passdb static has nopassword: Dovecot reports a success whatever"),
        (PROXY.format(" password=x"), "3", "passdb static has proxy: its logins go on to another host"),
        ("passdb {\n  driver = static\n  args = nopassword=y\n}\n", "3", "passdb static has nopassword"),
        (PROXY.format(" password="), "3", "passdb static has an empty password"),
        (
            "passdb {\n  driver = static\n  args = nopassword=y\n  result_success = continue\n}\n", "3",
            "passdb static has nopassword",
        ),
        (
            "passdb {\n  driver = passwd-file\n  args = /x\n  override_fields = nopassword=y\n}\n", "4",
            "passdb passwd-file has nopassword",
        ),
        (
            "plugin {\n  last_login_dict = redis:host=127.0.0.1:port=6379\n  last_login_key = pbs:login:%{rip}\n}\n"
            "protocol imap {\n  mail_plugins = last_login\n}\n", "2", "the last_login plugin records logins without",
        ),
    ],
    ids=["weakforced", "a blind proxy", "a proxy", "no passwords", "empty", "no second look",
         "no passwords by override", "last_login"],
)  # fmt: skip
def test_where_reports_must_not_be_recorded_the_line_is_named_and_nothing_is_written(
    root: Path, own: str, place: str, said: str
) -> None:
    only_23(root)
    refused = assert_named_and_nothing_written(root, install, OWN, own, place, said)
    assert "word" not in refused.output.replace("password", "")


def test_a_proxy_that_checks_passwords_reports_where_the_settings_say_so(root: Path) -> None:
    only_23(root)
    write(root, OWN, PROXY.format(" password=x"))
    assert install(root, "--apply", sets=("record_proxied_logins=yes",)).status == 0


def test_a_database_that_may_answer_it_is_named_to_be_looked_at(root: Path) -> None:
    only_23(root)
    queries = write(root, "/etc/dovecot/sql.conf", "password_query = SELECT pw, 'y' AS proxy, nopassword FROM u\n")
    write(root, OWN, f"passdb {{\n  driver = sql\n  args = {queries}\n}}\n")
    shown = install(root)
    assert shown.status == 0
    assert f"note: {queries}:1: passdb sql may answer nopassword: such a login is reported as a" in shown.output
    assert f"note: {queries}:1: passdb sql may answer proxy: such a login is not recorded" in shown.output


@pytest.mark.parametrize("lacking", [LISTENS, CHECKS])
def test_settings_with_which_the_recorder_does_not_start_are_refused(root: Path, lacking: str) -> None:
    sets = tuple(each for each in (LISTENS, CHECKS) if each != lacking)
    refused = run(HOOK, "--root", str(root), "--reports", "--apply", sets=sets)
    assert refused.status == os.EX_CONFIG
    assert "reports_check_passwords = yes if this Dovecot checks every password itself" in refused.output


@pytest.mark.parametrize("word", ["Authorization: a # b", 'Authorization: "x"', "a b", "$x"])
def test_a_secret_that_dovecot_would_read_as_another_is_refused(root: Path, tmp_path: Path, word: str) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{word}\n")
    refused = install(root, sets=(f"reports_secret_file={file}",))
    assert refused.status == os.EX_CONFIG
    assert "expected a first line of `Authorization: Bearer `" in refused.output
    assert word not in refused.output.replace("Authorization: Bearer", "")


def test_beside_the_script_reports_are_harmless(root: Path) -> None:
    only_23(root)
    script = "script-login /usr/local/lib/pbs-policy/pbs-postlogin imap"
    write(root, OWN, f"service imap {{\n  executable = imap own\n}}\nservice own {{\n  executable = {script}\n}}\n")
    shown = install(root)
    assert shown.status == 0
    assert f"note: {root}{OWN}:5: imap logins run pbs-postlogin, too, and are recorded twice" in shown.output


def test_what_was_copied_by_hand_is_taken_out_and_a_policy_server_of_the_sites_own_stays(root: Path) -> None:
    version = "2.3" if dovecot_version() < (2, 4) else "2.4"
    place = write(
        root, f"/{DROP_IN}", "# ours\nauth_debug = no\n" + shipped(f"dovecot-hooks/report-{version}.conf").read_text()
    )
    write(root, f"/{SECRET}", f"auth_policy_server_api_header = {HEADER}\n", 0o600)
    assert install(root, "--remove", "--apply").status == 0
    left = read_dovecot(Host(), f"{root}/etc/dovecot/dovecot.conf")
    assert read_reports(left) is None
    assert "auth_policy" not in "".join(f"{each.name}{each.blocks}" for each in left.written)
    assert "auth_debug = no" in place.read_text()
    own = write(root, OWN, "auth_policy_server_url = http://127.0.0.1:8084/\nauth_policy_hash_nonce = salt\n")
    before = own.read_bytes()
    install(root, "--remove", "--apply")
    assert own.read_bytes() == before


def test_instead_of_the_script_that_was_installed_before_it_is_reports_until_all_is_taken_out(
    root: Path, secret: str
) -> None:
    before = snapshot(root)
    assert run(HOOK, "--root", str(root), "--apply").status == 0
    assert install(root, "--apply", sets=(secret,)).status == 0
    config = read_dovecot(Host(), f"{root}/etc/dovecot/dovecot.conf")
    assert read_reports(config) is not None
    assert find_hooks(config) == []
    assert install(root, "--remove", "--apply").status == 0
    assert snapshot(root) == before
