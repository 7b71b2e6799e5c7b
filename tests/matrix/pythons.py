"""The tests on every Python there is: each in a virtual environment of its own, made anew.

An interpreter is what this host has as `python3.11` and so on, on the PATH or below pyenv's folder; and the Python
of each Debian tree, in a copy of it, with all daemons.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.matrix.tree import TOP, CannotRun, Tree

WANTED = ("3.11", "3.12", "3.13", "3.14")
"""Every minor version from pyproject's lower bound to the newest that has been released."""

ABSENT = "not on this host"
LOWEST = "the oldest versions that pyproject.toml allows"

_FOR_TESTS = ("git", "runit", "openrc")
"""What the tests take besides what is in each tree. Not there from the start: the story is of a host without them."""

_PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
_INSTALL = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable")
_VERSION = "-c 'import platform; print(platform.python_version())'"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Outcome(NamedTuple):
    """What pytest said last on one Python, of how many seconds, and which tests failed; nothing where there is no
    such Python."""

    python: str
    where: str
    said: str = ""
    seconds: float = 0.0
    failures: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a test failed, or the suite did not come to its end."""
        return bool(self.failures) or not re.search(r"\d passed", self.said)


def outcomes(suites: Sequence[str], folder: Path, tests: Sequence[str]) -> Iterator[Outcome]:
    """Of this host's Pythons, and of the trees of these Debians; `tests` alone, or all."""
    for minor in WANTED:
        python = find(minor)
        if python is None:
            yield Outcome(minor, ABSENT)
            continue
        for pins, where in ([], "this host"), (lowest_versions(), f"this host, {LOWEST}"):
            if pins and minor != WANTED[0]:
                continue
            venv = folder / "venv"
            shutil.rmtree(venv, ignore_errors=True)
            subprocess.run([python, "-m", "venv", venv], check=True)
            subprocess.run([venv / "bin" / "python", *_INSTALL, f"{TOP}[test]", *pins], check=True)
            yield _outcome(f"cd {TOP} && {venv}/bin/python", where, tests, _run)
            shutil.rmtree(venv, ignore_errors=True)
    for suite in suites:
        with Tree.base(folder, suite).copy(folder / f"{suite}-tests") as tree:
            tree.put_checkout()
            tree.install(*_FOR_TESTS)
            # Tests that copy the checkout ask git what belongs to it.
            tree.run("sh", "-c", "cd /root/src && git init --quiet && git add --all && python3 -m venv /root/venv && "
                     f"/root/venv/bin/python {' '.join(_INSTALL)} '.[test]'")  # fmt: skip
            begin = "ip link set lo up; cd /root/src && "
            yield _outcome(f"{begin}/root/venv/bin/python", f"Debian {suite}", tests, tree.run)


def find(minor: str) -> str | None:
    """The newest interpreter of this minor version, None where there is none."""
    folder = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(folder.glob(f"{minor}.*/bin/python3"), key=lambda path: [*map(int, path.parts[-3].split("."))])
    return str(found[-1]) if found else shutil.which(f"python{minor}")


def _run(*command: str, **_: bool) -> subprocess.CompletedProcess[str]:
    """As `Tree.run`, here."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _outcome(python: str, where: str, tests: Sequence[str], run: Run) -> Outcome:
    """Run the tests with this interpreter. In a tree they are alone in its network, and not in the place of the
    shell, which is the first process there: a test asks about another that is."""
    began = time.monotonic()
    script = f"{python} {_VERSION} && {python} {' '.join([*_PYTEST, *tests])}; exit $?"
    version, _, output = run("sh", "-c", script, alone=True, check=False).stdout.partition("\n")
    return read(version, where, output, time.monotonic() - began)


def read(python: str, where: str, output: str, seconds: float) -> Outcome:
    """What came of a run, by what pytest printed."""
    said = (output.strip().splitlines() or [""])[-1].strip("= ")
    return Outcome(python, where, said, seconds, tuple(re.findall(r"(?m)^(?:FAILED|ERROR) (\S+)", output)))


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
