"""Unified diffs as an administrator reads them, and as patch(1) applies them."""

from __future__ import annotations

import difflib
import stat

from pbs_policy.install.files import Change, FileState, Tree, data_of


def show_change(tree: Tree, change: Change) -> str:
    """What becomes of one file, in lines that end with a newline, without what is in a program or in a file that
    goes."""
    path, before, after, lines = str(tree.place(change.path)), change.before, change.after, []
    if before and after and _rights(before) != _rights(after):
        lines.append(f"{path}: {_rights(before)} becomes {_rights(after)}\n")
    elif after and not before:
        lines.append(f"{path}: new, {_rights(after)}\n")
    elif before and not after:
        lines.append(f"{path}: removed\n")
    if change.is_program or not after:
        changed = before and after and before.data != after.data
        return "".join([*lines, f"{path}: replaced by another version\n"] if changed else lines)
    if all(state.mode & 0o077 == 0 for state in (before, after) if state):
        return "".join(lines) + f"{path}: what is in it is not shown, since only its owner may read it\n"
    old, new = _lines(before), _lines(after)
    if old is None or new is None:
        if data_of(before) != after.data:
            lines.append(f"{path}: not text, {len(after.data)} bytes\n")
        return "".join(lines)
    names = path if before else "/dev/null", path
    for line in difflib.unified_diff(old, new, *names):
        lines.append(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n")
    return "".join(lines)


def _lines(state: FileState | None) -> list[str] | None:
    """The lines with their ends, or None for what is not text."""
    if state is None:
        return []
    if b"\0" in state.data:
        return None
    text = state.data.decode("utf-8", errors="backslashreplace")
    return [line + "\n" for line in text.split("\n")[:-1]] + [last for last in text.split("\n")[-1:] if last]


def _rights(state: FileState) -> str:
    return f"{stat.filemode(stat.S_IFREG | state.mode)} owner {state.uid}:{state.gid}"
