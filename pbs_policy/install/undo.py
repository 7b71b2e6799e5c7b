"""Taking an installation out again: each file becomes what it was, if it is still as we left it.

A file that somebody changed since is left alone, and the difference that we made is shown, to be undone by hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from pbs_policy.install.diff import show_diff
from pbs_policy.install.files import FileState, InstallError, Tree, read_state
from pbs_policy.install.plan import is_compiled, remove_folders, restore, said
from pbs_policy.install.record import InstallRecord, RecordedChange


@dataclass(frozen=True, slots=True)
class Restoration:
    """One file that is as we left it, and what it was before (None: it was not there)."""

    path: str
    current: FileState
    before: FileState | None


@dataclass
class Removal:
    """What it takes to undo an installation. `edited` are the files that somebody changed since."""

    restorations: list[Restoration] = field(default_factory=list)
    edited: dict[str, RecordedChange] = field(default_factory=dict)

    def shown(self, tree: Tree) -> str:
        """A unified diff of each file that is restored."""
        return "".join(show_diff(str(tree.place(each.path)), each.current, each.before) for each in self.restorations)

    def by_hand(self, tree: Tree, record: InstallRecord) -> str:
        """What is left to do by hand: our difference in each file that was changed since. Empty: nothing is."""
        lines = []
        for path, entry in self.edited.items():
            place = tree.place(path)
            what = "was changed" if place.exists() else "was removed"
            lines.append(f"{place}: {what} since it was installed, and is left alone. To be undone by hand:\n")
            lines.append(show_diff(str(place), entry.after, entry.before))
        if lines:
            lines.append(f"Then remove {record.folder}, which has the copies of what was there before.\n")
        return "".join(lines)


def plan_removal(tree: Tree, record: InstallRecord) -> Removal:
    """What undoing takes, in the reverse order of installing. Raises InstallError and OSError."""
    removal = Removal()
    for path, entry in reversed(record.entries.items()):
        current = read_state(tree.place(path))
        if current == entry.before:
            continue  # put back by hand, or never written because the installation was cut short
        if current == entry.after or (current and is_compiled(path)):
            removal.restorations.append(Restoration(path, current, entry.before))
        else:
            removal.edited[path] = entry
    return removal


def remove(
    tree: Tree,
    record: InstallRecord,
    removal: Removal,
    *,
    keep: Collection[str] = (),
    check: Callable[[], None] = lambda: None,
) -> list[str]:
    """Restore what can be restored but for the files in `keep`, and, where there are none of those, forget it.

    `check` raises InstallError where the result is not accepted: everything is put back then. Returns the folders of
    ours that stay because there is something in them. Raises InstallError where a file cannot be written; the same
    again, later, goes on from there.
    """
    restorations = [each for each in removal.restorations if each.path not in keep]
    try:
        for each in restorations:
            restore(tree, each.path, each.before)
        try:
            check()
        except InstallError as error:
            for each in restorations:
                restore(tree, each.path, each.current)
            raise InstallError(f"{error}\nEverything was put back.", error.status) from None
        if keep:
            return []
        record.entries = dict(removal.edited)
        left = [] if record.entries else _remove_folders(tree, record.folders)
        record.folders = record.folders if record.entries else []
        record.save()
    except OSError as error:
        raise InstallError(said(error), os.EX_IOERR) from error
    return [str(tree.place(path)) for path in left]


def _remove_folders(tree: Tree, folders: list[str]) -> list[str]:
    for folder in folders:
        if folder.endswith("/__pycache__"):
            for path in tree.place(folder).glob("*.pyc"):
                path.unlink()  # of another Python: the system's was upgraded
    return remove_folders(tree, folders)
