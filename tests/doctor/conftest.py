"""Fixtures of doctor's tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A temporary directory that every user of the host may search, as pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="pbs-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
