"""Files of a system's tree: what stands in one, how it is written at once or not at all, and whose they are.

A tree is the running system (`/`) or a copy of one below a folder, as packages and tests have it. Paths are spoken
of as they are inside the tree: `/etc/postfix/main.cf`, wherever the tree itself is.
"""

from __future__ import annotations

import contextlib
import grp
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pbs_policy.host import Account, ConfigurationFault, Host, NotInstalled, NotLookedAt
from pbs_policy.log import printable
from pbs_policy.programs import missing
from pbs_policy.trust import Untrusted, judge_way

_Configuration = TypeVar("_Configuration")


class InstallError(Exception):
    """Nothing was changed, or everything was put back; the message says why and what to do.

    `status` is the exit status of sysexits.h that fits; `by_hand` is configuration to be copied as it stands.
    """

    def __init__(self, message: str, status: int = os.EX_CONFIG, by_hand: str = "") -> None:
        self.status, self.by_hand = status, by_hand
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class FileState:
    """All of a file that is restored: its bytes, mode (the permission bits) and owner."""

    data: bytes
    mode: int
    uid: int
    gid: int


def data_of(state: FileState | None) -> bytes:
    """What is in the file, nothing where there is none."""
    return state.data if state else b""


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one file; None: it is not there. `is_program`: what is in it is ours to know, and is not shown.
    `is_edit`: our words are taken out, and the rest stays."""

    path: str
    before: FileState | None
    after: FileState | None
    is_program: bool = False
    is_edit: bool = False


class Tree:
    """A system's files below `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Raises InstallError where `root` is no folder, or, as root, where another user can change the way there."""
        _judge(root)
        self.root = root.resolve()
        if not self.root.is_dir():
            raise InstallError(f"--root {root}: there is no such folder", os.EX_USAGE)

    @property
    def is_running_system(self) -> bool:
        """Whether this is the system that we run on."""
        return self.root == Path("/")

    def place(self, path: str) -> Path:
        """Where the file is that the tree calls `path`, links followed.

        Raises InstallError for a path that is not absolute, or that a link leads out of the tree; and, as root, for
        one below a folder or behind a link that another user can change: what is done by its path could be done
        elsewhere.
        """
        if not path.startswith("/"):
            raise InstallError(f"{path}: expected an absolute path", os.EX_USAGE)
        asked = self.root.joinpath(path.lstrip("/"))
        _judge(asked)
        real = asked.resolve()
        if not real.is_relative_to(self.root):
            raise InstallError(f"{path}: a link there leads out of {self.root}, to {real}")
        return real

    def name(self, path: str) -> str:
        """What the tree calls the file at `place(path)`: the same file has one name, however it was reached."""
        return "/" + str(self.place(path).relative_to(self.root))

    def find_user(self, name: str) -> Account | None:
        """The user of that name in the tree's /etc/passwd, or, on the running system, of any source it has."""
        if self.is_running_system:
            with contextlib.suppress(KeyError):
                return Host().account(name)
            return None
        fields = self._find("passwd", name)  # passwd(5); the groups besides its own are not looked at
        if len(fields) < 4 or not (fields[2].isdecimal() and fields[3].isdecimal()):
            return None
        return Account(name, int(fields[2]), int(fields[3]), frozenset({int(fields[3])}))

    def has_group(self, name: str) -> bool:
        """Whether there is a group of that name, looked for in the same way."""
        if self.is_running_system:
            with contextlib.suppress(KeyError):
                return bool(grp.getgrnam(name))
            return False
        return self._find("group", name) != []  # group(5)

    def _find(self, file: str, name: str) -> list[str]:
        """The fields of an entry, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            for line in self.place(f"/etc/{file}").read_text(errors="replace").splitlines():
                if line.partition(":")[0] == name:
                    return line.split(":")
        return []


def read_accepted(
    read: Callable[[Host, str], _Configuration], place: Path, program: str, daemon: str
) -> _Configuration:
    """A daemon's configuration as its `program` reads it. Raises InstallError where that refuses it or is missing."""
    try:
        return read(Host(), str(place))
    except NotInstalled as error:
        raise InstallError(missing(daemon) or str(error), os.EX_UNAVAILABLE) from None
    except (ConfigurationFault, NotLookedAt) as error:
        where = f"{error.place}: " if isinstance(error, ConfigurationFault) else ""
        said = printable(str(error), 2000)
        raise InstallError(f"{program} does not accept {place}: {where}{said}") from None


def _judge(path: Path) -> None:
    try:
        if os.geteuid() == 0:
            judge_way(path)
    except Untrusted as error:
        raise InstallError(f"{path}: {error}: root writes nothing there") from None


def read_state(path: Path) -> FileState | None:
    """What stands at `path`, None where nothing does. Raises InstallError for anything but a file, and OSError."""
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            return FileState(file.read(), stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid)
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise InstallError(f"{path} is a folder: expected a file, or nothing") from None


def write_state(path: Path, state: FileState) -> None:
    """Make the file what `state` says, in one step for whoever reads it (rename(2)). Raises OSError."""
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(state.data)
            about = os.fstat(number)
            if (about.st_uid, about.st_gid) != (state.uid, state.gid):
                os.fchown(number, state.uid, state.gid)
            os.fchmod(number, state.mode)  # after the owner: changing that clears the setuid bits
            _keep_attributes(path, number)
            file.flush()
            os.fsync(number)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have what was renamed or removed in `folder` outlive a power cut."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _keep_attributes(path: Path, number: int) -> None:
    """Give the new file the access lists and labels of the one that it replaces, where the system has such."""
    with contextlib.suppress(OSError):
        for attribute in os.listxattr(path):
            os.setxattr(number, attribute, os.getxattr(path, attribute))
