"""The mail host of a test session, booted once for a module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trees.host import MailHost, lacking


@pytest.fixture(scope="module")
def host() -> Iterator[MailHost]:
    """A fresh mail host in the tree that PBS_TREE names."""
    tree = os.environ.get("PBS_TREE")
    if not tree:
        pytest.skip("no Debian tree given: PBS_TREE=DIR, made as tests/trees/README.md says")
    if lack := lacking():
        pytest.skip(lack)
    with MailHost(Path(tree)) as running:
        yield running
