"""Sender maps: a file that names further senders per user, read when it changes. (What a sender is: `senders`.)"""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pbs_policy.decision.senders import is_plain, is_text, judge, shown, unquote_sender
from pbs_policy.table.users import complete_user

MOST_USERS = 32
"""Users of one sender in the maps: each is a key that a relay attempt asks for."""

LONGEST_FILE = 1 << 26  # bytes: 10^6 lines, and a bound on what a wrong path can cost
SETTLING_SECONDS = 2.0  # a file changed less than this ago may change again and keep its time stamps
_MOST_FAULTS = 20  # shown of one file
_match_entry = re.compile(rb'((?:"(?:[^"\\]|\\.)*+"|[^\s"]++)++)\s+(\S.*)', re.DOTALL).fullmatch


class SenderMapsError(ValueError):
    """A maps file is not usable. `faults` are `FILE:LINE: what is wrong, what was expected`, one or several."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))


class SenderMaps:
    """Further senders per user, from a file in the format of Postfix's smtpd_sender_login_maps text source.

    An entry is `sender user[,user...]`, blanks or commas between users; the sender is user@domain, @domain, or a user
    whom user_domain completes. Lines are those of postmap(1). As in Postfix the first of user+extension@domain,
    user@domain and @domain that the file has decides. Where Postfix warns and leaves out a line, the whole file is
    refused: what it says is a permission.
    """

    def __init__(self, file: Path, user_domain: str) -> None:
        self.file = file
        self._user_domain = user_domain
        self._users: dict[bytes, tuple[bytes, ...]] = {}
        self._seen: tuple[int, ...] | None = None
        self._judged: tuple[int, int] | str | None = None  # the content judged last, or why there was none

    @classmethod
    def load(cls, file: Path, user_domain: str) -> SenderMaps:
        """The maps in `file`. Raises SenderMapsError, also where the file cannot be read."""
        maps = cls(file, user_domain)
        maps.reload_if_changed()
        return maps

    def users(self, senders: Iterable[bytes]) -> tuple[bytes, ...]:
        """The users of the first of `senders` (folded: user@domain, @domain) that the file has; () if it has none."""
        for sender in senders:
            if users := self._users.get(sender):
                return users
        return ()

    def reload_if_changed(self) -> bool:
        """Read the file anew if its time stamps or inode changed; whether it has other content now.

        Raises SenderMapsError, once for the same fault, and keeps what was read before. It blocks, and may run in
        another thread: readers see all of the old content or all of the new.
        """
        try:
            status = self.file.stat()
            seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if seen == self._seen:
                return False
            if not stat.S_ISREG(status.st_mode) or status.st_size > LONGEST_FILE:
                raise OSError(0, f"expected a regular file of at most {LONGEST_FILE >> 20} MiB")
            data = self.file.read_bytes()
        except OSError as error:
            self._seen = None
            if self._judged == error.strerror:
                return False
            self._judged = error.strerror
            raise SenderMapsError([f"{self.file}: {error.strerror}"]) from error
        self._seen = seen if time.time() - status.st_ctime > SETTLING_SECONDS else None
        content = (len(data), hash(data))
        if content == self._judged:
            return False
        self._judged = content
        self._users = parse(data, str(self.file), self._user_domain)
        return True


def parse(data: bytes, file: str, user_domain: str) -> dict[bytes, tuple[bytes, ...]]:
    entries: dict[bytes, tuple[bytes, ...]] = {}
    lines: dict[bytes, int] = {}
    faults = []
    data = data.removeprefix(b"\xef\xbb\xbf").lower()  # a BOM, if an editor left one
    all_text = is_text(data.translate(None, b"\n"))  # nearly always: then no line need be looked at for this
    for number, line in _logical_lines(data):
        try:
            if not (all_text or is_text(line)):
                raise ValueError("expected UTF-8 text without control characters")
            sender, users = _parse_entry(line, user_domain)
            if sender in lines:
                raise ValueError(f"{shown(sender)} is listed a second time (first in line {lines[sender]})")
            lines[sender], entries[sender] = number, users
        except ValueError as fault:
            faults.append(f"{file}:{number}: {fault}")
    if faults:
        more = [f"{file}: {len(faults) - _MOST_FAULTS} faults more"] if len(faults) > _MOST_FAULTS else []
        raise SenderMapsError(faults[:_MOST_FAULTS] + more)
    return entries


def _logical_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number of the first physical line, and the text with continuations joined, as postmap(1) reads a source.
    A continuation of nothing is yielded with its leading blank."""
    number, parts = 0, list[bytes]()
    for at, line in enumerate(data.split(b"\n"), 1):
        text = line.strip()
        if not text or text[:1] == b"#":
            continue
        if parts and line[:1].isspace():
            parts.append(text)
        else:
            if parts:
                yield number, b" ".join(parts)
            number, parts = at, [line.rstrip()]
    if parts:
        yield number, b" ".join(parts)


def _parse_entry(line: bytes, user_domain: str) -> tuple[bytes, tuple[bytes, ...]]:
    """Sender and users of a folded logical line. Raises ValueError."""
    if line[:1].isspace():
        raise ValueError("the first entry is indented: an indented line continues the one before")
    entry = _match_entry(line)
    text, rest = entry.groups() if entry else (b"", b"")
    listed = rest.replace(b",", b" ").split()
    if not listed:
        raise ValueError(f"expected sender user[,user...], found {shown(line)}")
    sender = text if is_plain(text) else _parse_sender(text, user_domain)
    if len(listed) > MOST_USERS:
        raise ValueError(f"{shown(sender)} has {len(listed)} users, expected at most {MOST_USERS}")
    for user in listed:
        if user[:1] == b"@" or user[-1:] == b"@":
            raise ValueError(f"{shown(user)}: expected a user such as alice or alice@example.com")
    return sender, tuple([user if b"@" in user else complete_user(user, user_domain) for user in listed])


def _parse_sender(text: bytes, user_domain: str) -> bytes:
    sender = unquote_sender(text)
    if b"@" not in sender:
        sender = complete_user(sender, user_domain)
    if judge(b"any" + sender if sender.startswith(b"@") else sender) is None:
        hint = "" if b"@" in sender else " (there is no user_domain to complete it)"
        raise ValueError(f"{shown(text)}: expected user@domain or @domain such as a request can have{hint}")
    return sender
