"""The package with its hot path compiled by mypyc, from the same source, in a directory of its own: for the
benchmark, for the test that holds it to the same behaviour, and as a wheel (`python -m benchmarks.compiled DIR`).

It is never built inside the checkout: what a compiler leaves there would be run in place of the source beside it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from zipfile import ZipFile

from benchmarks.figures import CannotRun
from pbs_policy.demo.daemons import find_program

_CHECKOUT = Path(__file__).parent.parent
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.so", "benchmarks", "build", "debian", "dist", "tests")


def missing() -> str:
    """What is lacking to compile anything, and how to get it; empty where nothing is."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if find_program("cc", "gcc", "clang") and headers.exists():
        return ""
    return "no C compiler, or no headers of this Python: apt-get install gcc libc6-dev python3-dev"


def build_wheel(directory: Path) -> Path:
    """The compiled wheel, made in `directory`. Raises CannotRun where it cannot be built."""
    if lack := missing():
        raise CannotRun(lack)
    with tempfile.TemporaryDirectory(prefix="pbs-compiled-") as copy:
        source = shutil.copytree(_CHECKOUT, Path(copy, "source"), ignore=_LEFT_OUT)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-build-isolation", "--wheel-dir", str(Path(copy, "dist")), str(source)]
        environment = {**os.environ, "HATCH_BUILD_HOOK_ENABLE_MYPYC": "1"}
        built = subprocess.run(command, env=environment, capture_output=True, timeout=900)
        if built.returncode:
            raise CannotRun(f"the hot path cannot be compiled: {built.stderr.decode(errors='replace')[-2000:]}")
        (wheel,) = Path(copy, "dist").glob("*.whl")
        directory.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(wheel, directory / wheel.name))


def build(directory: Path) -> Path:
    """A directory for PYTHONPATH with the compiled package in it. Raises CannotRun where it cannot be built."""
    package = directory / "compiled"
    with ZipFile(build_wheel(directory)) as wheel:
        wheel.extractall(package)
    return package


if __name__ == "__main__":
    try:
        print(build_wheel(Path(sys.argv[1])))
    except CannotRun as error:
        sys.exit(str(error))
