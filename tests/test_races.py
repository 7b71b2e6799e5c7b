"""What root does while another user waits for a chance: no file of root becomes theirs, in 50 tries, and in 200 of
`make test-all`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pbs_policy.address import ClientAddresses
from pbs_policy.cli.transfer import _replacing
from pbs_policy.doctor import Doctor, trial
from pbs_policy.doctor.script import check_script, script_settings
from pbs_policy.dovecot.logins import Hook
from pbs_policy.host import Host, NotLookedAt
from pbs_policy.install.files import InstallError, Tree
from pbs_policy.install.record import InstallRecord
from pbs_policy.postfix.listener import Listener, ListenError
from pbs_policy.service.sockets import open_listeners, remove_paths
from pbs_policy.settings import load
from pbs_policy.settings.sources import SettingsError
from pbs_policy.trust import Untrusted
from tests.conftest import need

PYTHON = Path("/usr/bin/python3")
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to lose: run this as root"),
    pytest.mark.skipif(not PYTHON.exists(), reason="the other user's process needs it: apt-get install python3"),
]
times = pytest.mark.parametrize("tries", [50, pytest.param(200, marks=pytest.mark.long)])
NOBODY = 65534

# Whatever has this name in a folder below `below` becomes a link to `victim`, as soon as nobody may do that.
_ATTACK = """
import os, stat, sys
below, name, victim = sys.argv[1:]
link = f"{below}/nobody/link"
os.symlink(victim, link)
print("waiting", flush=True)
while True:
    for folder in os.listdir(below):
        path = f"{below}/{folder}/{name}"
        while True:
            try:
                if not stat.S_ISLNK(os.lstat(path).st_mode):
                    os.rename(link, path)
                    os.symlink(victim, link)
            except PermissionError:
                if folder != "nobody" and os.path.exists(f"{below}/{folder}"):
                    continue
            except OSError:
                pass
            break
"""


@pytest.fixture
def place(victim: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder as /tmp is, where temporary folders are made, with one of nobody in it; the victim is elsewhere."""
    assert victim.exists()
    with tempfile.TemporaryDirectory(prefix="pbs-") as name:
        folder = Path(name)
        (folder / "nobody").mkdir()
        os.chown(folder / "nobody", NOBODY, NOBODY)
        folder.chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield folder


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that is root's alone."""
    file = tmp_path / "victim"
    file.write_text("a secret\n")
    file.chmod(0o600)
    return file


def is_unharmed(victim: Path) -> bool:
    """Whether it still is root's alone. If not, it is put right for the next try."""
    about = victim.stat()
    os.chown(victim, 0, 0)
    victim.chmod(0o600)
    return (about.st_uid, about.st_gid, about.st_mode & 0o7777) == (0, 0, 0o600)


@contextmanager
def attack(place: Path, name: str, victim: Path) -> Iterator[None]:
    """Nobody's process, waiting."""
    command = [str(PYTHON), "-c", _ATTACK, str(place), name, str(victim)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, user=NOBODY, group=NOBODY, extra_groups=[]
    ) as attacker:  # fmt: skip
        assert attacker.stdout is not None
        assert attacker.stdout.readline() == b"waiting\n"
        try:
            yield
        finally:
            assert attacker.poll() is None, "it was there all the time"
            attacker.kill()


@pytest.fixture
def slow_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root is a little late whenever it gives something away, as it is on a busy machine: then the race that can be
    won is won nearly always."""
    for name in ("chown", "fchown", "chmod", "fchmod", "lchown"):
        monkeypatch.setattr(os, name, _later(getattr(os, name)))


def _later(function: Callable[..., None]) -> Callable[..., None]:
    def call(*arguments: Any, **named: Any) -> None:
        time.sleep(0.0005)
        function(*arguments, **named)

    return call


def hook_with(settings_file: Path, script: str = "/bin/true") -> Hook:
    return Hook(
        "pop3", "pop3-postlogin", script, ("-c", str(settings_file), "pop3"), "nobody", "99-pbs-policy.conf:23"
    )


CLIENT = "192.0.2.7"
TRIAL = trial.Trial(CLIENT, ClientAddresses().parse(CLIENT), "doctor@example.invalid")


@times
@pytest.mark.usefixtures("slow_root")
def test_the_scripts_user_wins_no_file_of_roots_from_a_trial(place: Path, victim: Path, tries: int) -> None:
    hook = hook_with(Path("/dev/null"))
    with attack(place, "settings.conf", victim):
        unharmed = 0
        for _ in range(tries):
            assert trial._run_script(TRIAL, hook, Host()) == ""
            unharmed += is_unharmed(victim)
    assert unharmed == tries
    assert [path.name for path in place.iterdir()] == ["nobody"]


def test_the_scripts_settings_are_read_with_the_rights_of_its_user(place: Path, victim: Path) -> None:
    theirs = place / "nobody/script.conf"
    theirs.symlink_to(victim)
    with pytest.raises(NotLookedAt, match=r"script\.conf: Permission denied$"):
        trial._run_script(TRIAL, hook_with(theirs), Host())
    with pytest.raises(SettingsError, match=r"script\.conf: Permission denied$"):
        script_settings(hook_with(theirs), Host())
    theirs.unlink()
    theirs.write_text("ttl = 7m\n")
    os.chown(theirs, NOBODY, NOBODY)
    assert script_settings(hook_with(theirs), Host())[0].ttl == 420
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_what_the_scripts_settings_name_is_opened_with_the_rights_of_its_user(place: Path, victim: Path) -> None:
    theirs = place / "nobody/script.conf"
    theirs.write_text(f"redis_password_file = {victim}\n")
    os.chown(theirs, NOBODY, NOBODY)
    settings, values = load(Path("/dev/null"))
    doctor = Doctor(settings, values)
    doctor.hooks = [hook_with(theirs)]
    (finding,) = doctor._examine_script_access()
    assert (finding.check, finding.level) == ("store.write", "unknown")
    assert finding.seen.endswith(f"redis_password_file: {victim}: Permission denied")


def test_the_script_of_a_trial_has_not_roots_terminal(place: Path) -> None:
    script = place / "script"
    script.write_text("#!/bin/sh\ncut -d' ' -f6 /proc/$$/stat >&2\n")
    script.chmod(0o755)
    said = trial._run_script(TRIAL, hook_with(Path("/dev/null"), str(script)), Host())
    assert re.fullmatch(r"the script says: [0-9]+", said)
    assert int(said.split()[-1]) != os.getsid(0)


def test_a_script_that_everybody_can_change_is_a_fault(place: Path) -> None:
    script = place / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o777)
    place.chmod(0o755)
    settings, values = load(Path("/dev/null"))
    findings = list(check_script([hook_with(Path("/dev/null"), str(script))], settings, values, Host()))
    (finding,) = [each for each in findings if each.check == "dovecot.script"]
    assert finding.level == "wrong"
    assert finding.seen.startswith(f"others can change what each login runs: {script}: can be changed by everybody")


@pytest.mark.parametrize(("mode", "who"), [(0o777, "everybody"), (0o775, "the group nogroup")])
def test_a_trial_is_not_made_where_others_can_change_its_folder(place: Path, mode: int, who: str) -> None:
    place.chmod(mode)
    os.chown(place, 0, NOBODY)
    with pytest.raises(NotLookedAt, match=rf"can be changed by {who} \(mode 0{mode:o}\): chmod [og]-w$"):
        trial._run_script(TRIAL, hook_with(Path("/dev/null")), Host())


@times
@pytest.mark.usefixtures("slow_root")
@pytest.mark.parametrize(("owner", "mode"), [(NOBODY, 0o755), (0, 0o1777)], ids=["of nobody", "of everybody"])
def test_who_can_change_a_sockets_folder_wins_no_file_of_roots(
    place: Path, victim: Path, owner: int, mode: int, tries: int
) -> None:
    folder = place / "sockets"
    folder.mkdir()
    folder.chmod(mode)
    os.chown(folder, owner, -1)
    listener = Listener(path=str(folder / "policy"))
    settings, _ = load(Path("/dev/null"), {}, ["unix_socket_mode=0666", "unix_socket_group=nogroup"])
    unharmed = opened = 0
    with attack(place, "policy", victim):
        for _ in range(tries):
            try:
                for each in open_listeners([listener], settings):
                    each.close()
                    opened += 1
            except ListenError:
                pass
            remove_paths([listener])
            unharmed += is_unharmed(victim)
    assert unharmed == tries
    assert (opened == 0) == (owner == NOBODY), "root makes no socket in the folder of another user"


def test_root_says_why_it_makes_no_socket_in_another_users_folder(tmp_path: Path) -> None:
    settings, _ = load(Path("/dev/null"), {}, [])
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", NOBODY, 0)
    with pytest.raises(ListenError) as refused:
        open_listeners([Listener(path=f"{tmp_path}/theirs/policy")], settings)
    assert str(refused.value) == (
        f"cannot listen on unix:{tmp_path}/theirs/policy: {tmp_path}/theirs: belongs to nobody, who can change it: "
        "chown root, or run the service as a user of its own"
    )


def test_an_export_goes_to_the_folder_that_was_there(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for each in (folder, elsewhere):
        each.mkdir()
    with _replacing(str(folder / "table.jsonl")) as stream:
        assert stream is not None
        folder.rename(tmp_path / "moved")
        folder.symlink_to(elsewhere)
        stream.write(b"a line\n")
    exported = tmp_path / "moved/table.jsonl"
    assert (exported.read_bytes(), exported.stat().st_mode & 0o777) == (b"a line\n", 0o600)
    assert list(elsewhere.iterdir()) == []


def test_root_exports_to_no_device_that_another_user_names(place: Path) -> None:
    (place / "nobody/table.jsonl").symlink_to("/dev/full")
    os.chown(place / "nobody/table.jsonl", NOBODY, -1, follow_symlinks=False)
    with pytest.raises(Untrusted), _replacing(str(place / "nobody/table.jsonl")):
        pass


@pytest.fixture
def lure(tmp_path: Path) -> Path:
    """A link in another user's folder to a folder that is root's alone."""
    (tmp_path / "secret").mkdir(mode=0o700)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/lure").symlink_to(tmp_path / "secret")
    for path in (tmp_path / "home", tmp_path / "home/lure"):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return tmp_path / "home/lure"


@pytest.mark.parametrize("folder", ["home/lure", "home/theirs", "home"])
def test_root_exports_behind_no_link_and_below_no_folder_of_another_user(lure: Path, folder: str) -> None:
    (lure.parent / "theirs").mkdir()
    (lure.parent / "theirs").chmod(0o755)
    with pytest.raises(Untrusted, match=r"belongs to nobody, .* let the shell write: pbs-policy export > FILE$"):
        with _replacing(str(lure.parent.parent / folder / "table.jsonl")):
            pass
    assert list((lure.parent.parent / "secret").iterdir()) == []


def test_root_exports_behind_no_link_where_everybody_may_put_one(place: Path, victim: Path) -> None:
    (place / "lure").symlink_to(victim.parent)
    os.chown(place / "lure", NOBODY, -1, follow_symlinks=False)
    with pytest.raises(Untrusted, match=r"lure.* belongs to nobody, and stands where everybody may put files"):
        with _replacing(str(place / "lure/table.jsonl")):
            pass
    assert [each.name for each in victim.parent.iterdir()] == [victim.name]


def test_root_exports_behind_a_link_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with _replacing(str(tmp_path / "link/table.jsonl")) as stream:
        assert stream is not None
        stream.write(b"a line\n")
    assert (tmp_path / "real/table.jsonl").read_bytes() == b"a line\n"


@pytest.mark.parametrize("below", ["", "/pbs-postlogin", "/new/folder/settings.conf"])
def test_root_installs_nothing_behind_the_link_of_another_user(lure: Path, below: str) -> None:
    with pytest.raises(InstallError, match=r"home belongs to nobody, .*: root writes nothing there$"):
        Tree(lure.parent.parent).place(f"/home/lure{below}")
    with pytest.raises(InstallError, match=r"home belongs to nobody"):
        Tree(lure)


@pytest.mark.parametrize("target", ["secret", "secret/none"])
@pytest.mark.parametrize("below", ["", "/main.cf"])
def test_root_installs_nothing_behind_a_link_where_everybody_may_put_one(
    place: Path, target: str, below: str
) -> None:
    (place / "secret").mkdir(mode=0o700)
    (place / "lure").symlink_to(place / target)
    os.chown(place / "lure", NOBODY, -1, follow_symlinks=False)
    with pytest.raises(InstallError, match=r"belongs to nobody, and stands where everybody may put files"):
        Tree(Path("/")).place(f"{place}/lure{below}")


@pytest.mark.parametrize("option", ["--lib-dir", "--settings", "--dovecot-config", "--record-dir", "--root"])
def test_install_hook_as_root_goes_behind_no_link_of_another_user(lure: Path, option: str) -> None:
    need("dovecot")
    base = lure.parent.parent
    (base / "secret/dovecot.conf").write_text("protocols = pop3\n")
    (base / "dovecot").mkdir()
    (base / "dovecot/dovecot.conf").write_text("protocols = pop3\n!include_try conf.d/*.conf\n")
    value = {"--settings": f"{lure}/settings.conf"}.get(option, str(lure))
    options = {"--lib-dir": f"{base}/lib", "--dovecot-config": f"{base}/dovecot", "--record-dir": f"{base}/record"}
    arguments = [word for pair in (options | {option: value}).items() for word in pair]
    before = sorted((base / "secret").iterdir())
    done = run_installer("install-hook", "--user", "nobody", "--apply", *arguments)
    assert "home belongs to nobody, who can change it" in done.stderr
    assert done.returncode == os.EX_CONFIG
    assert sorted((base / "secret").iterdir()) == before


def test_install_postfix_as_root_goes_behind_no_link_of_another_user(lure: Path) -> None:
    base = lure.parent.parent
    (base / "secret/main.cf").write_text("compatibility_level = 3.6\n")
    done = run_installer(
        "install-postfix", "--apply", "--postfix-config", str(lure), "--record-dir", f"{base}/record"
    )
    assert "home belongs to nobody, who can change it" in done.stderr
    assert (base / "secret/main.cf").read_text() == "compatibility_level = 3.6\n"


def run_installer(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pbs_policy", "-c", "/dev/null", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("path", ["/theirs/main.cf", "/theirs/sub/main.cf", "/theirs/none/main.cf"])
def test_root_installs_nothing_below_the_folder_of_another_user(tmp_path: Path, path: str) -> None:
    (tmp_path / "theirs/sub").mkdir(parents=True)
    os.chown(tmp_path / "theirs", NOBODY, -1)
    with pytest.raises(
        InstallError, match=r"theirs belongs to nobody, who can change it|theirs: belongs to nobody, who"
    ):
        Tree(tmp_path).place(path)
    assert Tree(tmp_path).place("/theirs") == tmp_path / "theirs"


def test_root_goes_by_no_record_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "var/installed/install-hook").mkdir(parents=True)
    os.chown(tmp_path / "var/installed/install-hook", NOBODY, -1)
    with pytest.raises(InstallError, match=r"install-hook belongs to nobody, who can change it"):
        InstallRecord(Tree(tmp_path), "/var/installed", "install-hook")
