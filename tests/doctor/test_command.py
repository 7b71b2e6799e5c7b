"""The command `pbs-policy doctor`: what it prints, in text and JSON, how it ends; and its page of the documents."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import pytest

import pbs_policy.doctor
from pbs_policy.cli.doctor import doctor
from pbs_policy.cli.session import Session
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.programs import find_program
from pbs_policy.shipped import shipped
from tests.doctor.installation import runs_doveconf
from tests.doctor.page import CHECKS, PAGE
from tests.service import Service

NOWHERE = ("--postfix-config", "/nowhere", "--dovecot-config", "/nowhere/dovecot.conf")


class Result(NamedTuple):
    status: int
    out: str


Call = Callable[..., Result]


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run the command with a settings file of these lines."""
    for name in [name for name in os.environ if name.startswith("PBS_")]:
        monkeypatch.delenv(name)

    def run(*arguments: str, **settings: str) -> Result:
        file = tmp_path / "pbs-policy.conf"
        file.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        status = doctor.main(list(arguments), obj=Session(file, ()), standalone_mode=False)
        return Result(status, capsys.readouterr().out)

    return run


NOTHING = {"redis_url": "redis://127.0.0.1:1", "listen": "inet:127.0.0.1:1"}


def test_where_nothing_is_everything_is_said_and_nothing_crashes(call: Call) -> None:
    result = call(*NOWHERE, **NOTHING)
    assert result.status == 2
    for line in (
        r"(wrong|unknown) +postfix\.configuration", r"(wrong|unknown) +dovecot\.configuration",
        r"wrong +store\.reachable +Redis at redis://127\.0\.0\.1:1/0", r" +in +\S+/pbs-policy\.conf:1$",
        r" +mend +systemctl status redis-server",
    ):  # fmt: skip
        assert re.search(f"^{line}", result.out, re.MULTILINE), line
    assert "good" not in result.out
    quiet = call(*NOWHERE, "--quiet", **NOTHING)
    assert (quiet.status, "store.reachable" in quiet.out) == (2, True)
    assert not re.search("^(good|not looked at)|[0-9] wrong", quiet.out, re.MULTILINE)


def test_json_has_a_finding_for_each_check(call: Call) -> None:
    result = call(*NOWHERE, "--json", **NOTHING)
    findings = json.loads(result.out)
    assert {tuple(finding) for finding in findings} == {("check", "level", "seen", "place", "mend")}
    assert {finding["check"] for finding in findings} <= set(CHECKS)
    assert result.status == 2
    quiet = json.loads(call(*NOWHERE, "-q", "--json", **NOTHING).out)
    assert quiet == [each for each in findings if each["level"] in ("wrong", "unknown", "warning")]


def test_wrong_settings_are_findings_with_their_lines(call: Call) -> None:
    result = call("--json", ttl="soon", sender_match="maybe")
    findings = json.loads(result.out)
    assert [finding["check"] for finding in findings] == ["settings", "settings"]
    assert findings[0]["place"].endswith("pbs-policy.conf:1")
    assert findings[0]["seen"].startswith("ttl = soon: expected a time")
    assert result.status == 2


def test_text_from_a_configuration_is_made_printable(call: Call) -> None:
    result = call(*NOWHERE, "--no-trial", **NOTHING, key_prefix="x", never_record="192.0.2.0/24")
    assert all(line.isprintable() for line in result.out.splitlines())
    assert "service.trial" not in result.out


_VERSION = "dovecot_config_version = 2.4.1\ndovecot_storage_version = 2.4.1\n" if runs_doveconf("2.4") else ""


def installation(directory: Path, service: Service) -> tuple[str, ...]:
    """Postfix and Dovecot configurations that are sound, for a service that runs."""
    main_cf = shipped("postfix-examples/main.cf.inet").read_text()
    main_cf = main_cf.replace("inet:127.0.0.1:10040", str(service.listeners[0]))
    (directory / "main.cf").write_text(f"compatibility_level = 3.6\nmynetworks = 127.0.0.1\n{main_cf}")
    (directory / "master.cf").write_text("smtp inet n - y - - smtpd\n")
    hook = shipped("dovecot-hooks/pbs-policy.conf").read_text()
    hook = hook.replace("user = pbs-policy", "user = nobody")
    script = f"{directory}/pbs-postlogin -c {directory}/pbs.conf"
    hook = hook.replace("/usr/local/lib/pbs-policy/pbs-postlogin", script)
    for name in ("pbs-postlogin", "pbs_postlogin.py"):
        shutil.copy(shipped(f"dovecot-hooks/{name}"), directory)
    shutil.copy(service.settings_file, directory / "pbs.conf")
    (directory / "dovecot.conf").write_text(f"{_VERSION}protocols = pop3 imap\nssl = no\n{hook}")
    return "--postfix-config", str(directory), "--dovecot-config", str(directory / "dovecot.conf")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run the script as somebody else")
def test_a_sound_installation_ends_with_status_0(
    call: Call,
    start_service: Callable[..., Service],
    own_redis: Callable[..., PrivateRedis],
    open_directory: Path,
) -> None:
    for program, package in (("postconf", "postfix"), ("doveconf", "dovecot-core")):
        if find_program(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install {package}")
    redis = own_redis()
    service = start_service(redis_url=redis.url)
    where = installation(open_directory, service)
    settings = {"redis_url": redis.url, "listen": str(service.listeners[0])}
    result = call(*where, **settings)
    assert "wrong" not in result.out
    assert result.out.count("permitted after a login, refused when it was deleted") == 4
    assert result.status == 0, result.out
    folder = [each.removesuffix("/dovecot.conf") for each in where]
    assert call(*folder, "--no-trial", **settings).status == 0
    assert call(*folder, "--no-trial", "--quiet", **settings) == (0, "")
    result = call(*where, **settings, observe_only="yes")
    assert result.status == 1, result.out
    shutil.move(open_directory / "pbs-postlogin", open_directory / "elsewhere")
    result = call(*where, **settings)
    assert result.status == 2, result.out
    assert f"{open_directory}/pbs-postlogin does not exist: every login is refused" in result.out
    shutil.move(open_directory / "elsewhere", open_directory / "pbs-postlogin")
    said = ["store.reachable"]
    redis.stop()
    assert [each["check"] for each in json.loads(call(*where, "-q", "--json", **settings).out)] == said
    service.process.kill()
    service.process.wait()
    said.append("service.answers")
    assert [each["check"] for each in json.loads(call(*where, "-q", "--json", **settings).out)] == said


def test_the_page_describes_each_check_and_no_other() -> None:
    sources = "".join(file.read_text() for file in Path(pbs_policy.doctor.__file__).parent.glob("*.py"))
    named = set(re.findall(r'"((?:settings|postfix|dovecot|store|service|use)\.[a-z_]+)"', sources))
    assert sorted({"settings", *named} - {"settings.conf"}) == sorted(CHECKS)


def test_the_page_has_each_option() -> None:
    for parameter in doctor.params:
        assert isinstance(parameter, click.Option)
        assert any(option in PAGE.read_text() for option in [*parameter.opts, *parameter.secondary_opts])
