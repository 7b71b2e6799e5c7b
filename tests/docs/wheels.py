"""What `pip install .` needs, fetched beforehand for places that have no way out."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import sys
import tempfile
import tomllib
from functools import cache
from pathlib import Path

from tests.pages import TOP


def fetch(python_version: str, root: Path) -> None:
    """Put our dependencies for this Python ("3.11") into the tree at `root`, and have its pip look there alone."""
    # Not by pip: it resolves the link that /proc has for another root, and would write into our own.
    shutil.copytree(_fetched(python_version), root / "root" / "wheels")
    settings = root / "root" / ".config" / "pip"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /root/wheels\n")


@cache
def _fetched(python_version: str) -> Path:
    """A folder with our dependencies, fetched once for all tests."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    wanted_too = project["project"]["optional-dependencies"]["recorder"]
    # Of redis on Python 3.11.2 and older: pip weighs that for the Python it runs on, not for this one.
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"], *wanted_too, "async-timeout"]
    platforms = [f"--platform=manylinux{each}_x86_64" for each in ("2014", "_2_17", "_2_28")]
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--only-binary=:all:"]
    directory = tempfile.TemporaryDirectory(prefix="pbs-")
    atexit.register(directory.cleanup)
    target = [f"--dest={directory.name}", *platforms, f"--python-version={python_version}"]
    subprocess.run([*pip, *target, *wanted], check=True)
    return Path(directory.name)
