"""Programs of another Debian than this one, such as Redis 8, Valkey 8, HAProxy 3: those of the tree that PBS_TREE
names, run here with the tree's own libraries.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

TREE = os.environ.get("PBS_TREE", "")  # read before a test takes our variables out of the environment

INSTALLED = "installed"


def names(*programs: str) -> list[str]:
    """What can be run: the one that is installed here, and those of these programs that the tree has."""
    return [INSTALLED, *(name for name in programs if TREE and _paths(name))]


def command(name: str, installed: Sequence[str]) -> list[str]:
    """How this one is run: `installed` for the one that is installed here."""
    if name == INSTALLED:
        return list(installed)
    tree = Path(TREE)
    libraries = ":".join(str(each) for each in (tree / "usr" / "lib").glob("*-linux-gnu"))
    loader = next(iter(sorted((tree / "lib64").glob("ld-linux*"))), None) or next(
        iter(sorted((tree / "lib").glob("ld-linux*")))
    )
    return [str(loader), "--library-path", libraries, str(_paths(name)[0])]


def dovecot(program: str = "dovecot", *, user: str = "0:0") -> list[str]:
    """How the tree's Dovecot or its doveadm is run: in the tree, since it starts programs of its own, with our folder
    of temporary files and our network. The tree is not changed; the mounts are of these processes alone."""
    inside = f"mount --rbind /dev {TREE}/dev && mount -t proc proc {TREE}/proc"
    inside += f" && mount --bind {tempfile.gettempdir()} {TREE}{tempfile.gettempdir()}"
    inside += f' && exec chroot --userspec={user} {TREE} {program} "$@"'
    return ["unshare", "--mount", "sh", "-c", inside, "sh"]


def _paths(name: str) -> list[Path]:
    return [path for folder in ("bin", "sbin") if (path := Path(TREE) / "usr" / folder / name).exists()]
