"""A tree, the commands, what is in it then; once more, and nothing changes; removed, and every byte is as it was."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pbs_policy.dovecot.doveconf import read_dovecot
from pbs_policy.dovecot.logins import find_hooks
from pbs_policy.dovecot.reports import read_reports
from pbs_policy.host import Host
from pbs_policy.install import postfix
from pbs_policy.install.dovecot import PYTHON
from pbs_policy.install.files import FileState, write_state
from pbs_policy.postfix.configuration import PostfixConfig
from pbs_policy.shipped import shipped
from tests.install.support import (
    CONF_D,
    DROP_IN,
    INET_CHECK,
    LIB,
    MAIN_CF,
    MASTER,
    MASTER_CF,
    SETTINGS,
    VERSION,
    Files,
    age,
    arrange,
    main_cf,
    only_23,
    pbs,
    postconf,
    snapshot,
)

SECRET = f"{CONF_D}/pbs-policy-secret.conf.ext"
SESSIONS = f"{CONF_D}/99-pbs-policy-sessions.conf"
HEADER = "Authorization: Bearer 3f0c1b7e5a9d"

SCRIPT, PLUGIN, POSTFIX = "install-hook", "install-hook --last-login", "install-postfix"
REPORTS = "install-hook --reports --set reports_listen=inet:127.0.0.1:10041 --set reports_check_passwords=yes"
REPORTS_BY_SECRET = f"{REPORTS} --set reports_secret_file=ROOT/secret"
AT_SECRET: Files = {"/secret": (f"{HEADER}\n", 0o640)}
OTHER_REDIS = "--set redis_url=redis://192.0.2.1:7000/0 --set ttl=2h --set key_prefix=x:"

BEFORE = "permit_mynetworks permit_sasl_authenticated permit_auth_destination"
BY_EXAMPLE = main_cf(shipped("postfix-examples/main.cf.inet").read_text())
CLOSED = "{} inet n - y - - smtpd\n  -o smtpd_client_restrictions=permit_mynetworks,reject\n"
LINES = "smtpd_relay_restrictions =\n\tpermit_mynetworks,\n# why\n\n    reject_unauth_destination\nx =\n  # no end"


def example(name: str) -> str:
    return shipped(f"dovecot-hooks/{name}").read_text()


def asked_at(listener: str) -> str:
    return INET_CHECK.replace("inet:127.0.0.1:10040", listener)


Row = tuple[Files, list[str], dict[str, str]]
"""What is in the tree besides, the command lines to apply, and what is then in files, or what Dovecot reads for a
name ("" is Postfix's list). A path that ends with `?` is not there; a file that ends with `~` says this among others.
"""

HOOKS: dict[str, Row] = {
    "the script": (
        {}, [SCRIPT],
        {
            f"{LIB}/pbs-postlogin": example("pbs-postlogin"), f"{LIB}/pbs_postlogin.py": example("pbs_postlogin.py"),
            DROP_IN: example("pbs-policy.conf"), "service/imap/executable": "imap imap-postlogin",
        },
    ),
    "user and paths of the options": (
        {"/etc/passwd": "hook:x:990:990::/:\n", "/srv/hook.conf": "ttl = 1h\n"},
        [f"{SCRIPT} --user hook --lib-dir /opt/hook --settings /srv/hook.conf"],
        {
            "service/pop3-postlogin/user": "hook", "/opt/hook/pbs-postlogin": example("pbs-postlogin"),
            "service/pop3-postlogin/executable": "script-login /opt/hook/pbs-postlogin -c /srv/hook.conf pop3",
            "/srv/hook.conf": "ttl = 1h\n",
        },
    ),
    "installed by hand before": (
        {DROP_IN: ("# by hand\n", 0o640), f"{LIB}/pbs-postlogin": ("#!/bin/sh\n", 0o755)}, [SCRIPT],
        {f"{LIB}/pbs-postlogin": example("pbs-postlogin"), DROP_IN: example("pbs-policy.conf")},
    ),
    "the plugin, which follows the settings": (
        {}, [f"{PLUGIN} {OTHER_REDIS}"],
        {
            f"{DROP_IN}~": "redis:host=192.0.2.1:port=7000:expire_secs=7200:timeout_msecs=500\n"
            if VERSION == "2.3" else "redis_host = 192.0.2.1\n    redis_port = 7000\n",
            f"{DROP_IN}~~": "last_login_key = x:login:%{rip}\n" if VERSION == "2.3" else "redis_expire = 7200 secs\n",
            "/usr?": "",
        },
    ),
    "from the script, which a running Dovecot still needs, to the plugin": (
        {}, [SCRIPT, PLUGIN],
        {"service/imap/executable": "imap", f"{LIB}/pbs-postlogin": example("pbs-postlogin")},
    ),
    "from the script to reports": (
        AT_SECRET, [SCRIPT, REPORTS_BY_SECRET], {"service/imap/executable": "imap", f"{SECRET}~": HEADER},
    ),
    "reports with a secret": (
        AT_SECRET, [REPORTS_BY_SECRET],
        {
            DROP_IN: example(f"report-{VERSION}.conf"), "auth_policy_server_url": "http://127.0.0.1:10041/",
            "auth_policy_server_api_header": HEADER, f"{SESSIONS}?": "",
        },
    ),
    "reports by a recorder that may ask who is connected": (
        {"/etc/group": "root:x:0:\nmail-policy:x:998:\n"}, [f"{REPORTS} --user mail-policy"],
        {SESSIONS: example("sessions.conf").replace("group = pbs-policy", "group = mail-policy"), f"{SECRET}?": ""},
    ),
    "reports by one that does not": (
        {"/etc/group": "pbs-policy:x:998:\n"}, [f"{REPORTS} --set renew_sessions=0"], {f"{SESSIONS}?": ""},
    ),
    **{
        listen: (
            {}, [f"{REPORTS} --set 'reports_listen={listen}'"], {f"{DROP_IN}~": f"auth_policy_server_url = {url}\n"},
        )
        for listen, url in {
            "inet:0.0.0.0:10099": "http://127.0.0.1:10099/",
            "inet:[::1]:10041": "http://[::1]:10041/",
            "inet:127.0.0.1:10042 inet:[::1]:10042": "http://127.0.0.1:10042/",
        }.items()
    },
}  # fmt: skip

MAILS: dict[str, Row] = {
    "Debian's main.cf": ({}, [POSTFIX], {"": f"{BEFORE} {INET_CHECK} defer_unauth_destination"}),
    **{
        listen: ({}, [f"{POSTFIX} --set 'listen={listen}'"], {"": asked_at(named)})
        for listen, named in {
            "inet:127.0.0.1:12345": "inet:127.0.0.1:12345",
            "inet:0.0.0.0:12345": "inet:127.0.0.1:12345",
            "inet:[::]:12345": "inet:[::1]:12345",
            "inet:192.0.2.1:12345": "inet:192.0.2.1:12345",
            "unix:/var/spool/postfix/pbs-policy/policy": "unix:pbs-policy/policy",
            "unix:/run/pbs.sock inet:127.0.0.1:12345": "inet:127.0.0.1:12345",
        }.items()
    },
    "listen in the settings of the tree": (
        {SETTINGS: "listen = inet:127.0.0.1:4711\n"}, [POSTFIX], {"": asked_at("inet:127.0.0.1:4711")},
    ),
    "another listen later": (
        {}, [POSTFIX, f"{POSTFIX} --set listen=inet:127.0.0.1:4711"], {"": asked_at("inet:127.0.0.1:4711")},
    ),
    "a list that is not set": (
        {MAIN_CF: main_cf("")}, [POSTFIX],
        {"": f"{BEFORE.replace(' ', ', ')}, {INET_CHECK}, defer_unauth_destination"},
    ),
    "a list over several lines, and a last line without its end": (
        {MAIN_CF: main_cf(LINES)}, [POSTFIX],
        {"": f"permit_mynetworks, permit_auth_destination, {INET_CHECK}, reject_unauth_destination"},
    ),
    **{
        port: ({MASTER: MASTER_CF + CLOSED.format(port)}, [POSTFIX], {"": INET_CHECK})
        for port in ("127.0.0.1:10025", "[::1]:10025", "10587")  # not for strangers: they may be refused there
    },
}  # fmt: skip


def assert_holds(root: Path, expected: dict[str, str]) -> None:
    for name, text in expected.items():
        place = root / name.strip("/?~")
        if name.endswith("?"):
            assert not place.exists()
        elif name.startswith("/"):
            assert text in place.read_text() if name.endswith("~") else text == place.read_text()
        elif not name:
            assert text in postconf(root / "etc/postfix", "-h", "smtpd_relay_restrictions")
        else:
            doveconf = ["doveconf", "-c", f"{root}/etc/dovecot/dovecot.conf", "-h", name]
            assert subprocess.run(doveconf, capture_output=True, text=True, check=True).stdout.strip() == text


@pytest.mark.parametrize("row", [*HOOKS.values(), *MAILS.values()], ids=[*HOOKS, *MAILS])
def test_applied_it_holds_once_more_nothing_changes_and_removed_all_is_as_it_was(root: Path, row: Row) -> None:
    files, lines, expected = row
    arrange(root, files)
    before = snapshot(root)
    command = lines[0].split()[0]
    for line in lines:
        now = snapshot(root)
        shown = pbs(root, line)
        assert shown.status == 0, shown.output
        assert shown.output.endswith("Nothing was changed; --apply does it.\n")
        assert snapshot(root) == now
        done = pbs(root, f"{line} --apply")
        assert done.status == 0, done.output
        assert done.output.endswith(f"Now: {'doveadm' if command == SCRIPT else 'postfix'} reload\n")
    assert_holds(root, expected)
    now = snapshot(root)
    assert pbs(root, f"{lines[-1]} --apply").output.endswith("Nothing to do: everything is in place.\n")
    assert snapshot(root) == now
    assert pbs(root, f"{command} --remove --apply").status == 0
    assert snapshot(root) == before
    assert "Nothing to remove" in pbs(root, f"{command} --remove --apply").output


ORDERS = sorted(set(itertools.permutations([SCRIPT, SCRIPT, POSTFIX, POSTFIX])))


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_the_tree_is_as_it_was_after_any_order_of_apply_and_remove(root: Path, order: tuple[str, ...]) -> None:
    before = snapshot(root)
    applied: set[str] = set()
    for command in order:
        line = f"{command} --apply{' --remove' if command in applied else ''}"
        applied.add(command)
        assert pbs(root, line).status == 0
        now = snapshot(root)
        assert "Nothing to " in pbs(root, line).output
        assert snapshot(root) == now
    assert snapshot(root) == before


# --- what is shown


def test_the_dry_run_shows_a_diff_of_what_concerns_dovecot_on_one_screen_and_the_commands(root: Path) -> None:
    shown = pbs(root, SCRIPT).output
    for path in (SETTINGS, DROP_IN):
        assert f"--- /dev/null\n+++ {root}{path}\n" in shown
    for path, mode in ((f"{LIB}/pbs-postlogin", "-rwxr-xr-x"), (f"{LIB}/pbs_postlogin.py", "-rw-r--r--")):
        assert f"{root}{path}: new, {mode} owner " in shown
    of_dovecot = example("pbs-policy.conf").splitlines()
    added = [line for line in shown.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert [line[1:] for line in added[-len(of_dovecot) :]] == of_dovecot
    assert len(shown.splitlines()) < len(of_dovecot) + 30
    assert f"would run: doveconf -c {root}/etc/dovecot/dovecot.conf -n\n" in shown
    assert "would run: /usr/bin/python3 -I -m compileall " in shown
    own = pbs(root, f"{SCRIPT} --settings /srv/pbs.conf").output
    assert f"executable = script-login {LIB}/pbs-postlogin -c /srv/pbs.conf imap" in own


def test_the_dry_run_shows_a_diff_of_main_cf_and_the_command(root: Path) -> None:
    shown = pbs(root, POSTFIX).output
    assert f"--- {root}{MAIN_CF}\n+++ {root}{MAIN_CF}\n" in shown
    assert (
        "\n-smtpd_relay_restrictions = permit_mynetworks permit_sasl_authenticated defer_unauth_destination\n"
        f"+smtpd_relay_restrictions = {BEFORE} {INET_CHECK} defer_unauth_destination\n"
    ) in shown
    assert f"would run: postconf -c {root}/etc/postfix -e 'smtpd_relay_restrictions = " in shown


def test_the_secret_is_for_root_alone_and_is_never_shown(root: Path) -> None:
    arrange(root, AT_SECRET)
    said = pbs(root, REPORTS_BY_SECRET).output + pbs(root, f"{REPORTS_BY_SECRET} --apply").output
    assert (root / SECRET.lstrip("/")).stat().st_mode & 0o777 == 0o600
    said += pbs(root, f"{REPORTS} --remove").output + pbs(root, f"{REPORTS} --remove --apply").output
    assert HEADER.split()[-1] not in said
    assert f"{root}{SECRET}: what is in it is not shown" in said


def test_a_socket_that_only_a_restart_opens_is_pointed_out(root: Path) -> None:
    arrange(root, {"/etc/group": "pbs-policy:x:998:\n"})
    note = "note: the recorder may ask who is connected once Dovecot is restarted"
    assert note in pbs(root, f"{REPORTS} --apply").output
    assert note not in pbs(root, f"{REPORTS} --apply").output


# --- what stands there already


def test_a_check_that_was_put_there_by_hand_is_left_alone(root: Path) -> None:
    relay, recipient = (f"smtpd_{name}_restrictions =" for name in ("relay", "recipient"))
    for written in (BY_EXAMPLE, BY_EXAMPLE.replace(relay, f"{relay}\n{recipient}")):
        arrange(root, {MAIN_CF: written})
        before = snapshot(root)
        assert pbs(root, f"{POSTFIX} --apply").output == "Nothing to do: everything is in place.\n"
        assert snapshot(root) == before


def test_the_check_is_the_one_of_the_example(root: Path) -> None:
    arrange(root, {"/example/main.cf": shipped("postfix-examples/main.cf.inet").read_text()})
    assert INET_CHECK in " ".join(postconf(root / "example", "-h", "smtpd_relay_restrictions").split())


def test_bytes_that_are_no_text_stay(root: Path) -> None:
    place = root / MAIN_CF.lstrip("/")
    place.write_bytes(place.read_bytes() + b"# Caf\xe9\nmail_name = Caf\xe9\n")
    age(place)
    before = snapshot(root)
    assert pbs(root, POSTFIX).status == 0
    assert pbs(root, f"{POSTFIX} --apply").status == 0
    assert place.read_bytes().endswith(b"# Caf\xe9\nmail_name = Caf\xe9\n")
    assert "Nothing to do" in pbs(root, f"{POSTFIX} --apply").output
    pbs(root, f"{POSTFIX} --remove --apply")
    assert snapshot(root) == before


def test_the_folder_of_a_socket_is_for_postfix_alone(root: Path) -> None:
    pbs(root, f"{POSTFIX} --apply --set listen=unix:/var/spool/postfix/pbs-policy/policy")
    assert (root / "var/spool/postfix/pbs-policy").stat().st_mode & 0o7777 == 0o2750


def test_a_proxy_that_checks_passwords_reports_where_the_settings_say_so(root: Path) -> None:
    only_23()
    proxy = "passdb {\n  driver = static\n  args = proxy=y host=192.0.2.3 password=x\n}\n"
    arrange(root, {f"{CONF_D}/20-own.conf": proxy})
    assert pbs(root, f"{REPORTS} --apply --set record_proxied_logins=yes").status == 0


def test_reports_instead_of_the_script_tell_no_hash_and_run_no_script(root: Path) -> None:
    for line in (SCRIPT, REPORTS):
        assert pbs(root, f"{line} --apply").status == 0
    config = read_dovecot(Host(), f"{root}/etc/dovecot/dovecot.conf")
    reports = read_reports(config)
    assert reports is not None
    assert not reports.tells_hash
    assert find_hooks(config) == []


# --- the script's own files


def test_a_script_that_a_package_has_put_in_place_is_the_packages_to_write(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path_factory.mktemp("dist-packages")
    share, lib = package / "share/dovecot-hooks", root / LIB.lstrip("/")
    shutil.copytree(shipped("dovecot-hooks"), share)
    lib.mkdir(parents=True)
    for name in ("pbs-postlogin", "pbs_postlogin.py"):
        (share / name).rename(lib / name)
        (share / name).symlink_to(lib / name)
    monkeypatch.setattr("pbs_policy.shipped._PACKAGE", package)
    before, script = snapshot(root), snapshot(lib)
    shown = pbs(root, SCRIPT).output
    assert f"+++ {root}{DROP_IN}\n" in shown
    assert "compileall" not in shown
    assert pbs(root, f"{SCRIPT} --apply").status == 0
    assert snapshot(lib) == script
    assert pbs(root, f"{SCRIPT} --remove --apply").status == 0
    assert snapshot(root) == before


def test_the_drop_in_is_the_last_to_come_and_the_first_to_go(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def write_and_note(path: Path, state: FileState) -> None:
        written.append(path.name)
        write_state(path, state)

    monkeypatch.setattr("pbs_policy.install.plan.write_state", write_and_note)
    pbs(root, f"{SCRIPT} --apply")
    assert written[-1] == "99-pbs-policy.conf"
    assert written.index("pbs_postlogin.py") < written.index("pbs-postlogin"), "the script needs its module"
    removed = pbs(root, f"{SCRIPT} --remove --apply").output.splitlines()
    assert removed[0] == f"removed: {root}{DROP_IN}"


def test_the_compiled_module_is_the_one_that_python_takes(root: Path) -> None:
    pbs(root, f"{SCRIPT} --apply")
    module = root / LIB.lstrip("/") / "pbs_postlogin.py"
    [compiled] = (module.parent / "__pycache__").iterdir()
    os.utime(module, (1, 1))  # a copy of the tree, or a restored backup
    load = (
        "from _frozen_importlib_external import SourceFileLoader as Loader; "
        f"Loader('pbs_postlogin', '{module}').get_code('pbs_postlogin')"
    )
    said = subprocess.run([PYTHON, "-ISv", "-c", load], capture_output=True, text=True, check=True).stderr
    assert f"code object from {module}" not in said, "it was compiled again"
    assert f"{compiled} matches" in said


def test_what_compileall_makes_after_an_upgrade_of_python_goes_too(root: Path) -> None:
    before, lib = snapshot(root), root / LIB.lstrip("/")
    pbs(root, f"{SCRIPT} --apply")
    subprocess.run([PYTHON, "-m", "compileall", "-q", "-f", lib], check=True)
    arrange(root, {f"{LIB}/__pycache__/pbs_postlogin.cpython-399.pyc": ""})
    assert "cpython-3" in pbs(root, f"{SCRIPT} --apply").output, "it is compiled anew"
    subprocess.run([PYTHON, "-m", "compileall", "-q", "-f", lib], check=True)
    assert pbs(root, f"{SCRIPT} --remove --apply").status == 0
    assert snapshot(root) == before


def test_a_result_that_postfix_reads_otherwise_is_put_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, honest = snapshot(root), postfix.read_config

    def lie(folder: Path) -> PostfixConfig:
        config = honest(folder)
        installed = folder == root / "etc/postfix" and "10040" in (folder / "main.cf").read_text()
        return replace(config, written={"smtpd_relay_restrictions": "permit"}) if installed else config

    monkeypatch.setattr(postfix, "read_config", lie)
    refused = pbs(root, f"{POSTFIX} --apply")
    assert refused.status == os.EX_CONFIG
    assert "postconf reads permit, not " in refused.output
    assert "Everything was put back." in refused.output
    assert snapshot(root) == before
