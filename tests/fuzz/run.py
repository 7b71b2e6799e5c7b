"""The fuzzer, guided by coverage: `python -m tests.fuzz.run TARGET [SECONDS]` (`make fuzz`), or no TARGET for all.

It begins with the corpus in the repository, and keeps what it finds in `.fuzz/`; an input that breaks the invariant
is kept there as `TARGET-crash-...`. With `--keep` the corpus becomes the smallest set of inputs, old and new, that
reaches all that was reached. Needs atheris (the extra `fuzz`), which is not to be had for every Python.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.fuzz.targets import TARGETS, load

TOP = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
WORK = TOP / ".fuzz"
RUNS = 10**8
"""Executions after which a target has had enough, if its time is not over before."""


def main(arguments: list[str]) -> int:
    """Run the targets named, one after the other; 1 where one of them met a fault."""
    if importlib.util.find_spec("atheris") is None:
        print("skipped: atheris is not here; pip install 'pbs-policy[fuzz]'")  # noqa: T201
        return 0
    keeps = "--keep" in arguments
    rest = [each for each in arguments if each != "--keep"]
    names = [each for each in rest if not each.isdigit()] or list(TARGETS)
    seconds = next((int(each) for each in rest if each.isdigit()), 60)
    faults = [fuzz(name, seconds) for name in names]
    if keeps:
        for name in names:
            keep(name)
    return int(any(faults))


def fuzz(name: str, seconds: int) -> bool:
    """Run one target for so long, and print a line of what came of it. Whether it met a fault."""
    load(name)
    corpus, found, words = CORPUS / name, WORK / name, WORK / f"{name}.words"
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    lines = (f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in word)}"\n' for word in load(name).WORDS)
    words.write_text("".join(lines))
    options = [f"-max_total_time={seconds}", f"-runs={RUNS}", "-max_len=2048", "-timeout=10", "-print_final_stats=1"]
    options += [f"-dict={words}", f"-artifact_prefix={WORK}/{name}-", "-rss_limit_mb=1024"]
    began = time.monotonic()
    result = _run(name, [*options, str(found), str(corpus)])
    took = time.monotonic() - began
    (WORK / f"{name}.log").write_text(result.stdout)
    executions = re.findall(r"^(?:stat::number_of_executed_units: +|#)(\d+)", result.stdout, re.MULTILINE)
    number = max(map(int, executions), default=0)
    verdict = "nothing found" if result.returncode == 0 else f"a fault, see {WORK.name}/{name}.log"
    print(f"{name}: {number} executions, {took:.0f} s: {verdict}", flush=True)  # noqa: T201
    return result.returncode != 0


def keep(name: str) -> None:
    """Make the corpus of a target the smallest set of inputs that reaches what all of them do."""
    corpus, found, merged = CORPUS / name, WORK / name, WORK / f"{name}.merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    _run(name, ["-set_cover_merge=1", "-max_len=2048", str(merged), str(corpus), str(found)])
    files = sorted(merged.iterdir())
    if files:
        shutil.rmtree(corpus)
        shutil.copytree(merged, corpus)
        size = sum(each.stat().st_size for each in files)
        print(f"{name}: {len(files)} inputs are kept, {size} bytes", flush=True)  # noqa: T201


def _run(name: str, options: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz.run", "--within", name, *options]
    return subprocess.run(command, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def within(name: str, options: list[str]) -> None:
    """The process that fuzzes: only here the package is loaded with the fuzzer's marks in it."""
    atheris: Any = importlib.import_module("atheris")  # not always here, and without types
    with atheris.instrument_imports(include=["pbs_policy", "pbs_postlogin"]):
        target = load(name)
    atheris.Setup([name, *options], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--within"]:
        within(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main(sys.argv[1:]))
