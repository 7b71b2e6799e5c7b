"""The fuzzer, guided by coverage: `python -m tests.fuzz.run TARGET [SECONDS]` (`make fuzz`), or no TARGET for all.

It begins with the corpus in the repository, and keeps what it finds in `.fuzz/`; an input that breaks the invariant
is kept there as `TARGET-crash-...`. With `--keep` the corpus becomes the named inputs and as few others, old and new,
as reach all that was reached. What came of each target is printed as a row of the table in docs/fuzzing.md. Needs
atheris (the extra `fuzz`), which is not to be had for every Python.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.fuzz.targets import TARGETS, load

TOP = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
WORK = TOP / ".fuzz"
_is_made = re.compile("[0-9a-f]{40}").fullmatch  # by the fuzzer, not by people

RUNS = 10**8
"""Executions after which a target has had enough, if its time is not over before."""


def main(arguments: list[str]) -> int:
    """Run the targets named, one after the other; 1 where one of them met a fault."""
    if importlib.util.find_spec("atheris") is None:
        print("skipped: atheris is not here; pip install 'pbs-policy[fuzz]'")
        return 0
    options = [each for each in arguments if each.startswith("--")]
    rest = [each for each in arguments if each not in options]
    names = [each for each in rest if not each.isdigit()] or list(TARGETS)
    seconds = next((int(each) for each in rest if each.isdigit()), 60)
    faults = 0
    for name in names:
        faults += fuzz(name, seconds)
        if "--keep" in options:
            keep(name)
    return int(faults > 0)


def fuzz(name: str, seconds: int) -> bool:
    """Run one target for so long, keep the log, and print a row of what came of it. Whether a fault did."""
    corpus, found, words = CORPUS / name, WORK / name, WORK / f"{name}.words"
    found.mkdir(parents=True, exist_ok=True)
    lines = (f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in word)}"\n' for word in load(name).WORDS)
    words.write_text("".join(lines))
    options = [f"-max_total_time={seconds}", f"-runs={RUNS}", "-max_len=2048", "-timeout=60", "-print_final_stats=1"]
    options += [f"-dict={words}", f"-artifact_prefix={WORK}/{name}-", "-rss_limit_mb=1024"]
    done = _run(name, [*options, str(found), str(corpus)])
    (WORK / f"{name}.log").write_text(done.stdout)
    runs = re.findall(r"^(?:#|Done )(\d+)", done.stdout, re.MULTILINE)
    edges = re.findall(r" cov: (\d+) ", done.stdout)
    inputs = len(list(corpus.iterdir()))
    verdict = f"**a fault**: .fuzz/{name}.log" if done.returncode else "0"
    print(f"| `{name}` | {_most(runs):,} | {seconds} s | {_most(edges)} | {inputs} | {verdict} |", flush=True)
    return done.returncode != 0


def _most(numbers: list[str]) -> int:
    return max(map(int, numbers), default=0)


def keep(name: str) -> None:
    """Let the corpus of a target be the inputs that people have named, and of all others as few as reach the rest."""
    corpus, found, merged = CORPUS / name, WORK / name, WORK / f"{name}.merged"
    shutil.rmtree(merged, ignore_errors=True)
    shutil.copytree(corpus, merged, ignore=lambda _, files: filter(_is_made, files))
    _run(name, ["-merge=1", "-max_len=2048", str(merged), str(corpus), str(found)])
    shutil.rmtree(corpus)
    shutil.copytree(merged, corpus)
    size = sum(each.stat().st_size for each in corpus.iterdir())
    print(f"{name}: {len(list(corpus.iterdir()))} inputs are kept, {size} bytes", flush=True)


def _run(name: str, options: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz.run", "--within", name, *options]
    return subprocess.run(command, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def within(name: str, options: list[str]) -> None:
    """The process that fuzzes: only here the package is loaded with the fuzzer's marks in it."""
    atheris: Any = importlib.import_module("atheris")  # not always here, and without types
    with atheris.instrument_imports(include=["pbs_policy", "pbs_postlogin"]):
        target = load(name)
    # libFuzzer starts itself anew by its first argument, through a shell, where it merges inputs.
    atheris.Setup([f"{sys.executable} -m tests.fuzz.run --within {name}", *options], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--within"]:
        within(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main(sys.argv[1:]))
