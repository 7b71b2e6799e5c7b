"""Who may import whom, as docs/design.md draws it: what is below knows nothing of what is above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pbs_policy

PACKAGE = Path(pbs_policy.__file__).parent

ABOVE = ["cli", "doctor", "install", "watch", "demo"]
NEVER = {
    "log": ["decision", "postfix", "service", "store", "table", "metrics", "settings", *ABOVE],
    "postfix": ["decision", "service", "store", "table", "metrics", "settings", *ABOVE],
    "dovecot": ["decision", "postfix", "service", "store", "table", "metrics", "settings", *ABOVE],
    "store": ["decision", "service", "metrics", *ABOVE],
    "table": ["service", "metrics", "settings", *ABOVE],
    "decision": ["service", "metrics", "settings", *ABOVE],
    "service": ABOVE,
}


def imported_by(folder: str) -> set[str]:
    """The first names below pbs_policy that any file of the folder imports, wherever in the file."""
    found = set()
    for file in (PACKAGE / folder).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "pbs_policy":
                found |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pbs_policy."):
                found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize("folder", NEVER)
def test_a_folder_imports_nothing_of_what_stands_above_it(folder: str) -> None:
    assert list((PACKAGE / folder).glob("*.py"))
    assert not imported_by(folder) & set(NEVER[folder])
