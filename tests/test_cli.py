"""The command line as a whole: settings, errors and exit statuses, help, signals and pipes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from pbs_policy import __version__
from pbs_policy.cli import run
from pbs_policy.cli.commands import PLACES
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.settings import defaults
from tests.commands import Pbs, Result, is_one_error
from tests.service import CLI, SERVE
from tests.stores import pause

# --- config


def test_config_prints_every_effective_setting(bare: Pbs) -> None:
    result = bare("--set", "ttl=8h", "config")
    expected = {name: value.text for name, value in defaults().items()} | {"ttl": "8h"}
    assert result.out == "".join(f"{name} = {text}".rstrip() + "\n" for name, text in expected.items())
    assert (result.status, result.err) == (0, "")
    assert json.loads(bare("--set", "ttl=8h", "config", "--json").out) == expected
    assert json.loads(bare("--set", "ttl=8h", "config", "-n", "--json").out) == {"ttl": "8h"}


def test_config_n_prints_what_differs_from_the_default(bare: Pbs, settings_file: Path) -> None:
    assert bare("config", "-n") == Result(0, "", "")
    settings_file.write_text("ttl = 30m\nipv6_prefix = 64\nnever_record =\n  192.0.2.0/24\n  198.51.100.0/24\n")
    result = bare("--set", "observe_only=yes", "config", "-n")
    assert result.out == "ipv6_prefix = 64\nnever_record = 192.0.2.0/24 198.51.100.0/24\nobserve_only = yes\n"


def test_config_of_the_settings_named(bare: Pbs) -> None:
    assert bare("config", "ttl", "listen").out == "listen = inet:127.0.0.1:10040\nttl = 30m\n"
    assert bare("config", "-n", "ttl").out == ""
    assert is_one_error(bare("config", "tttl"), 64, "there is no setting 'tttl'")


def test_config_warns_of_a_removed_setting(bare: Pbs, settings_file: Path) -> None:
    settings_file.write_text("ttl = 8h\nworkers = 2\n")
    result = bare("config", "ttl")
    assert (result.status, result.out) == (0, "ttl = 8h\n")
    assert result.err.startswith(f"pbs-policy: warning: a removed setting is ignored: {settings_file}:2: workers: ")


def test_what_config_prints_can_be_used_as_a_settings_file(bare: Pbs, settings_file: Path, tmp_path: Path) -> None:
    settings_file.write_text("listen = inet:127.0.0.1:1,\n  unix:/run/p.sock\nkey_prefix = #=:\nredis_user =\n")
    first = bare("config")
    settings_file.write_text(first.out)
    assert bare("config") == first


def test_settings_come_from_the_environment_as_well(bare: Pbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PBS_TTL", "2h")
    assert bare("config", "-n").out == "ttl = 2h\n"
    assert bare("--set", "ttl=3h", "config", "-n").out == "ttl = 3h\n"


# --- errors: one line each, and an exit status of sysexits.h


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["lst"], "No such command 'lst'. Did you mean list?"),
        (["help", "chek"], "No such command 'chek'. Did you mean check?"),
        (["allow", "192.0.2.7"], "No such command 'allow'. Did you mean undeny?"),
        (["\x1b[2Jnonsense"], "No such command '?[2Jnonsense'. (see"),
        (["check"], "Missing argument 'ADDRESS...|-'"),
        (["show", "192.0.2.7", "192.0.2.8"], "unexpected extra argument"),
        (["list", "--jsn"], "No such option"),
        (["check", "192.0.2.0/24"], "not an IP address: '192.0.2.0/24'"),
        (["check", "unknown"], "not an IP address: 'unknown'"),
        (["check", "\udcff\n"], "not an IP address: "),
        (["check", ""], "not an IP address: ''"),
    ],
)
def test_a_wrong_use_is_64(bare: Pbs, arguments: list[str], text: str) -> None:
    assert is_one_error(bare(*arguments), 64, text)


@pytest.mark.parametrize(
    "command", [["list"], ["check", "192.0.2.7"], ["config"], ["serve"], ["revoke", "192.0.2.7"]]
)
def test_bad_settings_are_78_one_line_for_each_fault(bare: Pbs, settings_file: Path, command: list[str]) -> None:
    settings_file.write_text("tttl = 30m\nttl = soon\n")
    result = bare("--set", "sender_match=on", *command)
    assert (result.status, result.out) == (78, "")
    assert result.err.replace(str(settings_file), "FILE").splitlines() == [
        "pbs-policy: FILE:1: unknown setting 'tttl' (did you mean ttl?)",
        "pbs-policy: FILE:2: ttl = soon: expected a time from 1s to 1830d such as 90s, 30m, 8h, 90d",
        "pbs-policy: --set: sender_match = on: expected off, domain or address",
    ]


def test_an_address_that_needs_no_redis_is_answered_without_it(bare: Pbs) -> None:
    assert bare("--set", "redis_url=unix:///nonexistent", "check", "127.0.0.1").status == 1


@pytest.mark.usefixtures("as_shipped")
def test_a_mute_redis_is_69_soon(bare: Pbs, own_redis: Callable[..., PrivateRedis]) -> None:
    server = own_redis()
    pause(server)
    started = time.monotonic()
    result = bare("--set", f"redis_url={server.url}", "check", "192.0.2.7")
    assert is_one_error(result, 69, "Redis is unavailable: ")
    assert time.monotonic() - started < 5


def test_a_place_that_cannot_be_listened_on_is_71(bare: Pbs) -> None:
    result = bare("--set", "listen=unix:/nonexistent/p.sock", *SERVE)
    assert is_one_error(result, 71, "cannot listen on unix:/nonexistent/p.sock: No such file or directory")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (RuntimeError("one\ntwo"), 70,
         "pbs-policy: a fault of this program, please report it: RuntimeError('one\\ntwo')"),
        (OSError(5, "Input/output error", "/some/file"), 74, "pbs-policy: /some/file: Input/output error"),
        (KeyboardInterrupt(), 130, ""),
    ],
)  # fmt: skip
def test_whatever_ends_a_command_is_one_line_or_none_after_ctrl_c(
    bare: Pbs, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, said: str
) -> None:
    monkeypatch.setattr("pbs_policy.settings.load", Mock(side_effect=error))
    result = bare("config")
    assert (result.status, result.out, result.err.strip()) == (status, "", said)


# --- help


@pytest.mark.parametrize("command", PLACES)
def test_every_command_has_help_with_an_example(bare: Pbs, command: str) -> None:
    result = bare(command, "--help")
    assert result == bare(command, "-h") == Result(0, result.out, "")
    assert result.out.startswith(f"Usage: pbs-policy {command} ")
    examples = result.out.partition("Example:\n")[2]
    assert re.match(rf"\s+(?:sudo |source <\()?pbs-policy .*\b{command}\b", examples)


def test_the_help_names_every_command_and_is_shown_without_a_command_too(
    bare: Pbs, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bare("--help")
    assert result == bare("-h") == Result(0, result.out, "")
    assert result.out.startswith("Usage: pbs-policy [OPTIONS] COMMAND")
    assert re.findall(r"^  ([a-z-]+) ", result.out.partition("Commands:")[2], re.MULTILINE) == list(PLACES)
    assert run([]) == 64
    assert capsys.readouterr().err == result.out


def test_help_with_a_command_is_the_help_of_that_command(bare: Pbs) -> None:
    assert bare("help") == bare("--help")
    assert bare("help", "deny") == bare("deny", "--help")
    assert "192.0.2.7 198.51.100.0/24" in bare("help", "deny").out


def test_help_and_version_need_no_sound_settings(bare: Pbs, settings_file: Path) -> None:
    settings_file.write_text("junk\n")
    assert bare("list", "--help").status == 0
    assert bare("--version") == Result(0, f"pbs-policy {__version__}\n", "")


# --- as a process, where signals, pipes and the environment matter


def process(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*CLI, *arguments], capture_output=True, check=False)


def test_the_status_is_the_process_status() -> None:
    assert process("-c", "/dev/null", "config", "ttl").stdout == b"ttl = 30m\n"
    assert process("-c", "/nonexistent", "config").returncode == 78
    assert process("--set", "redis_url=unix:///nonexistent", "-c", "/dev/null", "list").returncode == 69


def test_a_locale_without_letters_shows_a_user_all_the_same(redis_server: PrivateRedis) -> None:
    url = f"redis_url={redis_server.url}"
    process("-c", "/dev/null", "--set", url, "permit", "192.0.2.7", "--user", "jos\u00e9@example.com")
    result = subprocess.run(
        [*CLI, "-c", "/dev/null", "--set", url, "list"],
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"]},
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"192.0.2.7" in result.stdout
