"""What was measured, and on what: RESULTS.md begins with it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import table
from benchmarks.processes import CORES, SOURCES
from pbs_policy import __version__
from pbs_policy.programs import find_program

_UNKNOWN = "not installed"


def fingerprint() -> str:
    """The machine in one line, so that sections of different runs can be told apart."""
    return f"pbs-policy {_commit()}, Python {platform.python_version()}, {_cpu()}, {len(CORES)} cores"


def description() -> str:
    """Machine and versions as a table."""
    rows = [
        ["CPU", _cpu()],
        ["cores in use", f"{len(CORES)} of {os.cpu_count()}"],
        ["memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"],
        ["kernel", f"{platform.system()} {platform.release()}"],
        ["Python", f"{platform.python_version()} ({platform.python_compiler()})"],
        *([name, _package(name)] for name in ("uvloop", "hiredis", "click")),
        ["Redis", _said(["redis-server", "valkey-server"], ["--version"], r"v=\S+.*?malloc=\S+")],
        ["Postfix", _said(["postconf"], ["-dh", "mail_version"], r"\S+")],
        ["Dovecot", _said(["dovecot"], ["--version"], r"\S+")],
        ["cc", _said(["cc", "gcc", "clang"], ["--version"], r".+")],
    ]
    return table(["", ""], rows, left=2)


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _UNKNOWN


def _said(programs: Sequence[str], arguments: Sequence[str], pattern: str) -> str:
    """What stands in the program's answer, or that there is no such program."""
    program = find_program(*programs)
    if program is None:
        return _UNKNOWN
    answer = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20, check=False).stdout
    found = re.search(pattern, answer)
    return found[0] if found else "unknown"


def _commit() -> str:
    """The version, and in a checkout the commit, with a + where files differ from it."""
    git = find_program("git")
    if git is None:
        return __version__
    answers = []
    for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "pbs_policy", "dovecot-hooks"]):
        done = subprocess.run(
            [git, *command], cwd=SOURCES.parent, capture_output=True, text=True, timeout=20, check=False
        )  # fmt: skip
        if done.returncode:
            return __version__
        answers.append(done.stdout.strip())
    return f"{__version__} at {answers[0]}{'+' if answers[1] else ''}"
