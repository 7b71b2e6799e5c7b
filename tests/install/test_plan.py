"""A plan is carried out as a whole or not at all, and undone to the byte, whatever is done in whichever order."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbs_policy.install.files import FileState, InstallError, Tree, read_state, write_state
from pbs_policy.install.plan import Plan, Wanted, apply
from pbs_policy.install.record import InstallRecord
from pbs_policy.install.undo import plan_removal, remove
from tests.install.support import snapshot, write

RECORDS = "/var/lib/pbs-policy/installed"
ONE, TWO = "install-one", "install-two"

PATHS = ["/etc/a.conf", "/etc/deep/b.conf", "/usr/local/lib/c", "/d"]

Trees = dict[str, tuple[bytes, int]]
Wishes = dict[str, tuple[bytes, int | None]]
contents = st.binary(max_size=12)
trees = st.dictionaries(st.sampled_from(PATHS), st.tuples(contents, st.sampled_from([0o600, 0o644, 0o755])))
wishes = st.dictionaries(st.sampled_from(PATHS), st.tuples(contents, st.sampled_from([None, 0o644, 0o755])))
steps = st.lists(st.tuples(st.sampled_from([ONE, TWO]), st.sampled_from(["apply", "upgrade", "remove"])), max_size=8)


def filled(root: Path, existing: Trees) -> Tree:
    tree = Tree(root)
    for path, (data, mode) in existing.items():
        write(root, path, "")
        write_state(tree.place(path), FileState(data, mode, os.geteuid(), os.getegid()))
    return tree


def install(tree: Tree, command: str, wish: Wishes) -> Plan:
    record = InstallRecord(tree, RECORDS, command)
    plan = Plan("/etc")
    plan.want(tree, record, [Wanted(path, *rest) for path, rest in wish.items()])
    apply(tree, plan, record)
    return plan


def uninstall(tree: Tree, command: str) -> list[str]:
    record = InstallRecord(tree, RECORDS, command)
    removal = plan_removal(tree, record)
    remove(tree, record, removal)
    return list(removal.edited)


@given(existing=trees, first=wishes, second=wishes, order=steps)
@settings(deadline=None, max_examples=25)
def test_any_order_of_apply_and_remove_that_ends_in_remove_leaves_the_tree_as_it_was(
    existing: Trees, first: Wishes, second: Wishes, order: list[tuple[str, str]]
) -> None:
    # Two commands never write the same file.
    wish = {ONE: first, TWO: {path: each for path, each in second.items() if path not in first}}
    with tempfile.TemporaryDirectory(prefix="pbs-") as name:
        root = Path(name)
        # Of a folder that both need, the one that made it cannot take it away while the other's files are in it.
        (root / "etc").mkdir()
        tree = filled(root, existing)
        before = snapshot(root)
        for command, step in [*order, (ONE, "remove"), (TWO, "remove"), (ONE, "remove")]:
            if step == "remove":
                assert not uninstall(tree, command)
                continue
            files = wish[command]
            if step == "upgrade":
                files = {path: (data + b"newer", mode) for path, (data, mode) in files.items()}
            install(tree, command, files)
            after = snapshot(root)
            assert not install(tree, command, files)
            assert snapshot(root) == after, "the second time changes nothing"
        assert snapshot(root) == before


@given(existing=trees, first=wishes, second=wishes)
@settings(deadline=None, max_examples=25)
def test_an_installation_that_is_not_accepted_leaves_the_tree_as_it_was(
    existing: Trees, first: Wishes, second: Wishes
) -> None:
    with tempfile.TemporaryDirectory(prefix="pbs-") as name:
        root = Path(name)
        tree = filled(root, existing)
        install(tree, ONE, first)
        before = snapshot(root)
        record = InstallRecord(tree, RECORDS, ONE)
        plan = Plan("/etc", checks=[refuse])
        plan.want(tree, record, [Wanted(path, *rest) for path, rest in second.items()])
        if plan:
            with pytest.raises(InstallError, match=r"not accepted\nEverything was put back"):
                apply(tree, plan, record)
        assert snapshot(root) == before


def refuse() -> None:
    raise InstallError("not accepted")


def test_an_installation_that_was_cut_short_is_undone(tmp_path: Path) -> None:
    write(tmp_path, "/etc/a.conf", "old\n")
    before = snapshot(tmp_path)
    tree = Tree(tmp_path)
    record = InstallRecord(tree, RECORDS, ONE)
    plan = Plan("/etc", checks=[lambda: os._exit(3)])
    plan.want(tree, record, [Wanted("/etc/a.conf", b"new\n"), Wanted("/etc/deep/b.conf", b"new\n")])
    child = os.fork()
    if not child:
        apply(tree, plan, record)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert (tmp_path / "etc/a.conf").read_text() == "new\n"
    assert not uninstall(tree, ONE)
    assert snapshot(tmp_path) == before


def test_the_manifest_is_there_before_the_first_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "/etc/a.conf", "old\n")
    seen = []

    def write_and_look(path: Path, state: FileState) -> None:
        seen.append((tmp_path / RECORDS[1:] / ONE / "manifest.json").exists())
        write_state(path, state)

    monkeypatch.setattr("pbs_policy.install.plan.write_state", write_and_look)
    install(Tree(tmp_path), ONE, {"/etc/a.conf": (b"new\n", None)})
    assert seen == [True]


def test_a_file_that_was_changed_since_is_left_alone_and_shown(tmp_path: Path) -> None:
    write(tmp_path, "/etc/a.conf", "ours\n")
    write(tmp_path, "/etc/c.conf", "old\n")
    tree = Tree(tmp_path)
    install(tree, ONE, {"/etc/a.conf": (b"new\n", None), "/etc/c.conf": (b"new\n", None)})
    write(tmp_path, "/etc/a.conf", "new\nand more\n")
    with pytest.raises(InstallError, match=r"a\.conf: was changed since it was installed"):
        install(tree, ONE, {"/etc/a.conf": (b"newer\n", None)})
    record = InstallRecord(tree, RECORDS, ONE)
    removal = plan_removal(tree, record)
    remove(tree, record, removal)
    assert (tmp_path / "etc/a.conf").read_text() == "new\nand more\n"
    assert (tmp_path / "etc/c.conf").read_text() == "old\n"
    told = removal.by_hand(tree, record)
    assert "was changed since it was installed, and is left alone" in told
    assert "-new\n+ours\n" in told
    assert list(InstallRecord(tree, RECORDS, ONE).entries) == ["/etc/a.conf"], "what was restored is forgotten"
    write(tmp_path, "/etc/a.conf", "ours\n")
    assert not uninstall(tree, ONE)
    assert not (tmp_path / "var").exists()


def test_a_changed_mode_is_a_change_and_is_restored(tmp_path: Path) -> None:
    write(tmp_path, "/etc/a.conf", "same\n", mode=0o640)
    before = snapshot(tmp_path)
    tree = Tree(tmp_path)
    plan = install(tree, ONE, {"/etc/a.conf": (b"same\n", 0o755)})
    assert "-rw-r----- owner" in plan.shown(tree)
    assert (tmp_path / "etc/a.conf").stat().st_mode & 0o777 == 0o755
    uninstall(tree, ONE)
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_owner_stays(tmp_path: Path) -> None:
    os.chown(write(tmp_path, "/etc/a.conf", "old\n", mode=0o640), 12, 34)
    before = snapshot(tmp_path)
    install(Tree(tmp_path), ONE, {"/etc/a.conf": (b"new\n", None)})
    assert read_state(tmp_path / "etc/a.conf") == FileState(b"new\n", 0o640, 12, 34)
    uninstall(Tree(tmp_path), ONE)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("module", "at", "error", "said"),
    [
        ("record", "manifest.json", errno.EACCES, r"Permission denied \(run it as root\)"),
        ("plan", "b.conf", errno.ENOSPC, r"b\.conf: No space left on device"),
    ],
)
def test_what_cannot_be_written_changes_nothing_and_the_error_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, at: str, error: int, said: str
) -> None:
    write(tmp_path, "/etc/a.conf", "old\n")
    before = snapshot(tmp_path)

    def fail_there(path: Path, state: FileState) -> None:
        if path.name == at:
            raise OSError(error, os.strerror(error), str(path))
        write_state(path, state)

    monkeypatch.setattr(f"pbs_policy.install.{module}.write_state", fail_there)
    monkeypatch.setattr("pbs_policy.install.plan.os.geteuid", lambda: 1000)
    with pytest.raises(InstallError, match=rf"{said}; everything is as it was") as caught:
        install(Tree(tmp_path), ONE, {"/etc/a.conf": (b"new\n", None), "/etc/deep/b.conf": (b"new\n", None)})
    assert caught.value.status == os.EX_IOERR
    assert snapshot(tmp_path) == before


def test_what_cannot_be_restored_is_put_back_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("/etc/a.conf", "/etc/b.conf"):
        write(tmp_path, path, "old\n")
    tree = Tree(tmp_path)
    install(tree, ONE, {"/etc/a.conf": (b"new\n", None), "/etc/b.conf": (b"new\n", None)})
    before = snapshot(tmp_path)

    def fail_at_the_second(path: Path, state: FileState) -> None:
        if (path.name, state.data) == ("a.conf", b"old\n"):
            raise OSError(28, "No space left on device", str(path))
        write_state(path, state)

    with monkeypatch.context() as patched:
        patched.setattr("pbs_policy.install.plan.write_state", fail_at_the_second)
        with pytest.raises(InstallError, match=r"a\.conf: No space left on device; everything is as it was"):
            uninstall(tree, ONE)
    assert snapshot(tmp_path) == before
    assert not uninstall(tree, ONE)
    assert (tmp_path / "etc/b.conf").read_text() == "old\n"


def test_a_link_is_followed_inside_the_tree_and_not_out_of_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, "/srv/a.conf", "old\n")
    (root / "etc").mkdir()
    (root / "etc/a.conf").symlink_to("../srv/a.conf")
    (root / "etc/b.conf").symlink_to(tmp_path / "b.conf")
    before = snapshot(root)
    install(Tree(root), ONE, {"/etc/a.conf": (b"new\n", None)})
    assert (root / "srv/a.conf").read_text() == "new\n"
    assert (root / "etc/a.conf").is_symlink()
    uninstall(Tree(root), ONE)
    assert snapshot(root) == before
    with pytest.raises(InstallError, match="leads out of"):
        install(Tree(root), ONE, {"/etc/b.conf": (b"new\n", None)})


def test_one_record_is_about_one_configuration(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    install(tree, ONE, {"/etc/a.conf": (b"new\n", 0o644)})
    before = snapshot(tmp_path)
    record = InstallRecord(tree, RECORDS, ONE)
    plan = Plan("/srv")
    plan.want(tree, record, [Wanted("/srv/a.conf", b"new\n")])
    with pytest.raises(InstallError, match=r"was applied to /etc, and has one record .* --remove first"):
        apply(tree, plan, record)
    assert snapshot(tmp_path) == before


def test_a_folder_with_something_else_in_it_stays(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    install(tree, ONE, {"/etc/deep/b.conf": (b"new\n", 0o644)})
    write(tmp_path, "/etc/deep/theirs.conf", "")
    record = InstallRecord(tree, RECORDS, ONE)
    assert remove(tree, record, plan_removal(tree, record)) == [str(tmp_path / "etc/deep"), str(tmp_path / "etc")]
    assert (tmp_path / "etc/deep/theirs.conf").exists()
    assert not (tmp_path / "var").exists()


def test_a_removal_that_is_not_accepted_is_taken_back(tmp_path: Path) -> None:
    write(tmp_path, "/etc/a.conf", "old\n")
    tree = Tree(tmp_path)
    install(tree, ONE, {"/etc/a.conf": (b"new\n", None)})
    before = snapshot(tmp_path)
    record = InstallRecord(tree, RECORDS, ONE)
    removal = plan_removal(tree, record)
    removal.checks.append(refuse)
    with pytest.raises(InstallError, match="Everything was put back"):
        remove(tree, record, removal)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("damage", ['{"format": 2}', "{", "[]", '{"format": 1, "folders": [], "files": [{}]}'])
def test_a_manifest_that_is_not_ours_is_refused(tmp_path: Path, damage: str) -> None:
    write(tmp_path, f"{RECORDS}/{ONE}/manifest.json", damage)
    with pytest.raises(InstallError, match=r"manifest\.json: cannot be used"):
        InstallRecord(Tree(tmp_path), RECORDS, ONE)


def test_a_copy_that_was_changed_is_not_restored(tmp_path: Path) -> None:
    write(tmp_path, "/etc/a.conf", "old\n")
    tree = Tree(tmp_path)
    install(tree, ONE, {"/etc/a.conf": (b"new\n", None)})
    for copy in (tmp_path / RECORDS[1:] / ONE).iterdir():
        if copy.read_bytes() == b"old\n":
            copy.write_bytes(b"other\n")
    with pytest.raises(InstallError, match="was changed"):
        InstallRecord(tree, RECORDS, ONE)


def test_the_copies_are_for_nobody_else(tmp_path: Path) -> None:
    install(Tree(tmp_path), ONE, {"/etc/a.conf": (b"new\n", 0o644)})
    folder = tmp_path / RECORDS[1:] / ONE
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_last_line_without_newline_is_shown_as_patch_wants_it(tmp_path: Path) -> None:
    write(tmp_path, "/etc/a.conf", "a\nb")
    tree = Tree(tmp_path)
    plan = Plan("/etc")
    plan.want(tree, InstallRecord(tree, RECORDS, ONE), [Wanted("/etc/a.conf", b"a\nb\n", None)])
    assert plan.shown(tree).endswith("-b\n\\ No newline at end of file\n+b\n")
