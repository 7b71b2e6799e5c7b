"""Who may import whom, as docs/design.md draws it: what is below knows nothing of what is above it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
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
    "service": ["recorder", *ABOVE],
    "recorder": ABOVE,
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


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name."""
    files = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(("pbs_policy", *file.relative_to(PACKAGE).with_suffix("").parts)) for file in files]
    return {
        name.removesuffix(".__init__"): ast.parse(file.read_text()) for name, file in zip(names, files, strict=True)
    }


def imports(node: ast.AST) -> Iterator[ast.ImportFrom]:
    """All that are carried out at some time, those in functions too: they put a circle off and do not end it. What
    stands under TYPE_CHECKING is never carried out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom):
            yield child
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from imports(child)


def test_no_module_imports_itself_by_way_of_others() -> None:
    trees = modules()
    graph: dict[str, set[str]] = {}
    for name, tree in trees.items():
        found = [f"{each.module}.{what.name}" for each in imports(tree) for what in each.names]
        graph[name] = {each if each in trees else each.rpartition(".")[0] for each in found} & set(trees) - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_two_classes_have_one_name() -> None:
    places = defaultdict(list)
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    assert not {name: found for name, found in places.items() if len(found) > 1}
