"""Redis and Valkey of another Debian than this one, such as Redis 8 and Valkey 8: programs of the tree that PBS_TREE
names, run here with the tree's own libraries.
"""

from __future__ import annotations

import os
from pathlib import Path

TREE = os.environ.get("PBS_TREE", "")  # read before a test takes our variables out of the environment

INSTALLED = "installed"


def names() -> list[str]:
    """What `program` knows: the Redis that is installed, and those that the tree has."""
    tree = [name for name in ("redis-server", "valkey-server") if TREE and _path(name).exists()]
    return [INSTALLED, *tree]


def program(name: str) -> list[str]:
    """How this one is run (`program` of PrivateRedis); nothing where it is the one that is installed."""
    if name == INSTALLED:
        return []
    tree = Path(TREE)
    libraries = ":".join(str(each) for each in (tree / "usr" / "lib").glob("*-linux-gnu"))
    loader = next(iter(sorted((tree / "lib64").glob("ld-linux*"))), None) or next(
        iter(sorted((tree / "lib").glob("ld-linux*")))
    )
    return [str(loader), "--library-path", libraries, str(_path(name))]


def _path(name: str) -> Path:
    return Path(TREE) / "usr" / "bin" / name
