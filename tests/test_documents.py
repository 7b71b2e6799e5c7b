"""The documents say what is so: commands, settings, snippets, links and quoted log lines, against the program."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from pbs_policy.cli import cli

TOP = Path(__file__).parent.parent
DOCS = sorted((TOP / "docs").rglob("*.md"))
PAGES = [TOP / "README.md", *DOCS]


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in DOCS:
        for match in re.finditer(rf"^( *)```{language}\n(.*?)^\1```$", page.read_text(), re.MULTILINE | re.DOTALL):
            text = "\n".join(line.removeprefix(match[1]) for line in match[2].splitlines())
            found.append((str(page.relative_to(TOP)), text + "\n"))
    assert found, f"no page has a block of {language}"
    return found


def command_lines() -> list[str]:
    found = set()
    for page in PAGES:
        text = page.read_text()
        found.update(re.findall(r"`(pbs-policy [a-z-][^`\n]*)`", text))
        found.update(line.strip() for line in re.findall(r"^ *(?:sudo )?(pbs-policy [a-z-].*)$", text, re.MULTILINE))
    # With "[", "..." or a backslash it is a synopsis; tests/test_docs.py compares those with the program.
    return sorted({line.partition(" #")[0].strip() for line in found if not re.search(r"\[|\.\.\.|\\", line)})


@pytest.mark.parametrize(("page", "text"), blocks("sh"))
def test_a_shell_snippet_can_be_parsed(page: str, text: str) -> None:
    done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True)
    assert done.returncode == 0, f"{page}: {done.stderr}"


@pytest.mark.parametrize("line", command_lines())
def test_a_command_line_has_a_command_and_options_that_exist(line: str) -> None:
    words = shlex.split(re.split(r" && |; | \| ", line)[0])[1:]
    context = click.Context(cli)
    if words[0].startswith("-"):
        return
    command = cli.get_command(context, words[0])
    assert command is not None, line
    options = {o for p in [*command.params, *cli.params] for o in p.opts + p.secondary_opts} | {"-h", "--help"}
    for word in re.findall(r"(?<![\w-])--?[a-z][\w-]*", " ".join(words[1:])):
        assert word in options, f"{line}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_a_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_each_page_is_in_the_index() -> None:
    index = (TOP / "docs" / "README.md").read_text()
    for page in DOCS:
        name = str(page.relative_to(TOP / "docs"))
        assert name == "README.md" or f"({name})" in index, name


def test_each_check_of_doctor_that_is_named_is_in_its_reference() -> None:
    reference = (TOP / "docs" / "doctor.md").read_text()
    for page in DOCS:
        for name in re.findall(r"`((?:postfix|dovecot|store|service|use)\.(?!py`)[a-z_]+)`", page.read_text()):
            assert f"`{name}`" in reference, f"{page.name}: {name}"
