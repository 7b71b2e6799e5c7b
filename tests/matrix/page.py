"""docs/matrix.md: written by the run itself, so that it says what was seen and nothing else."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.matrix.pythons import Outcome

_HEAD = """\
# Where it runs

Written by `make matrix` and `make pythons` (as root, with debootstrap): what is here was seen by such a run. Each
makes its own Debian from the mirror that the host's apt knows; daemons run in it as their packages configure them, on
their usual ports, in a network of their own.
"""


@dataclass
class Told:
    """One telling of the story: where, from what, and how far it came."""

    debian: str
    installed: str
    versions: dict[str, str] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""


def stories(told: list[Told], wheel: str, lintian: dict[str, str]) -> str:
    """The section of the stories."""
    rows = [
        [
            each.debian, each.versions.get("postfix", ""), each.versions.get("dovecot", ""),
            each.versions.get("python", ""), each.versions.get("store", ""), each.installed,
            f"{len(each.steps)} steps, all right" if not each.error else f"**failed**: {each.error}",
            f"{each.seconds:.0f} s",
        ]
        for each in told
    ]  # fmt: skip
    most = max(told, key=lambda each: len(each.steps), default=Told("", ""))
    lines = [
        f"{_now()}, `{wheel}`. A client at 192.0.2.10 and 2001:db8::10, another at 192.0.2.99 and 2001:db8::99.",
        "",
        _table(["Debian", "Postfix", "Dovecot", "Python", "store", "installed", "story", "took"], rows),
    ]
    if lintian:
        lines += ["", *(f"lintian on the package of {name}: {said or 'nothing'}." for name, said in lintian.items())]
    if most.steps:
        lines += ["", f"The steps ({most.debian}, {most.installed}):", "", *(f"1. {step}" for step in most.steps)]
    return "\n".join(lines)


def pythons(outcomes: list[Outcome], tests: list[str]) -> str:
    """The section of the tests."""
    what = ", ".join(f"`{each}`" for each in tests) or "the whole suite"
    rows = [[each.python, each.where, each.said, f"{each.seconds:.0f} s" if each.said else ""] for each in outcomes]
    lines = [f"{_now()}: {what}.", "", _table(["Python", "where", "pytest said", "took"], rows)]
    if failures := [f"- {each.python}: `{name}`" for each in outcomes for name in each.failures]:
        lines += ["", "Failed:", "", *failures]
    return "\n".join(lines)


def write(path: Path, **sections: str) -> None:
    """Put these sections in the place of theirs; the others stay."""
    titles = {"stories": "The story, on each Debian", "pythons": "The tests, on each Python"}
    old = path.read_text() if path.exists() else ""
    parts = {name: found[1].strip() for name, title in titles.items()
             if (found := re.search(rf"(?ms)^## {re.escape(title)}\n(.*?)(?=^## |\Z)", old))}  # fmt: skip
    parts |= sections
    text = _HEAD + "".join(f"\n## {title}\n\n{parts[name]}\n" for name, title in titles.items() if name in parts)
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M %Z", time.gmtime()).replace("GMT", "UTC")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
