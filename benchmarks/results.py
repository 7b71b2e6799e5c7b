"""RESULTS.md: written whole after a full run, and section by section where cells were named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_HEADING = re.compile(r"^## (?=\S)", re.MULTILINE)
_INTRODUCTION = """\
# Results

Written by `make bench` (README.md says how to read it). Compare rows within one table only: another machine, or this
one at another hour, gives other figures, while the ratios stay about the same. Where a second ratio stands in
parentheses, the first is the ratio of the medians, which decides whether the bar was met, and the second is the
median of the ratios within each round.
"""


def compose(machine: str, sections: Mapping[str, str]) -> str:
    """The whole file: the machine, then each section (title: text) in the order given."""
    blocks = (f"## {title}\n\n{text}\n" for title, text in {"Machine": machine, **sections}.items())
    return "\n".join([_INTRODUCTION, *blocks])


def replace(old: str, machine: str, sections: Mapping[str, str]) -> str:
    """The file `old` with these sections put in the place of theirs, new ones at the end."""
    known: dict[str, str] = {}
    for part in _HEADING.split(old)[1:]:
        title, _, text = part.partition("\n")
        known[title.strip()] = text.strip()
    known.pop("Machine", None)
    return compose(machine, known | dict(sections))


def write(path: Path, machine: str, sections: Mapping[str, str], *, whole: bool) -> None:
    """Write the file, in one step: a reader sees the old or the new one."""
    old = path.read_text() if path.exists() and not whole else ""
    text = replace(old, machine, sections) if old else compose(machine, sections)
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)
