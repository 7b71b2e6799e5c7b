"""The hot path compiled by mypyc behaves as its source does: the same tests, run on the compiled package."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import compiled

TESTS = Path(__file__).parent
HELD = (
    ("test_service.py",),
    ("test_protocol.py", "test_shortcut.py", "test_latency.py", "test_lookups.py", "test_caps.py"),
)
"""Two halves, which take about the same time, and mostly wait: they run side by side."""


@pytest.mark.timeout(1800)
def test_the_compiled_hot_path_passes_the_tests_of_its_source(tmp_path: Path) -> None:
    if lack := compiled.missing():
        pytest.skip(lack)
    environment = {**os.environ, "PYTHONPATH": str(compiled.build(tmp_path)), "PYTHONSAFEPATH": "1"}
    where = "import pbs_policy.service.connection as it; print(it.__file__)"
    found = subprocess.run([sys.executable, "-c", where], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith(".so")
    # `append`: the checkout is where the tests are, and not where the package is looked for first.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--import-mode=append", "-p", "no:cacheprovider"]
    command += ["-k", "not takes_the_short_way and not short_way_takes_only"]  # they replace a method of a class
    with ExitStack() as stack:
        halves = []
        for names in HELD:
            half = subprocess.Popen(
                [*command, *(str(TESTS / name) for name in names)],
                env=environment,
                cwd=TESTS.parent,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            halves.append(stack.enter_context(half))
            stack.callback(half.kill)
        for half in halves:
            said, _ = half.communicate()
            assert half.returncode == 0, said[-8000:]
