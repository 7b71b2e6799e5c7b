"""Every configuration snippet of README and docs is loaded by the program that it is for, the real one."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pbs_policy import settings
from pbs_policy.address import ClientAddress, ClientAddresses
from pbs_policy.decision.denies import Denies
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.demo.dovecot import dovecot_version
from pbs_policy.programs import find_program
from tests.conftest import need
from tests.pages import TOP, Snippet, every_snippet

TEXTS = {
    "README.md:2": "compared below with what the demonstration says",
    "docs/design.md:1": "a drawing of which module imports which",
    "docs/doctor.md:1": "a synopsis; tests/test_docs.py compares options",
    "docs/explanation.md:1": "a drawing",
    "docs/howto/monitoring.md:4": "lines of the log; docs/reference.md has their names",
    "docs/howto/monitoring.md:5": "lines of the log; docs/reference.md has their names",
    "docs/reference.md:1": "a line of syslog; tests/test_cli_permits.py gets its like",
    "postfix-examples/README.md:1": "a reply of Postfix; tests/e2e/test_refusal.py gets it",
}
"""Blocks that nothing loads, and why."""

SHELL = {"sh", "sh second-host"}
LOADED = {"ini", "settings", "dovecot", "main.cf", "master.cf", "sender_maps", "denies", "haproxy", "nftables",
          "yaml", "opendkim", "lua"}  # fmt: skip


def of(kind: str) -> pytest.MarkDecorator:
    found = [snippet for snippet in every_snippet() if snippet.kind == kind]
    assert found, f"no page has a snippet of {kind}"
    return pytest.mark.parametrize("snippet", found, ids=lambda snippet: snippet.name)


def test_each_block_says_what_it_is() -> None:
    kinds = SHELL | LOADED | {"text"}
    for snippet in every_snippet():
        assert snippet.kind in kinds, f"{snippet.name}: a fence with one of {sorted(kinds)}"


def test_each_block_that_nothing_loads_is_listed_with_the_reason() -> None:
    assert {snippet.name for snippet in every_snippet() if snippet.kind == "text"} == set(TEXTS)


def test_the_story_in_the_readme_is_what_the_demonstration_says() -> None:
    need("redis")
    story = next(snippet for snippet in every_snippet() if snippet.name == "README.md:2").text
    done = subprocess.run(
        [sys.executable, "-m", "pbs_policy", "demo"], capture_output=True, text=True, timeout=60, cwd=TOP
    )
    assert done.returncode == 0
    # A "..." stands for lines, or for the part of a line, and a number of more than one digit for another.
    rows = [re.sub(r"\d\d+|(?<=, )\d\.\d", "0", row) for row in done.stdout.splitlines()]
    for line in story.splitlines()[1:]:
        if line not in ("...", "A private Redis answers at unix:///.../redis.sock."):
            wanted = re.sub(r"\d\d+|(?<=, )\d\.\d", "0", line)
            while rows and rows[0].rstrip() != wanted:
                rows.pop(0)
            assert rows, f"not said, or not in that order: {line}\n{done.stdout}"


@of("settings")
def test_a_settings_snippet_is_loaded(snippet: Snippet, tmp_path: Path) -> None:
    file = tmp_path / "pbs-policy.conf"
    file.write_text(snippet.text)
    settings.load(file)


@of("denies")
def test_a_denies_snippet_is_loaded(snippet: Snippet, tmp_path: Path) -> None:
    file = tmp_path / "denies"
    file.write_text(snippet.text)
    assert Denies.load(file, ClientAddresses(), "").of_address(ClientAddress("192.0.2.7"))


@of("sender_maps")
def test_a_sender_maps_snippet_is_loaded(snippet: Snippet, tmp_path: Path) -> None:
    file = tmp_path / "sender-maps"
    file.write_text(snippet.text)
    assert SenderMaps.load(file, "").users([b"sales@example.com"])


@of("ini")
def test_a_change_to_a_unit_has_the_sections_and_names_that_systemd_knows(snippet: Snippet, tmp_path: Path) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as the module's documentation says
    parser.read_string(snippet.text)
    assert set(parser.sections()) <= {"Unit", "Service", "Install", "Socket"}
    verify = find_program("systemd-analyze")
    if verify:
        for unit in (TOP / "systemd").iterdir():
            # The program is not installed on the machine of the tests.
            text = re.sub(r"^(Exec\w+)=pbs-policy ", r"\1=/bin/true ", unit.read_text(), flags=re.MULTILINE)
            (tmp_path / unit.name).write_text(text)
        changed = tmp_path / ("pbs-policy.socket" if "[Socket]" in snippet.text else "pbs-policy.service")
        (tmp_path / f"{changed.name}.d").mkdir()
        (tmp_path / f"{changed.name}.d" / "override.conf").write_text(snippet.text)
        done = subprocess.run([verify, "verify", "--man=no", changed], capture_output=True, text=True, timeout=60)
        assert str(tmp_path) not in done.stderr, done.stderr


@of("dovecot")
def test_a_dovecot_snippet_is_understood(snippet: Snippet, tmp_path: Path) -> None:
    need("dovecot")
    asked = subprocess.run([find_program("dovecot") or "", "--version"], capture_output=True, text=True)
    version = asked.stdout.split()[0]
    versions = f"dovecot_config_version = {version}\ndovecot_storage_version = {version}\n"
    head = "" if dovecot_version() < (2, 4) else versions
    file = tmp_path / "dovecot.conf"
    file.write_text(f"{head}ssl = no\n{snippet.text}")
    done = subprocess.run(["doveconf", "-n", "-c", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in snippet.text.splitlines():
        assert " ".join(line.split()) in " ".join(done.stdout.split()), line


@of("main.cf")
def test_a_main_cf_snippet_is_understood_without_a_warning(snippet: Snippet, tmp_path: Path) -> None:
    need("postfix")
    (tmp_path / "main.cf").write_text(f"compatibility_level = 3.6\n{snippet.text}")
    (tmp_path / "master.cf").touch()
    shown = postconf(tmp_path, "-n")
    assert shown.returncode == 0
    # What Postfix does not know, or finds odd, it says there.
    assert "warning" not in shown.stderr, shown.stderr
    for line in snippet.text.splitlines():
        if " = " in line and not line.startswith(" "):
            assert line in shown.stdout


@of("master.cf")
def test_a_master_cf_snippet_is_understood_without_a_warning(snippet: Snippet, tmp_path: Path) -> None:
    need("postfix")
    beside = [each.text for each in every_snippet() if (each.page, each.kind) == (snippet.page, "main.cf")]
    (tmp_path / "main.cf").write_text("\n".join(["compatibility_level = 3.6", *beside]))
    (tmp_path / "master.cf").write_text(snippet.text)
    entries, parameters = postconf(tmp_path, "-M"), postconf(tmp_path, "-P")
    assert (entries.stderr, parameters.stderr) == ("", "")
    assert " ".join(snippet.text.split()) in " ".join(entries.stdout.split())
    for name, text in re.findall(r"-o (\w+)=(.*)", snippet.text):
        assert f"{name} = {text}" in parameters.stdout


@of("haproxy")
def test_a_haproxy_snippet_is_understood_without_a_warning(snippet: Snippet, tmp_path: Path) -> None:
    program = find_program("haproxy")
    if program is None:
        pytest.skip("haproxy is not installed: apt-get install haproxy")
    file = tmp_path / "haproxy.cfg"
    file.write_text(snippet.text)
    done = subprocess.run([program, "-c", "-f", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr


@of("yaml")
def test_a_prometheus_snippet_is_understood(snippet: Snippet, tmp_path: Path) -> None:
    program = find_program("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    (tmp_path / "prometheus.yml").write_text(snippet.text)
    (tmp_path / "pbs-policy-alerts.yml").write_text((TOP / "docs" / "monitoring" / "alerts.yml").read_text())
    done = subprocess.run(
        [program, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@of("nftables")
def test_a_firewall_snippet_is_understood(snippet: Snippet, tmp_path: Path) -> None:
    program = find_program("nft")
    if program is None or os.geteuid() != 0:
        pytest.skip("nft is not installed, or this is not root: apt-get install nftables")
    file = tmp_path / "rules.nft"
    file.write_text(snippet.text)
    # In a network of its own: to check rules nft looks at those that are there.
    done = subprocess.run(["unshare", "--net", program, "-c", "-f", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def postconf(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = find_program("postconf") or "postconf"
    return subprocess.run([program, "-c", str(directory), *options], capture_output=True, text=True, timeout=60)
