"""What the documents say is what the program does: they are compared, so that they cannot drift apart."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from pbs_policy import __version__
from pbs_policy.cli import cli
from pbs_policy.cli.check import WHY
from pbs_policy.cli.commands import PLACES
from pbs_policy.settings import defaults, meaning

TOP = Path(__file__).parent.parent
README = (TOP / "README.md").read_text()
DESIGN = (TOP / "docs" / "design.md").read_text()
INSTALLING = (TOP / "docs" / "install.md").read_text()
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.MULTILINE))

COMMANDS = [cli.get_command(click.Context(cli), name) or click.Command(None) for name in PLACES]


def plain(text: str) -> str:
    """A sentence without Markdown's quotes and what stands in brackets, to be compared word by word."""
    return re.sub(r" ?\([^()]*\)", "", text.replace("`", "").replace('"', ""))


@pytest.mark.parametrize("name", defaults())
def test_each_setting_is_in_the_readme_with_its_default_and_meaning(name: str) -> None:
    default, _, text = ROWS[name].partition(" | ") if not ROWS[name].startswith("|") else ("", "", ROWS[name][2:])
    assert default.strip("` ") == defaults()[name].text
    words = set(re.findall(r"\w+", plain(meaning(name)).lower()))
    missing = words - set(re.findall(r"\w+", text.lower()))
    assert not missing, f"the README says of {name}: {text!r}, the program: {meaning(name)!r}"


def test_the_readme_has_no_setting_that_there_is_not() -> None:
    assert set(ROWS) == set(defaults())


@pytest.mark.parametrize("command", COMMANDS, ids=PLACES)
def test_each_command_is_in_the_readme_with_its_options(command: click.Command) -> None:
    assert f"`pbs-policy {command.name}" in README
    section = README[README.index("## The command line") : README.index("## Settings")] + INSTALLING
    for parameter in command.params:
        for option in parameter.opts if isinstance(parameter, click.Option) else ():
            assert option in section, f"{option} of {command.name}"


def test_each_reason_for_a_decision_is_in_the_design() -> None:
    for reason in [*WHY, "unavailable", "no_client_address"]:
        assert f"`{reason}`" in DESIGN


def test_each_module_is_in_the_design() -> None:
    package = TOP / "pbs_policy"
    flat = ["decision", "postfix", "recorder", "service", "store", "table"]
    for module in [*package.glob("*.py"), *(file for folder in flat for file in (package / folder).glob("*.py"))]:
        if not module.name.startswith("__"):
            assert f"`{module.name}`" in DESIGN, module.name


def test_each_file_that_the_design_names_is_there() -> None:
    there = [str(file.relative_to(TOP)) for file in TOP.glob("*/**/*.py") if ".venv" not in file.parts]
    for name in re.findall(r"`([\w/-]+\.py)`", DESIGN):
        assert any(f"/{file}".endswith(f"/{name}") for file in there), name


def test_the_readme_and_the_changelog_speak_of_this_version() -> None:
    assert f"pbs-policy {__version__} ready" in README
    assert f"## {__version__}" in (TOP / "CHANGELOG.md").read_text()


def test_each_promise_names_tests_that_there_are() -> None:
    promised = (TOP / "SECURITY.md").read_text().partition("## What is not promised")[0]
    promises = re.split(r"^- (?=\*\*)", promised, flags=re.MULTILINE)[1:]
    assert promises
    for promise in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", promise)
        assert named, promise
        for file, function in named:
            assert f"def {function or 'test_'}" in (TOP / file).read_text(), f"{file}: {function}"


def test_the_links_in_the_documents_lead_somewhere() -> None:
    for document in [*TOP.glob("*.md"), *TOP.glob("*/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
