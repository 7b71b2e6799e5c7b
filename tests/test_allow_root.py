"""The service does not run as root, unless it is told to."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.service import CLI


def serve(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    file = directory / "pbs-policy.conf"
    file.write_text("listen = unix:/nonexistent/policy\n")
    return subprocess.run(
        [*CLI, "-c", str(file), "serve", *options], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be refused as root")
def test_root_is_refused_in_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    ended = serve(tmp_path)
    assert ended.returncode == os.EX_NOPERM
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("pbs-policy: the service needs no privilege and does not run as root: User=")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be refused as root")
def test_root_is_not_refused_where_that_is_said(tmp_path: Path) -> None:
    ended = serve(tmp_path, "--allow-root")
    assert ended.returncode == os.EX_OSERR
    assert "cannot listen on unix:/nonexistent/policy" in ended.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="this is for everybody else")
def test_nobody_else_is_refused(tmp_path: Path) -> None:
    assert serve(tmp_path).returncode == os.EX_OSERR
