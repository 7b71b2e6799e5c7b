"""The unit tests on every Python there is: each in a virtual environment of its own, made anew.

An interpreter is what this host has as `python3.11` and so on, on the PATH or below pyenv's folder; and the Python
of each Debian tree, in a copy of it, with all daemons.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.matrix.tree import TOP, CannotRun, Tree

WANTED = ("3.11", "3.12", "3.13", "3.14")
"""Every minor version from pyproject's lower bound to the newest that has been released."""

ABSENT = "not on this host"
LOWEST = "the oldest versions that pyproject.toml allows"

_FOR_TESTS = ("git", "runit", "openrc")
"""What the tests take besides what is in each tree. Not there from the start: the story is of a host without them."""

_PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly")


@dataclass
class Outcome:
    """What the suite said on one Python. `counts` is empty where there is no such Python."""

    python: str
    where: str
    counts: dict[str, int]
    seconds: float = 0.0
    failures: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a test failed, or the suite did not come to its end."""
        return "passed" not in self.counts or bool(self.counts.get("failed") or self.counts.get("errors"))


def find(minor: str) -> str | None:
    """The newest interpreter of this minor version, None where there is none."""
    folder = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(folder.glob(f"{minor}.*/bin/python3"), key=lambda path: [*map(int, path.parts[-3].split("."))])
    return str(found[-1]) if found else shutil.which(f"python{minor}")


def on_this_host(python: str, folder: Path, tests: list[str], lowest: bool = False) -> Outcome:
    """Run `tests` (all of them where that is empty) with this interpreter, from an environment made in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", folder], check=True)
    pip: list[str | Path] = [folder / "bin" / "python", "-m", "pip", "install"]
    pip += ["--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--editable", f"{TOP}[test]", *(lowest_versions() if lowest else [])], check=True)
    version = subprocess.run(
        [folder / "bin" / "python", "-c", "import platform; print(platform.python_version())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    start = time.monotonic()
    done = subprocess.run(
        [folder / "bin" / "python", *_PYTEST, *tests], cwd=TOP,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    where = f"this host, {LOWEST}" if lowest else "this host"
    return _outcome(version, where, done.stdout, time.monotonic() - start)


def in_tree(tree: Tree, tests: list[str]) -> Outcome:
    """Run the tests with the tree's own Python and daemons."""
    tree.put_checkout()
    tree.install(*_FOR_TESTS)
    # Tests that copy the checkout ask git what belongs to it.
    tree.run("sh", "-c", "cd /root/src && git init --quiet && git add --all")
    tree.run("sh", "-c", "python3 -m venv /root/venv && cd /root/src && "
             "/root/venv/bin/pip install --quiet --disable-pip-version-check --editable '.[test]'")  # fmt: skip
    version = tree.run("/root/venv/bin/python", "-c", "import platform; print(platform.python_version())")
    start = time.monotonic()
    command = " ".join([*_PYTEST, *tests])
    # Not in the place of the shell, which is the first process here: a test asks about another that is.
    script = f"ip link set lo up; cd /root/src && /root/venv/bin/python {command}; exit $?"
    done = tree.run("sh", "-c", script, alone=True, check=False)
    return _outcome(version.stdout.strip(), f"Debian {tree.suite}", done.stdout, time.monotonic() - start)


def lowest_versions() -> list[str]:
    """The runtime dependencies of pyproject.toml, each at its lower bound, as pip reads it.

    Raises CannotRun for one without a bound.
    """
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    pinned = []
    for dependency in project["dependencies"]:
        found = re.match(r"([\w-]+)>=([\d.]+)", dependency)
        if found is None:
            raise CannotRun(f"pyproject.toml: {dependency}: expected a lower bound")
        pinned.append(f"{found[1]}~={found[2]}.0" if found[2].count(".") == 1 else f"{found[1]}=={found[2]}")
    return pinned


def _outcome(version: str, where: str, output: str, seconds: float) -> Outcome:
    last = (output.strip().splitlines() or [""])[-1]
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
    if not counts:
        sys.stderr.write(f"{output[-3000:]}\nmatrix: pytest did not come to its end\n")
    failures = tuple(re.findall(r"(?m)^(?:FAILED|ERROR) (\S+)", output))
    return Outcome(version, where, counts, seconds, failures)
