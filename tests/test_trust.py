"""What the service says at its start of files and sockets that others may read, change or use."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pbs_policy.service.trust import find_doubts
from pbs_policy.settings import load
from pbs_policy.sources import SettingsError
from tests.service import CLI, SERVE, Service

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def make(path: Path, mode: int, owner: int = 0, group: int = 0) -> Path:
    """A file of this mode; of somebody else, where the test runs as root."""
    path.touch()
    path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, owner, group)
    return path


def doubts_of(file: Path, *overrides: str) -> list[str]:
    settings, _ = load(file, {}, overrides)
    return find_doubts(file, settings)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o444])
def test_a_settings_file_may_be_read_by_everybody(tmp_path: Path, mode: int) -> None:
    assert doubts_of(make(tmp_path / "conf", mode)) == []


@pytest.mark.parametrize("mode", [0o666, 0o602, 0o777])
@pytest.mark.parametrize("name", ["settings", "redis_password_file", "sender_maps", "denies", "redis_tls_ca_file"])
def test_nothing_starts_on_a_file_that_everybody_can_change(tmp_path: Path, mode: int, name: str) -> None:
    file = make(tmp_path / "conf", mode if name == "settings" else 0o644)
    overrides = [] if name == "settings" else [f"{name}={make(tmp_path / 'other', mode)}"]
    with pytest.raises(SettingsError, match=rf"\({name}\) can be changed by everybody \(mode 0{mode:o}\): chmod o-w"):
        doubts_of(file, *overrides)


@pytest.mark.parametrize(
    "name", ["redis_password_file", "sentinel_password_file", "redis_tls_key_file", "redis_tls_cert_file"]
)
def test_a_secret_that_everybody_can_read_deserves_a_warning(tmp_path: Path, name: str) -> None:
    file, secret = make(tmp_path / "conf", 0o644), make(tmp_path / "secret", 0o644)
    expected = f"{secret} ({name}) can be read by everybody (mode 0644): chmod o-r"
    assert doubts_of(file, f"{name}={secret}") == [expected]
    secret.chmod(0o640)
    assert doubts_of(file, f"{name}={secret}") == []


def test_a_certificate_without_the_key_in_it_is_no_secret(tmp_path: Path) -> None:
    file, certificate, key = (make(tmp_path / name, 0o640) for name in ("conf", "certificate", "key"))
    certificate.chmod(0o644)
    assert doubts_of(file, f"redis_tls_cert_file={certificate}", f"redis_tls_key_file={key}") == []


@needs_root
def test_a_file_of_another_user_or_group_deserves_a_warning(tmp_path: Path) -> None:
    assert doubts_of(make(tmp_path / "a", 0o664, 0, 65534)) == [
        f"{tmp_path}/a (settings) can be changed by a group that is not the service's (mode 0664): chmod g-w"
    ]
    assert doubts_of(make(tmp_path / "b", 0o600, 65534, 0)) == [
        f"{tmp_path}/b (settings) belongs to nobody, who can change it: chown root"
    ]
    assert doubts_of(make(tmp_path / "c", 0o664, 0, 0)) == []


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
    assert warning.startswith(f"{tmp_path}/open (listen) can be changed by everybody")


def test_what_is_not_there_or_no_file_is_passed_over(tmp_path: Path) -> None:
    overrides = [f"redis_tls_ca_file={tmp_path}/none", "sender_maps=/dev/null"]
    settings, _ = load(make(tmp_path / "conf", 0o644), {}, overrides)
    assert find_doubts(tmp_path / "absent", settings) == []


def test_the_service_warns_at_its_start_and_runs(start_service: Callable[..., Service], tmp_path: Path) -> None:
    password = make(tmp_path / "password", 0o644)
    password.write_text("secret\n")
    service = start_service(redis_url="unix:///nonexistent/redis.sock", redis_password_file=str(password))
    assert f"warning: not safe: {password} (redis_password_file) can be read by everybody" in service.log()


def test_settings_that_everybody_can_change_are_not_read_anew(start_service: Callable[..., Service]) -> None:
    service = start_service(redis_url="unix:///nonexistent/redis.sock", log_decisions="all")
    service.settings_file.write_text(service.settings_file.read_text() + "ttl = 9m\n")
    service.settings_file.chmod(0o666)
    service.process.send_signal(signal.SIGHUP)
    assert service.waits_to_log("can be changed by everybody (mode 0666): chmod o-w")
    assert service.waits_to_log("the settings were not read anew")
    service.settings_file.chmod(0o644)
    service.process.send_signal(signal.SIGHUP)
    assert service.waits_to_log("the settings were read anew")


def test_the_service_does_not_start_on_settings_that_everybody_can_change(tmp_path: Path) -> None:
    file = make(tmp_path / "conf", 0o646)
    result = subprocess.run([*CLI, "-c", str(file), *SERVE], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == os.EX_CONFIG
    assert result.stderr == f"pbs-policy: {file} (settings) can be changed by everybody (mode 0646): chmod o-w\n"
