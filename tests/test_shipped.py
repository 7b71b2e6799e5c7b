"""What comes with the package: the same in a checkout and in a wheel, and `pbs-policy path` finds it in both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pbs_policy import shipped as module
from pbs_policy.shipped import SHIPPED, shipped
from tests.commands import Pbs, is_one_error
from tests.pages import tracked_files

TOP = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout with its Python's leftovers in it, unpacked as pip does."""
    source, unpacked = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site-packages")
    for name in ("pbs_policy", "docs", *(each.in_checkout for each in SHIPPED.values())):
        shutil.copytree(TOP / name, source / name, dirs_exist_ok=True)
    for name in ("pyproject.toml", "README.md", ".gitignore"):
        shutil.copy(TOP / name, source)
    subprocess.run([sys.executable, "-m", "compileall", "-q", source / "dovecot-hooks"], check=True, timeout=60)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", source / "dist"],
        cwd=source, check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    [built] = (source / "dist").glob("*.whl")
    zipfile.ZipFile(built).extractall(unpacked)
    return unpacked


def path_of(site_packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pbs_policy", "path", *arguments],
        cwd=site_packages, env=os.environ | {"PYTHONPATH": str(site_packages)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_a_wheel_carries_each_folder_as_the_checkout_has_it(wheel: Path, name: str) -> None:
    shown = path_of(wheel, name)
    assert (shown.returncode, shown.stderr) == (0, "")
    folder = Path(shown.stdout.rstrip("\n"))
    assert folder == wheel / "pbs_policy" / "share" / name
    tracked = tracked_files(SHIPPED[name].in_checkout)
    expected = {Path(each).relative_to(SHIPPED[name].in_checkout) for each in tracked}
    if name == "man":
        expected = {each for each in expected if each.suffix[1:].isdigit()}
    found = {each.relative_to(folder) for each in folder.rglob("*") if each.is_file()}
    assert found == expected, "nothing is missing, and nothing of Python's own is in it"
    for each in found:
        assert (folder / each).read_bytes() == (TOP / SHIPPED[name].in_checkout / each).read_bytes()


def test_a_wheel_puts_each_manual_page_where_man_looks(wheel: Path) -> None:
    [data] = wheel.glob("*.data/data/share/man")
    pages = sorted(each.name for each in shipped("man").glob("*.[1-9]"))
    assert sorted(each.name for each in data.rglob("*.*")) == pages
    for name in pages:
        assert (data / f"man{name[-1]}" / name).is_file()


def test_all_that_ships_is_listed(wheel: Path) -> None:
    listed = path_of(wheel).stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(SHIPPED)
    for line in listed:
        assert Path(line.split()[1]).is_dir()


def test_a_checkout_has_everything_in_its_own_places() -> None:
    for name, what in SHIPPED.items():
        assert shipped(name) == TOP / what.in_checkout
    assert shipped("man/pbs-policy.8").is_file()


def test_what_lies_beside_an_installed_package_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "pbs_policy")
    (tmp_path / "dovecot-hooks").mkdir()
    with pytest.raises(FileNotFoundError, match="dovecot-hooks did not come with this installation"):
        shipped("dovecot-hooks")


@pytest.mark.parametrize("name", ["nothing", "../dovecot-hooks", "dovecot-hooks/nothing"])
def test_what_does_not_ship_is_an_error_that_says_what_does(name: str, bare: Pbs) -> None:
    assert is_one_error(bare("path", name), 64, f"there is no '{name}'; there are dovecot-hooks, man, ")
