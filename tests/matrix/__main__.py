"""`python -m tests.matrix stories|pythons`: see `--help`. Writes docs/matrix.md; exit status 1 where something
failed."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from tests.matrix import page, pythons
from tests.matrix.page import Told
from tests.matrix.pythons import Outcome
from tests.matrix.tree import TO_BUILD, TOP, CannotRun, Tree, need_root_and_debootstrap

WORK = TOP / "build" / "matrix"
PAGE = TOP / "docs" / "matrix.md"
STORES = {"bookworm": ("redis",), "trixie": ("redis", "valkey"), "forky": ("redis",)}
"""The Debians, and what each is told the story with. forky is the next one: it shows what is to come."""

WAYS = ("wheel, venv", "wheel, pipx", "Debian package")

_AS_README = """\
set -e
useradd --system --no-create-home --shell /usr/sbin/nologin pbs-policy
install -d /etc/pbs-policy && touch /etc/pbs-policy/pbs-policy.conf
"""
_VENV = """\
python3 -m venv /opt/pbs-policy
/opt/pbs-policy/bin/pip install --quiet --disable-pip-version-check /root/*.whl
ln -s /opt/pbs-policy/bin/pbs-policy /usr/local/bin/
"""
_PIPX = """\
export PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin
pipx install /root/*.whl
"""


def main() -> int:
    """Returns the exit status of sysexits.h, or 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("what", choices=["stories", "pythons"])
    parser.add_argument("--suite", action="append", choices=list(STORES), help="only this Debian; may be repeated")
    parser.add_argument("--way", action="append", choices=WAYS, help="only installed so; may be repeated")
    parser.add_argument("--no-write", action="store_true", help="leave docs/matrix.md as it is")
    parser.add_argument("tests", nargs="*", help="of pythons: what pytest runs; default: every test")
    options = parser.parse_args()
    try:
        need_root_and_debootstrap()
        suites = options.suite or list(STORES)
        if options.what == "stories":
            return _stories(suites, options.way or list(WAYS), not options.no_write)
        return _pythons(suites, options.tests, not options.no_write)
    except CannotRun as reason:
        sys.stderr.write(f"matrix: {reason}\n")
        return 69


def _stories(suites: list[str], ways: list[str], writes: bool) -> int:
    wheel = _wheel()
    told: list[Told] = []
    lintian: dict[str, str] = {}
    for suite in suites:
        base = Tree.base(WORK, suite)
        package = None
        if "Debian package" in ways:
            package, lintian[suite] = _build_package(base)
        for way in ways:
            for store in STORES[suite]:
                told.append(_tell(base, way, store, package if way == "Debian package" else wheel))
                _say(f"{suite}, {store}, {way}: {told[-1].error or 'all right'}, {told[-1].seconds:.0f} s")
                if writes:  # after each: the next one may take long
                    page.write(PAGE, stories=page.stories(told, wheel.name, lintian))
    return int(any(each.error for each in told))


def _wheel() -> Path:
    folder = WORK / "wheel"
    for old in folder.glob("*.whl"):
        old.unlink()
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", folder, TOP], check=True)
    [wheel] = folder.glob("*.whl")
    return wheel


def _build_package(base: Tree) -> tuple[Path, str]:
    """The .deb that `make deb` makes in this Debian, and what lintian says of it."""
    with base.copy(WORK / f"{base.suite}-build") as tree:
        tree.put_checkout()
        tree.install(*TO_BUILD)
        tree.run("sh", "-c", "cd /root/src && apt-get build-dep -y -qq --no-install-recommends ./ && make deb")
        said = tree.run("sh", "-c", "lintian --allow-root --fail-on none -I /root/src/dist/*.deb").stdout
        [built] = (tree.path / "root/src/dist").glob("*.deb")
        folder = WORK / "packages" / base.suite
        folder.mkdir(parents=True, exist_ok=True)
        (folder / built.name).write_bytes(built.read_bytes())
        hints = [line.replace("|", "/") for line in said.splitlines() if line[1:2] == ":"]
        return folder / built.name, "; ".join(hints)


def _tell(base: Tree, way: str, store: str, file: Path | None) -> Told:
    told = Told(base.suite, way)
    start = time.monotonic()
    with base.copy(WORK / f"{base.suite}-story") as tree:
        try:
            if file is None:
                raise CannotRun("there is nothing to install")
            inside = tree.put(file)
            if way == "Debian package":
                tree.install(inside)
            else:
                tree.run("sh", "-c", _AS_README + (_VENV if way == "wheel, venv" else _PIPX))
            script = tree.put(Path(__file__).with_name("inside.py"))
            options = ["remove-package"] if way == "Debian package" else []
            # /tmp as it is in a system: apt's and Postfix' own helpers write there under other users.
            done = tree.run("/usr/bin/python3", script, store, *options, alone=True, check=False)
            _take(told, done.stdout)
            if done.returncode and not told.error:
                told.error = f"status {done.returncode}: {done.stdout[-500:]}"
        except CannotRun as reason:
            told.error = str(reason).replace("\n", " ")
    told.seconds = time.monotonic() - start
    return told


def _take(told: Told, output: str) -> None:
    """What inside.py says, a line of JSON for each fact; of the rest a person may make something."""
    for line in output.splitlines():
        try:
            fact = json.loads(line)
        except ValueError:
            sys.stderr.write(f"{line}\n")
            continue
        if "postfix" in fact:
            told.versions = fact
        elif "error" in fact:
            told.error = f"{fact['step']}: {fact['error']}"
        elif "step" in fact:
            told.steps.append(fact["step"])
        else:
            sys.stderr.write(f"--- {fact['log']}\n{fact['text']}\n")


def _pythons(suites: list[str], tests: list[str], writes: bool) -> int:
    outcomes: list[Outcome] = []
    for outcome in pythons.outcomes(suites, WORK, tests):
        outcomes.append(outcome)
        _say(f"Python {outcome.python}, {outcome.where}: {outcome.said}")
        if writes:  # after each: the next one may take long
            page.write(PAGE, pythons=page.pythons(outcomes, tests))
    return int(any(each.failed for each in outcomes if each.where != pythons.ABSENT))


def _say(text: str) -> None:
    sys.stderr.write(f"matrix: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
