"""Redis and Valkey of another Debian than this one, such as Redis 8 and Valkey 8: programs of the tree that PBS_TREE
names, run here with the tree's own libraries.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TREE = os.environ.get("PBS_TREE", "")  # read before a test takes our variables out of the environment

OF_THE_TREE = [pytest.param(name, marks=pytest.mark.tree) for name in ("redis-server", "valkey-server")]
"""Parameters of a fixture, for `tree_program`."""


def tree_program(name: str) -> list[str]:
    """How `usr/bin/NAME` of the tree is run here. Skips the test where there is none."""
    tree = Path(TREE)
    program = tree / "usr" / "bin" / name
    if not TREE or not program.exists():
        pytest.skip(f"no {name} in a Debian tree: PBS_TREE=DIR, made as tests/trees/README.md says")
    libraries = ":".join(str(each) for each in (tree / "usr" / "lib").glob("*-linux-gnu"))
    loader = next(iter(sorted((tree / "lib64").glob("ld-linux*"))), None) or next(
        iter(sorted((tree / "lib").glob("ld-linux*")))
    )
    return [str(loader), "--library-path", libraries, str(program)]
