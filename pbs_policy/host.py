"""What doctor and the installers ask of the machine: programs, files and who may use them, accounts.

Readers and checks get a `Host` instead of calling the system, so that a test can describe a machine that is not
there. Access is judged from owner, group and mode, as the kernel does for an account without capabilities; access
control lists are not looked at.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pbs_policy.programs import find_program
from pbs_policy.trust import Untrusted, acting_as, read_trusted

_PROGRAM_SECONDS = 10.0  # postconf and doveconf answer in milliseconds; NFS may hold them

READ, WRITE, EXECUTE = 4, 2, 1
"""What an account may need of a file, as in a mode's last octal digit."""


class NotLookedAt(Exception):
    """Something could not be looked at; the message says why."""


class NotInstalled(NotLookedAt):
    """There is no such program here."""


class ConfigurationFault(Exception):
    """A daemon does not take its configuration; `place` is where."""

    def __init__(self, what: str, place: str) -> None:
        super().__init__(what)
        self.place = place


def is_for_root(why: str) -> bool:
    """Whether it says that we may not look, and root might."""
    return os.geteuid() != 0 and "Permission denied" in why


class ProgramOutput(NamedTuple):
    """What a program printed on standard output and standard error, and its exit status."""

    out: str
    err: str
    status: int


@dataclass(frozen=True, slots=True)
class Account:
    """A system account: its name, user id and groups."""

    name: str
    uid: int
    primary_gid: int
    gids: frozenset[int]


class Owned(NamedTuple):
    """Mode (with the type of file), owner and group of a file."""

    mode: int
    uid: int
    gid: int


class Host:
    """This machine."""

    def run(self, program: str, *arguments: str) -> ProgramOutput:
        """Run a program that only reads. Raises NotInstalled where it is missing, NotLookedAt where it does
        not end."""
        path = find_program(program)
        if path is None:
            raise NotInstalled(f"{program} is not installed here")
        try:
            done = subprocess.run(
                [path, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PROGRAM_SECONDS,
                env={**os.environ, "LC_ALL": "C"},
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NotLookedAt(f"{program} did not end within {_PROGRAM_SECONDS:.0f} s") from None
        except OSError as error:
            raise NotLookedAt(f"{program} cannot be run: {error.strerror}") from None
        out, err = (said.decode("utf-8", "surrogateescape") for said in (done.stdout, done.stderr))
        return ProgramOutput(out, err, done.returncode)

    def account(self, name: str, groups: Sequence[str] | None = None) -> Account:
        """The account of this name, in all its groups; or in these `groups` alone, the first of which is its own, ""
        for that of the account: so Dovecot starts a service. Raises KeyError where there is none."""
        found = pwd.getpwnam(name)
        if groups is None:
            return Account(name, found.pw_uid, found.pw_gid, frozenset(os.getgrouplist(name, found.pw_gid)))
        gids = [grp.getgrnam(group).gr_gid if group else found.pw_gid for group in groups]
        return Account(name, found.pw_uid, gids[0], frozenset(gids))

    def find_account(self, user: str, groups: Sequence[str] | None = None) -> Account:
        """The same for a user as Dovecot writes one, "" for root. Raises NotLookedAt where there is none, or no such
        group."""
        try:
            return self.account(user or "root", groups)
        except KeyError as error:
            raise NotLookedAt(f"there is no user {user}, or no such group: {error.args[0]}") from None

    def group(self, account: Account) -> str:
        """The name of its own group, which need not be the account's."""
        try:
            return grp.getgrgid(account.primary_gid).gr_name
        except KeyError:
            return str(account.primary_gid)

    def locate(self, path: str) -> Path:
        """Where the file called `path` is to be read."""
        return Path(path)

    def owned(self, path: str) -> Owned:
        """Mode, owner and group. Raises OSError where there is no such file, or we may not see it."""
        found = self.locate(path).stat()
        return Owned(found.st_mode, found.st_uid, found.st_gid)

    def read(self, path: str) -> bytes:
        """The file's content. Raises NotLookedAt where it cannot be read, or is no file: a configuration may name a
        FIFO that another user has made, and nobody ever writes to."""
        try:
            with open(self.locate(path), "rb", opener=_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise NotLookedAt(f"{path}: is not a file")
                return file.read()
        except OSError as error:
            raise NotLookedAt(f"{path}: {error.strerror}") from None

    @contextmanager
    def acting_as(self, user: str, groups: Sequence[str] | None = None) -> Iterator[None]:
        """As root: look at files, and connect, with the rights of this user (`find_account`). What another user can
        change is looked at in this way. Raises NotLookedAt where there is no such user or group."""
        account = self.find_account(user, groups)
        with acting_as(account.uid, account.primary_gid, account.gids):
            yield

    def read_as(self, user: str, path: str, groups: Sequence[str] | None = None) -> bytes:
        """The file's content, if this user may read it (`acting_as`). Raises NotLookedAt where it cannot be read,
        Untrusted where everybody can change it."""
        with self.acting_as(user, groups):
            try:
                return read_trusted(self.locate(path))[0]
            except Untrusted:
                raise
            except OSError as error:
                raise NotLookedAt(f"{path}: {error.strerror}") from None

    def glob(self, pattern: str) -> list[str]:
        """The files that match, in the order of their names."""
        return sorted(map(str, Path("/").glob(pattern.lstrip("/"))))

    def obstacle(self, account: Account, path: str, need: int) -> str:
        """What keeps `account` from `path` (needing READ, WRITE, EXECUTE or a sum), as a sentence; "" if nothing."""
        folders = [str(each) for each in PurePosixPath(path).parents][::-1]
        for each, bits in [*((folder, EXECUTE) for folder in folders), (path, need)]:
            try:
                owned = self.owned(each)
            except FileNotFoundError:
                return f"{each} does not exist"
            except OSError as error:
                raise NotLookedAt(f"{each}: {error.strerror}") from None
            if not allows(owned, account, bits):
                return (
                    f"{account.name} may not {_verb(each, path, need)} {each} (mode {stat.S_IMODE(owned.mode):04o})"
                )
        return ""


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def allows(owned: Owned, account: Account, bits: int) -> bool:
    """Whether owner, group and mode let an account do this with a file."""
    mode = stat.S_IMODE(owned.mode)
    if account.uid == 0:
        return bits & EXECUTE == 0 or mode & 0o111 != 0 or stat.S_ISDIR(owned.mode)
    if owned.uid == account.uid:
        mode >>= 6
    elif owned.gid in account.gids:
        mode >>= 3
    return mode & bits == bits


def _verb(each: str, path: str, need: int) -> str:
    if each != path:
        return "search"
    if need & EXECUTE:
        return "execute"
    return "connect to" if need & WRITE else "read"
