"""The units that ship: what systemd itself says of them, and that they agree with the program."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from pbs_policy.cli import cli
from pbs_policy.settings import Settings, defaults, load
from pbs_policy.settings.sources import SettingsError

TOP = Path(__file__).parent.parent
UNITS = TOP / "systemd"
SERVICE = (UNITS / "pbs-policy.service").read_text()
RECORDER = (UNITS / "pbs-policy-record.service").read_text()
SOCKET = (UNITS / "pbs-policy.socket").read_text()

MOST_EXPOSED = 1.0
"""What `systemd-analyze security` may say at most, of 10."""


def values(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"},
    )  # fmt: skip


@pytest.mark.parametrize("unit", ["pbs-policy.service", "pbs-policy-record.service"])
def test_a_service_is_hardly_exposed(unit: str) -> None:
    ended = analyze("security", "--offline=true", UNITS / unit)
    found = re.search(rf"Overall exposure level for {re.escape(unit)}: ([0-9.]+)", ended.stdout)
    assert found, ended.stderr
    assert float(found[1]) <= MOST_EXPOSED, ended.stdout


@pytest.mark.parametrize("unit", ["pbs-policy.service", "pbs-policy.socket", "pbs-policy-record.service"])
def test_systemd_understands_every_line(unit: str, tmp_path: Path) -> None:
    """The program need not be installed where this runs: in its place stands one that is."""
    for each in UNITS.iterdir():
        text = re.sub(r"^(Exec\w+)=pbs-policy ", r"\1=/bin/true ", each.read_text(), flags=re.MULTILINE)
        (tmp_path / each.name).write_text(text)
    ended = analyze("verify", "--man=no", tmp_path / unit)
    said = [line for line in ended.stderr.splitlines() if "pbs-policy" in line or str(tmp_path) in line]
    assert said == []


def test_a_line_that_systemd_does_not_know_is_found(tmp_path: Path) -> None:
    """The test above can fail."""
    (tmp_path / "odd.service").write_text("[Service]\nType=simple\nExecStart=/bin/true\nNoSuchThing=yes\n")
    assert "NoSuchThing" in analyze("verify", "--man=no", tmp_path / "odd.service").stderr


@pytest.mark.parametrize("unit", [SERVICE, RECORDER], ids=["serve", "record"])
def test_the_commands_of_a_service_are_ours(unit: str) -> None:
    commands = [each.split() for name in ("ExecStart", "ExecReload") for each in values(unit, name)]
    ours = [words for words in commands if words[0] == "pbs-policy"]
    assert len(ours) == len(commands) - 1
    assert commands[-1] == ["kill", "-HUP", "$MAINPID"]
    for _, name, *arguments in ours:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert set(arguments) <= defaults().keys()


def test_the_socket_unit_listens_where_the_default_says() -> None:
    (listener,) = load(Path("/dev/null"))[0].listen
    assert f"{listener.host}:{listener.port}" in values(SOCKET, "ListenStream")


def test_the_unix_socket_is_the_one_of_the_example_for_postfix() -> None:
    example = (TOP / "postfix-examples" / "main.cf.unix").read_text()
    named = re.search(r"^# pbs-policy\.conf says:  listen = unix:(\S+)$", example, re.MULTILINE)
    assert named
    assert named[1] in values(SOCKET, "ListenStream")
    assert values(SOCKET, "SocketMode") == [defaults()["unix_socket_mode"].text]


def test_the_user_is_the_one_that_the_script_runs_as() -> None:
    hook = (TOP / "dovecot-hooks" / "pbs-policy.conf").read_text()
    assert set(re.findall(r"^  user = (\S+)$", hook, re.MULTILINE)) == set(values(SERVICE, "User"))


# --- the password, as a credential --------------------------------------------------------------------------------


def settings(tmp_path: Path, text: str = "") -> Settings:
    file = tmp_path / "pbs-policy.conf"
    file.write_text(text)
    return load(file)[0]


def test_a_credential_is_the_password_without_a_setting(tmp_path: Path) -> None:
    (tmp_path / "redis_password").write_text("secret\n")
    assert settings(tmp_path).redis_password(str(tmp_path)) == "secret"
    assert settings(tmp_path).redis_password() == ""


def test_a_credential_outranks_the_file_which_is_for_root_then(tmp_path: Path) -> None:
    """One settings file serves both: the service is passed what root alone can read, and root's commands read it."""
    (tmp_path / "redis_password").write_text("passed\n")
    (tmp_path / "file").write_text("read\n")
    loaded = settings(tmp_path, f"redis_password_file = {tmp_path}/file\n")
    assert loaded.redis_password(str(tmp_path)) == "passed"
    assert loaded.redis_password() == "read"


def test_without_that_credential_the_file_counts(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("read\n")
    loaded = settings(tmp_path, f"redis_password_file = {tmp_path}/file\n")
    assert loaded.redis_password(str(tmp_path / "other")) == "read"


def test_an_empty_credential_is_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "redis_password").write_text("")
    with pytest.raises(SettingsError, match=r"the credential redis_password: .* has no first line"):
        settings(tmp_path).redis_password(str(tmp_path))
