"""The service does not run as root, unless it is told to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.commands import Pbs, Result


@pytest.fixture
def pbs(bare: Pbs, settings_file: Path) -> Pbs:
    """What runs a command whose service, when it gets that far, cannot listen."""
    settings_file.write_text("listen = unix:/nonexistent/policy\n")
    return bare


def got_so_far(result: Result) -> bool:
    """Whether the service began, and ended for want of a place to listen at."""
    return result.status == os.EX_OSERR and "cannot listen on unix:/nonexistent/policy" in result.err


def test_root_is_refused_in_one_line_that_says_what_to_do(pbs: Pbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    ended = pbs("serve")
    assert ended.status == os.EX_NOPERM
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("pbs-policy: the service needs no privilege and does not run as root: User=")


def test_root_is_not_refused_where_that_is_said(pbs: Pbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert got_so_far(pbs("serve", "--allow-root"))


def test_nobody_else_is_refused(pbs: Pbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert got_so_far(pbs("serve"))
