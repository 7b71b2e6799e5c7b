"""Unified diffs as an administrator reads them, and as patch(1) applies them."""

from __future__ import annotations

import difflib
import stat

from pbs_policy.install.files import FileState


def show_diff(path: str, before: FileState | None, after: FileState | None, *, brief: bool = False) -> str:
    """What becomes of one file, in lines that end with a newline; None stands for no file. `brief`: without what is
    in it."""
    lines = []
    if before and after and _rights(before) != _rights(after):
        lines.append(f"{path}: {_rights(before)} becomes {_rights(after)}\n")
    elif after and not before:
        lines.append(f"{path}: new, {_rights(after)}\n")
    elif before and not after:
        lines.append(f"{path}: removed\n")
    if brief:
        changed = before and after and before.data != after.data
        return "".join([*lines, f"{path}: replaced by another version\n"] if changed else lines)
    if all(state.mode & 0o077 == 0 for state in (before, after) if state):
        return "".join(lines) + f"{path}: what is in it is not shown, since only its owner may read it\n"
    old, new = _lines(before), _lines(after)
    if old is None or new is None:
        if (before and before.data) != (after and after.data):
            lines.append(f"{path}: not text, {len(after.data if after else b'')} bytes\n")
        return "".join(lines)
    names = path if before else "/dev/null", path if after else "/dev/null"
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
