"""What the matrix does by itself: the host's mirror, pytest's last line. (The rest is its run.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.matrix import pythons, tree

DEB822 = """\
Types: deb
URIs: http://security.example.net/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://mirror.example.net/debian
Suites: bookworm bookworm-updates
Components: main
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list.d/debian.sources", DEB822),
        ("sources.list", "# deb http://no.example.net/ x main\ndeb http://mirror.example.net/debian bookworm main\n"),
        ("sources.list", "deb [trusted=yes] http://mirror.example.net/debian bookworm contrib main\n"),
    ],
)
def test_the_mirror_is_the_one_that_apt_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(tree, "_SOURCES", tmp_path)
    assert tree.mirror() == "http://mirror.example.net/debian"


def test_without_a_mirror_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "_SOURCES", tmp_path)
    with pytest.raises(tree.CannotRun, match="apt has to know one"):
        tree.mirror()


@pytest.mark.parametrize(
    ("output", "failed"),
    [
        ("FAILED tests/test_x.py::test_y[1] - Error\n= 1 failed, 20 passed, 3 skipped in 9.1s =\n", True),
        ("ERROR tests/test_x.py - Error\n= 20 passed, 1 error in 9.1s =\n", True),
        ("no tests ran in 0.1s\n", True),
        ("", True),
        ("= 20 passed in 9.1s =\n", False),
    ],
)
def test_what_came_of_a_run_is_what_pytest_says_last(output: str, failed: bool) -> None:
    assert pythons.read("3.11.2", "here", output, 9.1).failed is failed


def test_the_oldest_versions_are_those_of_pyproject() -> None:
    assert "click~=8.1.0" in pythons.lowest_versions()
