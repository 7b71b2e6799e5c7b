"""Both commands in one tree, in whatever order they are applied and removed: in the end every byte is as it was."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.install.support import HOOK, POSTFIX, run, snapshot

ORDERS = sorted(set(itertools.permutations(["hook", "hook", "postfix", "postfix"])))


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
@pytest.mark.usefixtures("aged_files")
def test_the_tree_is_as_it_was_after_any_order_of_apply_and_remove(root: Path, order: tuple[str, ...]) -> None:
    before = snapshot(root)
    applied: set[str] = set()
    for name in order:
        step = "--remove" if name in applied else "--dry-run"
        applied.add(name)
        command = HOOK if name == "hook" else POSTFIX
        assert run(command, "--root", str(root), step, "--apply").status == 0
        now = snapshot(root)
        assert "Nothing to " in run(command, "--root", str(root), step, "--apply").output
        assert snapshot(root) == now
    assert snapshot(root) == before
