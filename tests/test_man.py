"""The manual pages are what the program says of itself, whole, and sound roff."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pbs_policy.cli import cli
from pbs_policy.cli.check import WHY
from pbs_policy.cli.commands import PLACES
from pbs_policy.settings import defaults, meaning
from pbs_policy.table.keys import Keys
from pbs_policy.table.records import Permit

TOP = Path(__file__).parent.parent
MAN = TOP / "docs" / "man"
TITLES: dict[str, str] = runpy.run_path(str(MAN / "make.py"))["TITLES"]
COMMANDS = [cli.get_command(click.Context(cli), name) or click.Command(None) for name in PLACES]


def shown(name: str) -> str:
    """A page as plain text: without requests, fonts and escapes."""
    page = (MAN / name).read_text()
    page = re.sub(r"\\f(?:\[\w+\]|\w)|\\&", "", page)
    for escape, letter in {r"\(aq": "'", r"\(ga": "`", r"\(ha": "^", r"\(ti": "~", r"\-": "-", r"\(rs": "\\"}.items():
        page = page.replace(escape, letter)
    return page


def words(plain: str) -> str:
    return " ".join(plain.replace("`", "").split())


def test_generating_the_pages_gives_the_committed_bytes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, MAN / "make.py", tmp_path], check=True, timeout=60)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(TITLES)
    for name in TITLES:
        assert (tmp_path / name).read_bytes() == (MAN / name).read_bytes(), f"{name} is old: make man"


def test_every_fragment_belongs_to_a_page_and_every_page_to_a_fragment() -> None:
    assert {each.name for each in MAN.glob("*.in")} == {f"{name}.in" for name in TITLES}
    assert {each.name for each in MAN.glob("*.[1-9]")} == set(TITLES)


def test_the_pages_are_roff_without_a_warning() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed: apt-get install groff")
    for name in TITLES:
        command = ["groff", "-man", "-Tutf8", "-ww", str(MAN / name)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (name, ended.returncode, ended.stderr) == (name, 0, "")


def test_man_shows_the_pages_without_a_warning_and_whole() -> None:
    if shutil.which("man") is None:
        pytest.skip("man is not installed: apt-get install man-db")
    for name in TITLES:
        ended = subprocess.run(
            ["man", "--warnings", "-l", MAN / name],
            env=os.environ | {"LC_ALL": "C.UTF-8", "MANWIDTH": "100", "MANPAGER": "cat"},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (name, ended.returncode, ended.stderr) == (name, 0, "")
        assert "SEE ALSO" in ended.stdout, name
        assert "@" not in re.sub(r"\S*@(?:\S*example\.(?:com|net|org)|<domain>)|-@all", "", ended.stdout), name


@pytest.mark.parametrize("name", TITLES)
def test_the_pages_that_a_page_names_are_there(name: str) -> None:
    for other, section in re.findall(r"^\.BR (pbs-[\w.-]+) \((\d)\)", shown(name), re.MULTILINE):
        assert f"{other}.{section}" in TITLES


@pytest.mark.parametrize("command", COMMANDS, ids=PLACES)
def test_each_command_is_in_the_manual_with_its_help_options_and_example(command: click.Command) -> None:
    section = shown("pbs-policy.1").partition(f"\n.SS {command.name}\n")[2].partition("\n.S")[0]
    assert section
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(command.help or "")):
        for line in paragraph.removeprefix("\b\n").splitlines() if "\b" in paragraph else [paragraph]:
            assert words(line) in words(section)
    for parameter in command.params:
        names = [*parameter.opts, *parameter.secondary_opts]
        if isinstance(parameter, click.Option):
            given = re.findall(r"^\.TP\n(.*)\n(.*)", section, re.MULTILINE)
            found = [text for head, text in given if set(names) <= set(re.split(r",? ", head))]
            assert len(found) == 1, names
            assert words(parameter.help or "") in words(found[0])


def test_the_options_of_all_commands_are_in_the_manual() -> None:
    section = shown("pbs-policy.1").partition("\n.SH OPTIONS\n")[2].partition("\n.SH")[0]
    for parameter in cli.params:
        assert all(option in section for option in parameter.opts)


def test_each_setting_is_in_its_manual_with_default_and_meaning() -> None:
    page = shown("pbs-policy.conf.5")
    for name, value in defaults().items():
        assert f".TP\n{name} (default: {value.text or 'empty'})\n{words(meaning(name))}\n" in page


def test_each_exit_status_is_in_the_manual() -> None:
    section = shown("pbs-policy.1").partition("\n.SH EXIT STATUS\n")[2].partition("\n.SH")[0]
    listed = {int(number) for number in re.findall(r"^\.TP\n\.B (\d+)\n\S", section, re.MULTILINE)}
    source = "\n".join(each.read_text() for each in (TOP / "pbs_policy" / "cli").glob("*.py"))
    used = {getattr(os, name) for name in re.findall(r"os\.(EX_\w+)", source)}
    used |= {int(number) for number in re.findall(r"^ +return (\d+)$", source, re.MULTILINE)}
    for numbers in re.findall(r'^[A-Z_, ]+ = ([\d, ]+)\n"""Exit status', source, re.MULTILINE):
        used |= set(map(int, numbers.split(",")))
    assert {1, 2, 69, 130, 141} <= used
    assert used <= listed


def test_each_reason_of_the_log_is_in_the_manual() -> None:
    page = shown("pbs-policy.8")
    for reason, meant in WHY.items():
        assert f".B {reason}\n{meant}\n" in page


def test_the_settings_that_the_script_reads_are_in_its_manual() -> None:
    section = shown("pbs-postlogin.8").partition("\n.SH SETTINGS\n")[2].partition("\n.SH")[0]
    listed = set(re.findall(r"^(\w+)[,.]$", section, re.MULTILINE))
    script = (TOP / "dovecot-hooks" / "pbs_postlogin.py").read_text()
    assert listed == set(re.findall(r'\bsettings\["(\w+)"\]', script))
    assert listed <= set(defaults())


def test_each_key_and_field_of_the_table_is_in_its_manual() -> None:
    page = shown("pbs-policy-table.5")
    keys = Keys("")
    for prefix in (keys.login_prefix, keys.permit_prefix, keys.deny_prefix, keys.deny_user_prefix):
        assert f"{prefix.decode()}<" in page
    for field in Permit._fields:
        assert f".B {field}\n" in page
