"""The pages of the documentation, taken apart into the snippets that readers copy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parent.parent
PAGES = [
    TOP / "README.md",
    *sorted((TOP / "docs").rglob("*.md")),
    TOP / "dovecot-hooks" / "README.md",
    TOP / "postfix-examples" / "README.md",
]

MADE = {"__pycache__", "build", "dist", ".git", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".venv"}
"""Folders that commands leave in a checkout."""


def tracked_files(folder: str = ".") -> list[str]:
    """The files of the project in `folder`, as paths from the top of the checkout: those that git knows of, or, in a
    copy that is none of git's, those that lie there."""
    if (TOP / ".git").exists() and shutil.which("git"):
        # Whoever runs the tests need not be the owner of the checkout.
        command = ["git", "-c", f"safe.directory={TOP}", "ls-files", "-z", "--", folder]
        said = subprocess.run(command, cwd=TOP, check=True, capture_output=True, text=True).stdout
        return [name for name in said.split("\0") if name]
    found = []
    for directory, folders, files in os.walk(TOP / folder):
        folders[:] = [each for each in folders if each not in MADE]
        found += [str((Path(directory) / each).relative_to(TOP)) for each in files]
    return sorted(found)


@dataclass(frozen=True)
class Snippet:
    """A fenced or an indented block of a page."""

    page: str
    """Path of the page, from the top of the checkout."""
    number: int
    """Which block of the page it is, from 1."""
    kind: str
    """What stands behind the fence, such as `sh` or `sh second-host`; empty for an indented block."""
    text: str
    before: str
    """The paragraph before it: where a file's name is said."""
    after: str
    """The paragraph behind it: what the reader is told to see."""

    @property
    def name(self) -> str:
        """How a list names it."""
        return f"{self.page}:{self.number}"

    @property
    def promised(self) -> list[str]:
        """What the paragraph behind says that one sees, each as a regular expression."""
        told = re.search(r"You see (.*?)(?:\.(?:\s|$)|$)", self.after, re.DOTALL)
        quoted = re.findall(r"`([^`]+)`", told[1]) if told else []
        return [re.escape(" ".join(each.split())).replace(r"\.\.\.", ".*") for each in quoted]


def snippets(page: Path) -> list[Snippet]:
    """Every block of a page in order."""
    found: list[Snippet] = []
    paragraphs = _paragraphs(page.read_text())
    for at, (kind, text) in enumerate(paragraphs):
        if kind is not None:
            before = next((t for k, t in reversed(paragraphs[:at]) if k is None), "")
            after = paragraphs[at + 1][1] if at + 1 < len(paragraphs) and paragraphs[at + 1][0] is None else ""
            found.append(Snippet(str(page.relative_to(TOP)), len(found) + 1, kind, text, before, after))
    return found


def every_snippet() -> list[Snippet]:
    """Every block of every page."""
    return [snippet for page in PAGES for snippet in snippets(page)]


def _paragraphs(text: str) -> list[tuple[str | None, str]]:
    """Blocks (with their kind) and paragraphs (with None) in order; a list's items are paragraphs."""
    found: list[tuple[str | None, str]] = []
    lines = text.split("\n")
    at = 0
    listed = False
    while at < len(lines):
        line = lines[at]
        fence = re.match(r"( *)```(.*)", line)
        end = at + 1
        if fence:
            while lines[end].rstrip() != fence[1] + "```":
                end += 1
            body = "".join(each.removeprefix(fence[1]) + "\n" for each in lines[at + 1 : end])
            found.append((fence[2].strip(), body))
            end += 1
        elif re.match(r" {4,}\S", line) and not (listed and not line.startswith(" " * 6)):
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            block = lines[at:end]
            while not block[-1].strip():
                block.pop()
            width = min(len(each) - len(each.lstrip()) for each in block if each.strip())
            found.append(("", "".join(each[width:] + "\n" for each in block)))
        elif line.strip():
            while end < len(lines) and lines[end].strip() and not re.match(r" *```|#", lines[end]):
                end += 1
            listed = bool(re.match(r"[-*] |\d+\. ", line)) or (listed and line.startswith(" "))
            found.append((None, "\n".join(lines[at:end])))
        at = end
    return found
