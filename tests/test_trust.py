"""Files, folders and links that others may change: what is refused, and what the service warns of."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pbs_policy.changing_file import FileFault
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.service.doubts import find_doubts
from pbs_policy.settings import load
from pbs_policy.settings.sources import SettingsError
from pbs_policy.trust import Untrusted, acting_as, create_for, opened, read_trusted, temporary_folder
from tests.service import CLI, SERVE, Service

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
NOBODY = 65534


def make(path: Path, mode: int, owner: int = 0, group: int = 0) -> Path:
    """A file of this mode; of somebody else, where the test runs as root."""
    path.touch()
    path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, owner, group)
    return path


def doubts_of(file: Path, *overrides: str) -> list[str]:
    settings, _ = load(file, {}, ["redis_url=rediss://127.0.0.1", *overrides])
    return find_doubts(file, settings)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o444])
def test_a_settings_file_may_be_read_by_everybody(tmp_path: Path, mode: int) -> None:
    assert doubts_of(make(tmp_path / "conf", mode)) == []


@pytest.mark.parametrize("mode", [0o666, 0o602, 0o777])
@pytest.mark.parametrize("name", ["redis_password_file", "sender_maps", "denies", "redis_tls_ca_file"])
def test_nothing_starts_on_a_file_that_everybody_can_change(tmp_path: Path, mode: int, name: str) -> None:
    file, other = make(tmp_path / "conf", 0o644), make(tmp_path / "other", mode)
    with pytest.raises(SettingsError, match=rf" \({name}\): can be changed by everybody \(mode 0{mode:o}\)"):
        doubts_of(file, f"{name}={other}")


@pytest.mark.parametrize("mode", [0o666, 0o602, 0o777])
def test_no_command_reads_settings_that_everybody_can_change(tmp_path: Path, mode: int) -> None:
    file = make(tmp_path / "conf", mode)
    with pytest.raises(SettingsError, match=rf"/conf: can be changed by everybody \(mode 0{mode:o}\): chmod o-w$"):
        load(file)


def test_no_password_is_read_that_everybody_can_change(tmp_path: Path) -> None:
    password = make(tmp_path / "password", 0o666)
    settings, _ = load(make(tmp_path / "conf", 0o644), {}, [f"redis_password_file={password}"])
    with pytest.raises(SettingsError, match=r"^redis_password_file: .*/password: can be changed by everybody"):
        settings.redis_password()


@pytest.mark.parametrize(
    "name", ["redis_password_file", "sentinel_password_file", "redis_tls_key_file", "redis_tls_cert_file"]
)
def test_a_secret_that_everybody_can_read_deserves_a_warning(tmp_path: Path, name: str) -> None:
    file, secret = make(tmp_path / "conf", 0o644), make(tmp_path / "secret", 0o644)
    with_it = [f"{name}={secret}"]
    if name == "redis_tls_key_file":
        with_it.append(f"redis_tls_cert_file={make(tmp_path / 'certificate', 0o644)}")
    expected = f"{secret} ({name}): can be read by everybody (mode 0644): chmod o-r"
    assert doubts_of(file, *with_it) == [expected]
    secret.chmod(0o640)
    assert doubts_of(file, *with_it) == []


def test_a_certificate_without_the_key_in_it_is_no_secret(tmp_path: Path) -> None:
    file, certificate, key = (make(tmp_path / name, 0o640) for name in ("conf", "certificate", "key"))
    certificate.chmod(0o644)
    assert doubts_of(file, f"redis_tls_cert_file={certificate}", f"redis_tls_key_file={key}") == []


@needs_root
def test_a_file_of_another_user_or_group_deserves_a_warning(tmp_path: Path) -> None:
    file = make(tmp_path / "conf", 0o644)
    others = make(tmp_path / "a", 0o664, 0, NOBODY)
    assert doubts_of(file, f"sender_maps={others}") == [
        f"{others} (sender_maps): can be changed by the group nogroup (mode 0664): chmod g-w"
    ]
    others = make(tmp_path / "b", 0o600, NOBODY, 0)
    assert doubts_of(file, f"sender_maps={others}") == [
        f"{others} (sender_maps): belongs to nobody, who can change it: chown root"
    ]
    assert doubts_of(file, f"sender_maps={make(tmp_path / 'c', 0o664, 0, 0)}") == []


@needs_root
def test_root_reads_no_settings_of_another_user(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"/conf: belongs to nobody, who can change it: chown root$"):
        load(make(tmp_path / "conf", 0o600, NOBODY, 0))
    (tmp_path / "theirs").mkdir()
    make(tmp_path / "theirs/conf", 0o600)
    os.chown(tmp_path / "theirs", NOBODY, 0)
    with pytest.raises(SettingsError, match=rf"/conf: {tmp_path}/theirs belongs to nobody, who can change it"):
        load(tmp_path / "theirs/conf")


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder that everybody can change, with a file in it that only we can."""
    folder = tmp_path / "open"
    folder.mkdir()
    (folder / "sub").mkdir()
    for file in (folder / "file", folder / "sub/file"):
        make(file, 0o644)
    folder.chmod(0o777)
    return folder


@pytest.mark.parametrize("path", ["open/file", "open/sub/file", "open/sub/../file", "link", "open/link", "open/up"])
def test_a_file_below_a_folder_that_everybody_can_change_is_refused(open_folder: Path, path: str) -> None:
    above = open_folder.parent
    make(above / "safe", 0o644)
    (above / "link").symlink_to("open/sub/file")
    (open_folder / "link").symlink_to(above / "safe")
    (open_folder / "up").symlink_to("../safe")
    with pytest.raises(Untrusted) as refused:
        read_trusted(above / path)
    assert refused.value.strerror == f"{open_folder} can be changed by everybody (mode 0777): chmod o-w"
    assert read_trusted(above / "safe") == (b"", ())


def test_where_everybody_may_add_files_but_change_only_their_own_ours_are_read(open_folder: Path) -> None:
    open_folder.chmod(0o1777)
    (open_folder / "link").symlink_to("sub/file")
    for name in ("file", "sub/file", "link"):
        assert read_trusted(open_folder / name) == (b"", ())


@needs_root
@pytest.mark.parametrize("name", ["file", "sub/file", "link"])
def test_where_everybody_may_add_files_those_of_others_are_refused(open_folder: Path, name: str) -> None:
    open_folder.chmod(0o1777)
    (open_folder / "link").symlink_to("sub/file")
    theirs = open_folder / name.partition("/")[0]
    os.chown(theirs, NOBODY, -1, follow_symlinks=False)
    with pytest.raises(Untrusted, match=rf"{theirs.name if name != theirs.name else ''}.*belongs to nobody"):
        read_trusted(open_folder / name)


@needs_root
def test_root_follows_no_link_that_another_user_can_change(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/shadow").symlink_to("/etc/shadow")
    make(tmp_path / "theirs/file", 0o644)
    os.chown(tmp_path / "theirs", NOBODY, -1)
    with pytest.raises(Untrusted, match=r"is a link that nobody can change: name the file itself"):
        read_trusted(tmp_path / "theirs/shadow")
    doubt = f"{tmp_path}/theirs belongs to nobody, who can change it: chown root"
    assert read_trusted(tmp_path / "theirs/file") == (b"", (doubt,))


def test_links_are_followed_as_the_system_does(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").write_text("this one")
    (tmp_path / "a/b/up").symlink_to("../../a/file")
    (tmp_path / "folder").symlink_to("a/b")
    (tmp_path / "again").symlink_to(tmp_path / "folder" / "up")
    for name in ("a/b/up", "folder/up", "folder/../file", "again", "./a//file"):
        assert read_trusted(Path(f"{tmp_path}/{name}")) == (b"this one", ())
    (tmp_path / "loop").symlink_to("loop")
    for name, error in (("loop", OSError), ("a/file/b", NotADirectoryError), ("a/none", FileNotFoundError)):
        with pytest.raises(error):
            read_trusted(tmp_path / name)
    with opened(Path("/"), os.O_PATH) as root:
        assert root.status.st_ino == Path("/").stat().st_ino


def test_settings_may_come_from_a_pipe_of_the_shell() -> None:
    command = f"exec {' '.join(CLI)} -c <(echo ttl = 7m) config ttl"
    result = subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout) == (0, "ttl = 7m\n"), result.stderr


@pytest.mark.parametrize("place", ["file", "folder"])
def test_maps_that_everybody_can_change_later_are_not_read_and_the_old_ones_hold(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = make(folder / "maps", 0o644)
    file.write_text("ceo@example.com alice@example.com\n")
    maps = SenderMaps.load(file, "")
    file.write_text("ceo@example.com mallory@example.com\n")
    opened_up = file if place == "file" else folder
    opened_up.chmod(opened_up.stat().st_mode | 0o002)
    with pytest.raises(FileFault, match=r"/maps: .*can be changed by everybody \(mode 0[67].[67]\)"):
        maps.reload_if_changed()
    assert not maps.reload_if_changed(), "it is said once"
    assert maps.users([b"ceo@example.com"]) == (b"alice@example.com",)
    opened_up.chmod(opened_up.stat().st_mode & ~0o002)
    assert maps.reload_if_changed()
    assert maps.users([b"ceo@example.com"]) == (b"mallory@example.com",)


def test_a_unix_socket_for_everybody_deserves_a_warning(tmp_path: Path) -> None:
    file = make(tmp_path / "conf", 0o644)
    listen = f"listen=unix:{tmp_path}/socket"
    (warning,) = doubts_of(file, listen, "unix_socket_mode=0666")
    assert warning.startswith("unix_socket_mode = 0666 lets every local user ask")
    assert doubts_of(file, listen) == []
    assert doubts_of(file, "unix_socket_mode=0666") == [], "there is no unix socket"


def test_a_socket_in_a_folder_that_everybody_can_change_deserves_a_warning(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    (warning,) = doubts_of(make(tmp_path / "conf", 0o644), f"listen=unix:{tmp_path}/open/socket")
    assert warning.startswith(f"{tmp_path}/open (listen): everybody can put a socket there")


def test_what_is_not_there_or_no_file_is_passed_over(tmp_path: Path) -> None:
    overrides = ["redis_url=rediss://127.0.0.1", f"redis_tls_ca_file={tmp_path}/none", "sender_maps=/dev/null"]
    settings, _ = load(make(tmp_path / "conf", 0o644), {}, overrides)
    assert find_doubts(tmp_path / "absent", settings) == []


def test_the_service_warns_at_its_start_and_runs(start_service: Callable[..., Service], tmp_path: Path) -> None:
    password = make(tmp_path / "password", 0o644)
    password.write_text("secret\n")
    service = start_service(redis_url="unix:///nonexistent/redis.sock", redis_password_file=str(password))
    assert f"warning: not safe: {password} (redis_password_file): can be read by everybody" in service.log()


def test_settings_that_everybody_can_change_are_not_read_anew(start_service: Callable[..., Service]) -> None:
    service = start_service(redis_url="unix:///nonexistent/redis.sock", log_decisions="all")
    service.settings_file.write_text(service.settings_file.read_text() + "ttl = 9m\n")
    service.settings_file.chmod(0o666)
    service.process.send_signal(signal.SIGHUP)
    assert service.waits_to_log("conf: can be changed by everybody (mode 0666): chmod o-w")
    assert service.waits_to_log("the settings were not read anew")
    service.settings_file.chmod(0o644)
    service.process.send_signal(signal.SIGHUP)
    assert service.waits_to_log("the settings were read anew")


def test_the_service_does_not_start_on_settings_that_everybody_can_change(tmp_path: Path) -> None:
    file = make(tmp_path / "conf", 0o646)
    result = subprocess.run([*CLI, "-c", str(file), *SERVE], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == os.EX_CONFIG
    assert result.stderr == f"pbs-policy: {file}: can be changed by everybody (mode 0646): chmod o-w\n"


def test_the_service_says_once_that_everybody_can_change_its_maps(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    maps = make(tmp_path / "maps", 0o644)
    service = start_service(redis_url="unix:///nonexistent/redis.sock", sender_maps=str(maps))
    maps.write_text("ceo@example.com mallory@example.com\n")
    maps.chmod(0o666)
    assert service.waits_to_log(f"what it said before holds: {maps}: can be changed by everybody (mode 0666)")
    maps.chmod(0o644)
    assert service.waits_to_log("sender_maps was read anew")
    assert service.log().count("can be changed by everybody") == 1


def test_a_temporary_folder_goes_and_no_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = make(tmp_path / "kept", 0o400)
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "link").symlink_to(kept)
        (folder / "above").symlink_to(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o400


def test_a_file_for_another_user_is_new_and_theirs_alone(tmp_path: Path) -> None:
    create_for(os.geteuid(), tmp_path / "new", b"for you")
    assert ((tmp_path / "new").read_bytes(), stat.S_IMODE((tmp_path / "new").stat().st_mode)) == (b"for you", 0o400)
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    for name in ("new", "link"):
        with pytest.raises(FileExistsError):
            create_for(os.geteuid(), tmp_path / name, b"for you")
    assert not (tmp_path / "victim").exists()


@needs_root
def test_root_has_the_rights_of_another_user_for_as_long_as_it_says(tmp_path: Path) -> None:
    secret = make(tmp_path / "secret", 0o600)
    rights = os.geteuid(), os.getegid(), os.getgroups()
    with acting_as(NOBODY, NOBODY, [NOBODY]):
        during = os.geteuid(), os.getegid(), os.getgroups()
        with pytest.raises(PermissionError):
            secret.read_bytes()
    assert during == (NOBODY, NOBODY, [NOBODY])
    assert (os.geteuid(), os.getegid(), os.getgroups()) == rights
    assert secret.read_bytes() == b""


def test_what_cannot_be_opened_is_named_by_its_whole_path(tmp_path: Path) -> None:
    for path in (tmp_path / "absent" / "file", tmp_path / "absent"):
        with pytest.raises(FileNotFoundError) as error, opened(path):
            pass
        assert error.value.filename == str(path)
