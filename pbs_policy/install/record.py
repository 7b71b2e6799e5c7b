"""What an installation did: a manifest, and byte-exact copies of each file as it was before and as it was left.

Below the folder of records (`/var/lib/pbs-policy/installed`), each command has a folder of its own:

    install-postfix/manifest.json   the files in the order they were written, and the folders that were made
    install-postfix/<sha256>        the bytes of a file, before or after
    made-folders                    beside them: the folders that were made to hold the records, one a line

The manifest is written before the first file changes, so that an installation that was cut short can be undone. It
goes with the last file that is restored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pbs_policy.install.files import Change, FileState, InstallError, Tree, read_state, sync_folder, write_state

DEFAULT_FOLDER = "/var/lib/pbs-policy/installed"

_FORMAT = 1
_MANIFEST = "manifest.json"
_MADE_FOLDERS = "made-folders"


class InstallRecord:
    """What one command has installed in one tree. Empty where it has not, or was removed.

    `configuration` is the folder of the daemon's configuration that it was for. `entries` are the files, each as it
    was before the first installation, and as the last one left it.
    """

    def __init__(self, tree: Tree, folder: str, command: str) -> None:
        """Read the manifest. Raises InstallError where it cannot be understood, and OSError."""
        self._all_records = tree.place(folder)
        self.folder = tree.place(f"{folder}/{command}/{_MANIFEST}").parent
        self._command = command
        self.entries: dict[str, Change] = {}
        self.configuration = ""
        self.folders: list[str] = []
        self._made: list[Path] = []
        manifest = read_state(self.folder / _MANIFEST)
        if manifest is None:
            return
        try:
            self._parse(json.loads(manifest.data))
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise InstallError(
                f"{self.folder / _MANIFEST}: cannot be used ({error!r}): expected what pbs-policy {command} wrote; "
                "the files beside it are the copies"
            ) from None

    def _parse(self, manifest: Mapping[str, Any]) -> None:
        if manifest["format"] != _FORMAT:
            raise ValueError(f"format {manifest['format']}, expected {_FORMAT}")
        self.configuration = str(manifest["configuration"])
        self.folders = [str(path) for path in manifest["folders"]]
        for each in manifest["files"]:
            path, before = str(each["path"]), self._parse_state(each["before"]) if each["before"] else None
            self.entries[path] = Change(path, before, self._parse_state(each["after"]))

    def _parse_state(self, state: Mapping[str, Any]) -> FileState:
        data = (self.folder / str(state["sha256"])).read_bytes()
        if hashlib.sha256(data).hexdigest() != state["sha256"]:
            raise ValueError(f"the copy {state['sha256']} was changed")
        return FileState(data, int(state["mode"], 8), int(state["uid"]), int(state["gid"]))

    def refuse_other(self, configuration: str) -> None:
        """Raise InstallError where the record is about another configuration than this one."""
        if self.entries and self.configuration != configuration:
            raise InstallError(
                f"{self._command} was applied to {self.configuration}, and has one record ({self.folder}). To apply "
                f"it to {configuration}: --remove first, or another --record-dir"
            )

    def save(self) -> None:
        """Write the manifest and the copies, or remove them where nothing is left to be undone. Raises OSError."""
        if not self.entries and not self.folders:
            self._remove()
            return
        self._make_folder()
        copies = {}
        for entry in self.entries.values():
            for state in (entry.before, entry.after):
                if state is not None:
                    copies[hashlib.sha256(state.data).hexdigest()] = state.data
        for name, data in copies.items():
            if not (self.folder / name).exists():
                _write_private(self.folder / name, data)
        _write_private(self.folder / _MANIFEST, (json.dumps(self._manifest(), indent=2) + "\n").encode())
        for path in self.folder.iterdir():
            if path.name not in copies and path.name != _MANIFEST:
                path.unlink()

    def _manifest(self) -> dict[str, Any]:
        files = [
            {"path": path, "before": _state_as_json(entry.before), "after": _state_as_json(entry.after)}
            for path, entry in self.entries.items()
        ]
        return {
            "format": _FORMAT,
            "command": self._command,
            "configuration": self.configuration,
            "folders": self.folders,
            "files": files,
        }

    def _make_folder(self) -> None:
        self._made = [each for each in (self._all_records, *self._all_records.parents) if not each.exists()]
        for each in reversed(self._made):
            each.mkdir()
            each.chmod(0o755)  # whatever the umask is
        if self._made:
            names = "".join(f"{each}\n" for each in self._made)
            _write_private(self._all_records / _MADE_FOLDERS, os.fsencode(names))
        # The copies may hold what only root may read.
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def _remove(self) -> None:
        if self.folder.exists():
            # The manifest goes first: without it the copies are of no use, and it is of none without them.
            (self.folder / _MANIFEST).unlink(missing_ok=True)
            sync_folder(self.folder)
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()
        made = self._all_records / _MADE_FOLDERS
        with contextlib.suppress(FileNotFoundError):
            self._made = [Path(each) for each in os.fsdecode(made.read_bytes()).splitlines()]
        with contextlib.suppress(OSError):  # another record is in it, or somebody else's file
            if {path.name for path in self._all_records.iterdir()} <= {_MADE_FOLDERS}:
                made.unlink(missing_ok=True)
                for each in self._made:
                    each.rmdir()


def _state_as_json(state: FileState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    digest = hashlib.sha256(state.data).hexdigest()
    return {"sha256": digest, "mode": f"{state.mode:04o}", "uid": state.uid, "gid": state.gid}


def _write_private(path: Path, data: bytes) -> None:
    write_state(path, FileState(data, 0o600, os.geteuid(), os.getegid()))
