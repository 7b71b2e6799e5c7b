"""Files that somebody else may have made: the only module that opens them, and the only one that makes files for
another user.

Whoever can change a file, a folder above it or a link to it decides what is read. So a path is walked from the root
folder, one name at a time below the folder that is open: every folder, every link and the file are judged by the
owner and mode of what was opened (`fstat`), and no name is looked up twice. What everybody can change is refused
(`Untrusted`). What another user or group can change is a doubt, and deserves a warning; `for_root` says that root
would act on it, and then another user's file or folder is refused, too. Access control lists are not looked at.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path, PurePosixPath

_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40  # as many as Linux follows


class Untrusted(OSError):
    """Somebody else can change the file. `strerror` says who, and what to do about it."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EPERM, why)

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, slots=True)
class Opened:
    """An open file or folder, what `fstat` says of it, and what is doubtful about its path."""

    number: int
    status: os.stat_result
    doubts: tuple[str, ...]

    def read(self, at_most: int | None = None) -> bytes:
        """All of it. With `at_most` it has to be a regular file of no more bytes than that. Raises OSError."""
        if at_most is not None and (not stat.S_ISREG(self.status.st_mode) or self.status.st_size > at_most):
            raise OSError(errno.EINVAL, f"expected a regular file of at most {at_most >> 20} MiB")
        os.set_blocking(self.number, True)  # the writer at the other end of a pipe may be slow
        with os.fdopen(self.number, "rb", closefd=False) as file:
            return file.read()


def read_trusted(path: Path, at_most: int | None = None, *, for_root: bool = False) -> tuple[bytes, tuple[str, ...]]:
    """What is in the file, and what is doubtful about who can change it. Raises Untrusted, or another OSError."""
    with opened(path, for_root=for_root) as file:
        return file.read(at_most), file.doubts


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY, *, for_root: bool = False) -> Iterator[Opened]:
    """The file or folder, open for as long as the context lasts. `flags` os.O_PATH: to be judged, and not read.

    Raises Untrusted, or another OSError.
    """
    judge = _Judge(str(path.absolute()), for_root=for_root and os.geteuid() == 0)
    with ExitStack() as stack:
        try:
            folder, name, place = _walk(path, judge, stack)
            # O_NONBLOCK: a FIFO would keep us until somebody writes to it.
            follow = 0 if _is_descriptor(place) else os.O_NOFOLLOW
            number = _open(name, flags | follow | os.O_NONBLOCK | os.O_CLOEXEC, folder, stack)
        except OSError as error:
            error.filename = error.filename and str(path)  # it names the one folder on the way
            raise
        status = os.fstat(number)
        judge.entry(status, place)
        if not stat.S_ISCHR(status.st_mode):  # everybody may write to /dev/null
            judge.content(status, place)
        yield Opened(number, status, tuple(judge.doubts))


def judge_way(path: Path) -> None:
    """Judge the way to `path` for root, as far as it is there: each folder, each link, and who has put the last entry
    where it is, but not who can change what is in that. Raises Untrusted, or another OSError."""
    judge = _Judge(str(path.absolute()), for_root=os.geteuid() == 0)
    with ExitStack() as stack, suppress(FileNotFoundError, NotADirectoryError):  # nothing is below what is not there
        folder, name, place = _walk(path, judge, stack)
        judge.entry(os.fstat(_open(name, _PLACE, folder, stack)), place)


@contextmanager
def temporary_folder(group: int | None = None) -> Iterator[Path]:
    """A new folder, gone afterwards with all that is in it. Only we can change it; `group` can use those files in it
    whose names it is told. Raises Untrusted where others can change what is above it, or another OSError."""
    import shutil
    import tempfile

    with opened(Path(tempfile.gettempdir()), os.O_PATH, for_root=True) as above:
        if above.doubts and os.geteuid() == 0:
            raise Untrusted(above.doubts[0])
        folder = Path(tempfile.mkdtemp(prefix="pbs-"))
        try:
            if group is not None and os.geteuid() == 0:
                with _closing(os.open(folder.name, os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above.number)) as number:
                    os.fchown(number, -1, group)
                    os.fchmod(number, 0o710)
            yield folder
        finally:
            # By descriptors and following no link; tempfile's own folders do follow one, in Pythons before 3.11.8.
            shutil.rmtree(folder, ignore_errors=True)


def create_for(user: int, path: Path, data: bytes) -> None:
    """A new file for this user alone to read: theirs, where we are root. Raises OSError, also where one is there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _closing(os.open(path, flags, 0o400)) as number:
        with os.fdopen(number, "wb", closefd=False) as file:
            file.write(data)
        if os.geteuid() == 0:
            os.fchown(number, user, -1)


def give_to_group(folder: Opened, name: str, group: int) -> None:
    """Give a socket that we have made in `folder` to the group, unless it has it. What has taken its place meanwhile
    is not given away. Raises OSError."""
    with _closing(os.open(name, _PLACE, dir_fd=folder.number)) as number:
        status = os.fstat(number)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise Untrusted(f"{name} is no longer the socket that was made there")
        if status.st_gid != group:
            os.chown(f"/proc/self/fd/{number}", -1, group)  # fchown(2) refuses what was opened by O_PATH


@contextmanager
def acting_as(user: int, group: int, groups: Iterable[int]) -> Iterator[None]:
    """As root: have the rights of that user, and no others, for as long as the context lasts. The whole process has
    them, and the user can neither signal nor trace it. Who is not root keeps their own rights."""
    if os.geteuid() != 0 or user == 0:
        yield
        return
    for name in ("encodings.idna", "ssl"):  # imported by who connects, and perhaps only root can read Python's files
        import_module(name)
    our_group, our_groups = os.getegid(), os.getgroups()
    try:
        os.setgroups(list(groups))
        os.setegid(group)
        os.seteuid(user)
        yield
    finally:
        os.seteuid(0)
        os.setegid(our_group)
        os.setgroups(our_groups)


@contextmanager
def _closing(number: int) -> Iterator[int]:
    try:
        yield number
    finally:
        os.close(number)


def _walk(path: Path, judge: _Judge, stack: ExitStack) -> tuple[int, str, str]:
    """The folder that the file is in when all links are followed, open, and the file's name and path there."""
    names, links = [*reversed(path.absolute().parts)], 0
    folder, place = _open("/", _PLACE, None, stack), PurePosixPath("/")
    while True:
        name = names.pop()
        found = place.parent if name == ".." else place / name
        entry = _open(name, _PLACE, folder, stack)
        status = os.fstat(entry)
        if stat.S_ISLNK(status.st_mode) and not _is_descriptor(str(found)):
            judge.entry(status, str(found))
            judge.link(str(found))
            names += reversed(PurePosixPath(os.readlink("", dir_fd=entry)).parts)
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        elif not names:
            return folder, name, str(found)
        elif not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        else:
            judge.entry(status, str(found))
            judge.content(status, str(found))
            folder, place = entry, found


def _open(name: str, flags: int, folder: int | None, stack: ExitStack) -> int:
    number = os.open(name, flags, dir_fd=folder)
    stack.callback(os.close, number)
    return number


def _is_descriptor(place: str) -> bool:
    """Whether it is a descriptor that we were given open, such as a shell's `<(...)`."""
    return place.startswith(f"/proc/{os.getpid()}/fd/")


@dataclass(slots=True)
class _Judge:
    """What is doubtful about the path, in its order. Its methods raise Untrusted."""

    path: str
    for_root: bool
    doubts: list[str] = field(default_factory=list)
    _replaceable: str = ""  # who can replace what is in the folder that we are in
    _shared: str = ""  # who can add to it, and replace only what is their own (the sticky bit)

    def content(self, status: os.stat_result, place: str) -> None:
        """Who can write to a file, or to a folder."""
        mode = stat.S_IMODE(status.st_mode)
        writers, cure = "", ""
        if mode & stat.S_IWOTH:
            writers, cure = "everybody", "chmod o-w"
        elif mode & stat.S_IWGRP and status.st_gid not in (0, os.getegid()):
            writers, cure = f"the group {_group(status.st_gid)}", "chmod g-w"
        is_sticky = stat.S_ISDIR(status.st_mode) and bool(mode & stat.S_ISVTX)
        owner = "" if _is_ours(status) else _user(status.st_uid)
        self._shared = writers if is_sticky else ""
        self._replaceable = owner or ("" if is_sticky else writers)
        if writers and not is_sticky:
            self._say(place, f"can be changed by {writers} (mode {mode:04o}): {cure}", writers == "everybody")
        if owner:
            self._say(place, f"belongs to {owner}, who can change it: chown root", self.for_root)

    def entry(self, status: os.stat_result, place: str) -> None:
        """Who has put it into a folder where others may put things as well."""
        if self._shared and not _is_ours(status):
            owner = _user(status.st_uid)
            self._say(place, f"belongs to {owner}, and stands where {self._shared} may put files", True)

    def link(self, place: str) -> None:
        """Who can have it lead elsewhere. Root is led by nobody: to a file that only root may read, say."""
        if self._replaceable and os.geteuid() == 0:
            self._say(place, f"is a link that {self._replaceable} can change: name the file itself", True)

    def _say(self, place: str, text: str, is_fault: bool) -> None:
        said = text if place == self.path else f"{place} {text}"
        if is_fault:
            raise Untrusted(said)
        if said not in self.doubts:
            self.doubts.append(said)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())


def _user(number: int) -> str:
    """The name of the user with this number."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
