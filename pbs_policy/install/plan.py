"""What an installation would do, as a value: shown, carried out as a whole or not at all, and undone.

A plan is made by reading only. Carrying it out writes the record first, then the files, each at once, then has the
result checked by the program that will read it; if that refuses, everything is put back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from pbs_policy.install.diff import show_change
from pbs_policy.install.files import Change, FileState, InstallError, Tree, read_state, sync_folder, write_state
from pbs_policy.install.record import InstallRecord


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file as it is to be. The owner and, with `mode` None, the mode stay those of the file that is there.

    `if_missing`: a file that is there is left alone, whatever it says. `is_program`: what is in it is ours to know,
    and is not shown. `note`: what to say where it is written.
    """

    path: str
    data: bytes
    mode: int | None = 0o644
    if_missing: bool = False
    is_program: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder to make. `owner` is a user and a group; None: whoever makes it."""

    path: str
    mode: int = 0o755
    owner: tuple[int, int] | None = None


@dataclass
class Plan:
    """Folders to make, files to write, in that order. Empty: all of it is there already.

    `configuration` is the folder of the daemon's configuration that it is for; `commands` are those that `apply`
    runs, as one would type them; `obstacles` are sentences on what has to be done before it can; `checks` raise
    InstallError where the result is not accepted; `afterwards` is the command that has the daemon read it, which is
    left to the administrator.
    """

    configuration: str
    folders: list[Folder] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)
    afterwards: str = ""
    checks: list[Callable[[], None]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.folders or self.changes)

    def want(self, tree: Tree, record: InstallRecord, wanted: Iterable[Wanted]) -> None:
        """Add what is missing for these files. Raises InstallError for one that was changed since we wrote it."""
        for each in wanted:
            path = tree.name(each.path)
            current = read_state(tree.place(path))
            after = _wanted_state(each, current)
            if current == after or (current and each.if_missing):
                continue
            entry = record.entries.get(path)
            if entry and current not in (None, entry.before, entry.after) and not is_compiled(path):
                raise InstallError(
                    f"{tree.place(path)}: was changed since it was installed. Undo that (a copy of it is in "
                    f"{record.folder}), or take the installation out first: --remove"
                )
            self.make_folders(tree, path)
            self.changes.append(Change(path, current, after, each.is_program))
            self.notes += filter(None, [each.note])

    def make_folders(self, tree: Tree, path: str) -> None:
        """Add the folders that `path` needs above it and that are not there."""
        planned = {folder.path for folder in self.folders}
        place = tree.place(path)
        for parent in reversed(place.parents):
            name = "/" + str(parent.relative_to(tree.root)) if parent.is_relative_to(tree.root) else "/"
            if name not in planned and not parent.exists():
                self.folders.append(Folder(name))

    def shown(self, tree: Tree) -> str:
        """The plan for people: each folder, and a unified diff of each file that is no program of ours."""
        lines = [f"{tree.place(each.path)}/: new folder, mode {each.mode:04o}\n" for each in self.folders]
        return "".join([*lines, *(show_change(tree, each) for each in self.changes)])


def is_compiled(path: str) -> bool:
    """Whether the file is a compiled module: whatever is in it, compileall has made it of a file of ours."""
    return "/__pycache__/" in path


def _wanted_state(wanted: Wanted, current: FileState | None) -> FileState:
    uid, gid = (current.uid, current.gid) if current else (os.geteuid(), os.getegid())
    mode = wanted.mode if wanted.mode is not None else current.mode if current else 0o644
    return FileState(wanted.data, mode, uid, gid)


def apply(tree: Tree, plan: Plan, record: InstallRecord) -> None:
    """Carry the plan out, or leave everything as it was.

    Raises InstallError where something stands in the way, cannot be written, or is not accepted by its reader.
    """
    if plan.obstacles:
        raise InstallError("\n".join(plan.obstacles))
    if not plan:
        return
    record.refuse_other(plan.configuration)
    earlier = dict(record.entries), list(record.folders), record.configuration

    def forget() -> None:
        record.entries, record.folders, record.configuration = earlier
        remove_folders(tree, [folder.path for folder in plan.folders])
        with contextlib.suppress(PermissionError):  # then there was none before, and there is none now
            record.save()

    record.configuration = plan.configuration
    for change in plan.changes:
        before = record.entries[change.path].before if change.path in record.entries else change.before
        record.entries[change.path] = replace(change, before=before)
    record.folders += [folder.path for folder in plan.folders]
    with all_or_nothing(tree, plan.changes, forget):
        record.save()
        for folder in plan.folders:
            _make_folder(tree, folder)
        carry_out(tree, plan.changes, plan.checks)


@contextlib.contextmanager
def all_or_nothing(
    tree: Tree, changes: Sequence[Change], forget: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Put back what was carried out of these changes where anything goes wrong, and `forget` the rest. Raises
    InstallError."""
    try:
        yield
    except BaseException as error:
        for change in reversed(changes):
            if read_state(tree.place(change.path)) == change.after:
                _make(tree, change.path, change.before)
        forget()
        if isinstance(error, OSError):
            raise InstallError(f"{said(error)}; everything is as it was", os.EX_IOERR) from error
        if isinstance(error, InstallError):
            raise InstallError(f"{error}\nEverything was put back.", error.status) from None
        raise


def carry_out(tree: Tree, changes: Iterable[Change], checks: Iterable[Callable[[], None]] = ()) -> None:
    """Make each file what it is to be, and have the result checked. Raises OSError, InstallError."""
    for change in changes:
        _make(tree, change.path, change.after)
    for check in checks:
        check()


def _make_folder(tree: Tree, folder: Folder) -> None:
    place = tree.place(folder.path)
    place.mkdir(mode=0o700)
    number = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if folder.owner:
            os.fchown(number, *folder.owner)
        os.fchmod(number, folder.mode)
    finally:
        os.close(number)


def said(error: OSError) -> str:
    """The system's error with its file, and what to do."""
    hint = " (run it as root)" if isinstance(error, PermissionError) and os.geteuid() else ""
    return f"{error.filename}: {error.strerror}{hint}" if error.filename else str(error)


def _make(tree: Tree, path: str, state: FileState | None) -> None:
    place = tree.place(path)
    if state is not None:
        write_state(place, state)
    else:
        place.unlink()
        sync_folder(place.parent)


def remove_folders(tree: Tree, folders: list[str]) -> list[str]:
    """Remove these folders, the innermost first; those that are not empty stay, and are returned."""
    left = []
    for path in reversed(folders):
        try:
            tree.place(path).rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            left.append(path)
    return left
