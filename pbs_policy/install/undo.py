"""Taking an installation out again: each file becomes what it was, if it is still as we left it.

From a file that somebody changed since, and from one that names us without our doing, our words alone are taken
(`Removal.take_out`). Where nothing of ours was there before, what others made of our file is theirs. What is left is
shown, to be undone by hand.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher

from pbs_policy.install.diff import show_change
from pbs_policy.install.files import Change, FileState, InstallError, Tree, data_of, read_state
from pbs_policy.install.plan import all_or_nothing, carry_out, is_compiled, remove_folders, said
from pbs_policy.install.record import InstallRecord

# What continues the line before it, in the manner of main.cf: comments between the two change nothing.
_CONTINUATION = re.compile(rb"(?:[ \t]*(?:#[^\n]*)?\n)*[ \t]+[^\s#]")


@dataclass
class Removal:
    """What it takes to undo an installation. `edited` are the files that somebody changed since. `checks` raise
    InstallError where what is left is not accepted, and may add `notes` on what is left. The files in `later` go when
    all others have gone, and stay for as long as something `waits` that needs them."""

    changes: list[Change] = field(default_factory=list)
    edited: dict[str, Change] = field(default_factory=dict)
    checks: list[Callable[[], None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    later: Collection[str] = ()
    waits: Callable[[], bool] = lambda: False

    @property
    def left(self) -> dict[str, Change]:
        """The edited files that have something of ours instead of what was there before."""
        return {path: entry for path, entry in self.edited.items() if entry.before}

    @property
    def theirs(self) -> list[str]:
        """The edited files that were not there before: what somebody made of ours is theirs, and stays."""
        return [path for path, entry in self.edited.items() if not entry.before]

    def take_out(self, tree: Tree, path: str, edit: Callable[[bytes], bytes]) -> None:
        """Have `edit` take our words out of what the file would be otherwise. Raises InstallError and OSError."""
        current = read_state(tree.place(path))
        planned = next((each for each in self.changes if each.path == path), None)
        target = planned.after if planned else current
        if current is None or target is None:
            return
        entry = self.edited.pop(path, None)
        data = edit(_without_difference(target.data, entry) if entry else target.data)
        if data == target.data:
            return
        if planned:
            self.changes.remove(planned)
        state: FileState | None = replace(target, data=data)
        if entry and not entry.before:
            data = _without_comments(data, data_of(entry.after))
            state = replace(target, data=data) if data.strip() else None
        self.changes.append(Change(path, current, state, is_edit=state is not None))

    def shown(self, tree: Tree) -> str:
        """A unified diff of each file that is restored; of one that goes, that it does."""
        return "".join(show_change(tree, each) for each in self.changes)

    def by_hand(self, tree: Tree, record: InstallRecord) -> str:
        """What is left to do by hand: our difference in each file that was changed since. Empty: nothing is."""
        lines = []
        for path, entry in self.left.items():
            place = tree.place(path)
            lines.append(f"{place}: was changed since it was installed, and is left alone. To be undone by hand:\n")
            lines.append(show_change(tree, Change(path, entry.after, entry.before)))
        if lines:
            lines.append(f"Then remove {record.folder}, which has the copies of what was there before.\n")
        return "".join(lines)


def _without_difference(data: bytes, entry: Change) -> bytes:
    """What was changed since, with the lines back that our own change had replaced; as it is where one of ours is not
    there any more, or where somebody's line continues one of ours, and would continue another one."""
    old = data_of(entry.before)
    ours, before = _whole_lines(data_of(entry.after)), _whole_lines(old)
    text = b"\n" + b"".join(_whole_lines(data))
    for kind, *at in SequenceMatcher(None, ours, before, autojunk=False).get_opcodes():
        lines = b"\n" + b"".join(ours[at[0] : at[1]])
        if kind != "equal":
            if text.count(lines) != 1 or lines == b"\n":
                return data
            if _CONTINUATION.match(text.partition(lines)[2]) and not _CONTINUATION.match(b"".join(ours[at[1] :])):
                return data
            text = text.replace(lines, b"\n" + b"".join(before[at[2] : at[3]]))
    if not data.endswith(b"\n") or (old and old[-1:] != b"\n" and text.endswith(b"\n" + before[-1])):
        text = text.removesuffix(b"\n")
    return text[1:]


def _whole_lines(data: bytes) -> list[bytes]:
    """The lines, each with its end, also the last: another line may come to stand behind it."""
    lines = data.split(b"\n")
    return [line + b"\n" for line in (lines if lines[-1] else lines[:-1])]


def _without_comments(data: bytes, ours: bytes) -> bytes:
    comments = {line for line in _whole_lines(ours) if line.lstrip().startswith(b"#")}
    return b"".join(line for line in data.splitlines(keepends=True) if line not in comments)


def plan_removal(tree: Tree, record: InstallRecord) -> Removal:
    """What undoing takes, in the reverse order of installing. Raises InstallError and OSError."""
    removal = Removal()
    for path, entry in reversed(record.entries.items()):
        current = read_state(tree.place(path))
        if current is None or current == entry.before:
            continue  # gone or put back by hand, or never written because the installation was cut short
        if current == entry.after or is_compiled(path):
            removal.changes.append(Change(path, current, entry.before))
        else:
            removal.edited[path] = entry
    return removal


def remove(tree: Tree, record: InstallRecord, removal: Removal) -> list[str] | None:
    """Restore what can be restored, and forget it. Where the result is not accepted, everything is put back.

    Returns the folders of ours that stay because there is something in them; None where files have to stay for now,
    and nothing is forgotten. Raises InstallError.
    """
    with all_or_nothing(tree, removal.changes):
        carry_out(tree, (each for each in removal.changes if each.path not in removal.later), removal.checks)
        if removal.later and removal.waits():
            return None
        carry_out(tree, (each for each in removal.changes if each.path in removal.later))
    try:
        record.entries = removal.left
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
