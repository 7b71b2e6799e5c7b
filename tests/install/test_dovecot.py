"""`pbs-policy install-hook` in a tree: the script and the drop-in, the plugin, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pbs_policy.demo.dovecot import dovecot_version
from pbs_policy.install.dovecot import PYTHON
from pbs_policy.install.files import FileState, write_state
from pbs_policy.shipped import shipped
from tests.conftest import need
from tests.install.support import HOOK, Outcome, run, snapshot, write

LIB = "usr/local/lib/pbs-policy"
DROP_IN = "etc/dovecot/conf.d/99-pbs-policy.conf"
SETTINGS = "etc/pbs-policy/pbs-policy.conf"


def install(root: Path, *options: str, sets: tuple[str, ...] = (), file: Path | None = None) -> Outcome:
    return run(HOOK, "--root", str(root), *options, sets=sets, file=file)


def doveconf(root: Path, *arguments: str) -> str:
    command = ["doveconf", "-c", str(root / "etc/dovecot/dovecot.conf"), "-h", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_dry_run_shows_every_file_and_changes_nothing(root: Path) -> None:
    before = snapshot(root)
    shown = install(root)
    assert shown.status == 0
    assert snapshot(root) == before
    for path in (SETTINGS, DROP_IN):
        assert f"--- /dev/null\n+++ {root}/{path}\n" in shown.output
    for path, mode in ((f"{LIB}/pbs-postlogin", "-rwxr-xr-x"), (f"{LIB}/pbs_postlogin.py", "-rw-r--r--")):
        assert f"{root}/{path}: new, {mode} owner " in shown.output
    added = [line for line in shown.output.splitlines() if line.startswith("+") and not line.startswith("+++")]
    of_dovecot = shipped("dovecot-hooks/pbs-policy.conf").read_text().splitlines()
    assert [line[1:] for line in added[-len(of_dovecot) :]] == of_dovecot
    assert len(shown.output.splitlines()) < len(of_dovecot) + 30, "what concerns Dovecot is seen on one screen"
    assert f"would run: doveconf -c {root}/etc/dovecot/dovecot.conf -n\n" in shown.output
    assert "would run: /usr/bin/python3 -I -m compileall " in shown.output
    assert shown.output.endswith("Nothing was changed; --apply does it.\n")


def test_apply_puts_all_of_it_in_place_once_and_remove_takes_it_out(root: Path) -> None:
    before = snapshot(root)
    done = install(root, "--apply")
    assert done.status == 0
    assert "Now: doveadm reload\n" in done.output
    script = root / LIB / "pbs-postlogin"
    assert script.read_bytes() == shipped("dovecot-hooks/pbs-postlogin").read_bytes()
    assert script.stat().st_mode & 0o777 == 0o755
    assert (root / LIB / "pbs_postlogin.py").read_bytes() == shipped("dovecot-hooks/pbs_postlogin.py").read_bytes()
    assert (root / DROP_IN).read_bytes() == shipped("dovecot-hooks/pbs-policy.conf").read_bytes()
    assert doveconf(root, "service/imap/executable") == "imap imap-postlogin"
    after = snapshot(root)
    assert install(root, "--apply").output == "Nothing to do: everything is in place.\n"
    assert snapshot(root) == after
    assert install(root, "--remove", "--apply").status == 0
    assert snapshot(root) == before


def test_a_script_that_a_package_has_put_in_place_is_the_packages_to_write(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path_factory.mktemp("dist-packages")
    share = package / "share/dovecot-hooks"
    shutil.copytree(shipped("dovecot-hooks"), share)
    for name in ("pbs-postlogin", "pbs_postlogin.py"):
        (root / LIB).mkdir(parents=True, exist_ok=True)
        (share / name).rename(root / LIB / name)
        (share / name).symlink_to(root / LIB / name)
    monkeypatch.setattr("pbs_policy.shipped._PACKAGE", package)
    before, script = snapshot(root), snapshot(root / LIB)
    shown = install(root)
    assert f"+++ {root}/{DROP_IN}\n" in shown.output
    assert "compileall" not in shown.output
    assert install(root, "--apply").status == 0
    assert snapshot(root / LIB) == script
    assert install(root, "--remove", "--apply").status == 0
    assert snapshot(root) == before


def test_the_drop_in_is_the_last_to_come_and_the_first_to_go(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def write_and_note(path: Path, state: FileState) -> None:
        written.append(path.name)
        write_state(path, state)

    monkeypatch.setattr("pbs_policy.install.plan.write_state", write_and_note)
    install(root, "--apply")
    assert written[-1] == "99-pbs-policy.conf"
    assert written.index("pbs_postlogin.py") < written.index("pbs-postlogin"), "the script needs its module"
    removed = install(root, "--remove", "--apply").output.splitlines()
    assert removed[0] == f"removed: {root}/{DROP_IN}"


def test_the_compiled_module_is_the_one_that_python_takes(root: Path) -> None:
    install(root, "--apply")
    [compiled] = (root / LIB / "__pycache__").iterdir()
    os.utime(root / LIB / "pbs_postlogin.py", (1, 1))  # a copy of the tree, or a restored backup
    said = subprocess.run(
        [
            *(PYTHON, "-ISv", "-c"),
            "from _frozen_importlib_external import SourceFileLoader as Loader; "
            f"Loader('pbs_postlogin', '{root / LIB}/pbs_postlogin.py').get_code('pbs_postlogin')",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert f"code object from {root}/{LIB}/pbs_postlogin.py" not in said, "it was compiled again"
    assert f"{compiled} matches" in said


def test_what_compileall_makes_after_an_upgrade_of_python_goes_too(root: Path) -> None:
    before = snapshot(root)
    install(root, "--apply")
    subprocess.run([PYTHON, "-m", "compileall", "-q", "-f", root / LIB], check=True)
    write(root, f"/{LIB}/__pycache__/pbs_postlogin.cpython-399.pyc", "")
    assert "cpython-3" in install(root, "--apply").output, "it is compiled anew"
    subprocess.run([PYTHON, "-m", "compileall", "-q", "-f", root / LIB], check=True)
    assert install(root, "--remove", "--apply").status == 0
    assert snapshot(root) == before


def test_paths_and_user_are_those_of_the_options(root: Path) -> None:
    write(root, "/etc/passwd", "hook:x:990:990::/:\n")
    write(root, "/srv/hook.conf", "ttl = 1h\n")
    options = ("--user", "hook", "--lib-dir", "/opt/hook", "--settings", "/srv/hook.conf")
    before = snapshot(root)
    assert install(root, *options, "--apply").status == 0
    assert doveconf(root, "service/pop3-postlogin/user") == "hook"
    assert doveconf(root, "service/pop3-postlogin/executable") == (
        "script-login /opt/hook/pbs-postlogin -c /srv/hook.conf pop3"
    )
    assert (root / "opt/hook/pbs-postlogin").exists()
    assert (root / "srv/hook.conf").read_text() == "ttl = 1h\n", "a settings file that is there is left alone"
    assert install(root, "--remove", "--apply").status == 0, "where everything is stands in the record"
    assert snapshot(root) == before


def test_the_settings_file_of_the_command_line_is_the_scripts(root: Path) -> None:
    shown = install(root, file=Path("/srv/pbs.conf"))
    assert "executable = script-login /usr/local/lib/pbs-policy/pbs-postlogin -c /srv/pbs.conf imap" in shown.output


def test_without_the_user_the_command_that_makes_it_is_said(root: Path) -> None:
    write(root, "/etc/passwd", "root:x:0:0::/root:/bin/sh\n")
    useradd = "First: useradd --system --no-create-home --shell /usr/sbin/nologin pbs-policy"
    assert f"before --apply: there is no user pbs-policy to run the script. {useradd}" in install(root).output
    before = snapshot(root)
    refused = install(root, "--apply")
    assert refused.status == os.EX_CONFIG
    assert useradd in refused.output
    assert snapshot(root) == before


def test_settings_that_the_user_may_not_read_are_pointed_out(root: Path) -> None:
    write(root, "/etc/passwd", "pbs-policy:x:990:990::/:\n")
    write(root, SETTINGS, "", mode=0o600)
    assert f"note: {root}/{SETTINGS}: pbs-policy may not read it" in install(root).output


NOT_INCLUDED = "is not included (!include conf.d/*.conf)"


@pytest.mark.parametrize(
    ("options", "name", "text", "said"),
    [
        ((), "99-zz.conf", "service imap {\n  executable = imap\n}\n",
         "doveconf reads service/imap/executable = imap, not imap imap-postlogin: either a file"),
        ((), "20-bad.conf", "no_such_setting = 1\n", "no_such_setting"),
        ((), "../dovecot.conf", "#!include conf.d/*.conf\n", NOT_INCLUDED),
        (("--last-login",), "../dovecot.conf", "#!include conf.d/*.conf\n", NOT_INCLUDED),
    ],
    ids=["a later file wins", "Dovecot refuses it", "the drop-in is not included", "nor that of the plugin"],
)  # fmt: skip
def test_what_dovecot_reads_otherwise_or_refuses_is_put_back(
    root: Path, options: tuple[str, ...], name: str, text: str, said: str
) -> None:
    file = root / "etc/dovecot/conf.d" / name
    file.write_text(file.read_text().replace(text[1:], text) if file.exists() else text)
    before = snapshot(root)
    refused = install(root, *options, "--apply")
    assert refused.status == os.EX_CONFIG
    assert said in refused.output
    assert snapshot(root) == before


def test_a_drop_in_of_an_earlier_installation_by_hand_comes_back(root: Path) -> None:
    write(root, f"/{DROP_IN}", "# by hand\n", mode=0o640)
    write(root, f"/{LIB}/pbs-postlogin", "#!/bin/sh\n", mode=0o755)
    before = snapshot(root)
    assert "-# by hand\n" in install(root).output
    assert install(root, "--apply").status == 0
    assert install(root, "--remove", "--apply").status == 0
    assert snapshot(root) == before


def test_the_plugin_follows_the_settings(root: Path) -> None:
    before = snapshot(root)
    sets = ("redis_url=redis://192.0.2.1:7000/0", "ttl=2h", "key_prefix=x:")
    assert install(root, "--last-login", "--apply", sets=sets).status == 0
    text = (root / DROP_IN).read_text()
    if dovecot_version() < (2, 4):
        assert "redis:host=192.0.2.1:port=7000:expire_secs=7200:timeout_msecs=500\n" in text
        assert "last_login_key = x:login:%{rip}\n" in text
    else:
        assert "redis_host = 192.0.2.1\n    redis_port = 7000\n" in text
        assert "redis_key_prefix = x:login:\n" in text
        assert "redis_expire = 7200 secs\n" in text
    assert not (root / "usr").exists(), "no script"
    assert install(root, "--remove", "--apply").status == 0
    assert snapshot(root) == before


@pytest.mark.parametrize(
    "setting",
    [
        "redis_url=rediss://192.0.2.1:6379/0",
        "redis_url=unix:///run/redis.sock",
        "redis_url=redis://redis.example.com:6379/0",
        "redis_url=redis://127.0.0.1:6379/1",
        "redis_password_file=/etc/redis-password",
        "sender_match=address",
        "services=pop3",
        "ipv6_prefix=64",
        "key_prefix=%:",
    ],
)
def test_settings_that_the_plugin_cannot_follow_are_refused(root: Path, setting: str) -> None:
    refused = install(root, "--last-login", sets=(setting,))
    assert refused.status == os.EX_CONFIG
    assert setting.partition("=")[0] in refused.output
    assert "Use the script" in refused.output


def test_from_the_script_to_the_plugin_and_out_again(root: Path) -> None:
    before = snapshot(root)
    assert install(root, "--apply").status == 0
    assert install(root, "--last-login", "--apply").status == 0
    assert doveconf(root, "service/imap/executable") == "imap"
    assert (root / LIB / "pbs-postlogin").exists(), "a Dovecot that was not reloaded still needs it"
    assert install(root, "--remove", "--apply").status == 0
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--user", "pbs policy"), "without blanks or quotes"),
        (("--lib-dir", "/opt/a b"), "without blanks or quotes"),
        (("--settings", '/a"b'), "without blanks or quotes"),
        (("--lib-dir", "lib"), "expected an absolute path"),
        (("--root", "/nowhere/at/all"), "there is no such folder"),
    ],
)
def test_wrong_usage_is_refused(root: Path, options: tuple[str, ...], said: str) -> None:
    refused = install(root, *options)
    assert refused.status == os.EX_USAGE
    assert said in refused.output


def test_where_there_is_no_dovecot_the_error_says_where_it_was_looked_for(tmp_path: Path) -> None:
    need("dovecot")
    refused = install(tmp_path)
    assert refused.status == os.EX_CONFIG
    assert f"{tmp_path}/etc/dovecot/dovecot.conf: there is no such file" in refused.output
