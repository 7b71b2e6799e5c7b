"""Sender maps: a file that names further senders per user, read when it changes. (What a sender is: `senders`.)"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from pbs_policy.changing_file import ChangingFile, raise_faults
from pbs_policy.decision.sender import is_plain, is_text, judge, shown, unquote_sender
from pbs_policy.postfix.main_cf import logical_lines
from pbs_policy.table.users import complete_user

MOST_USERS = 32
"""Users of one sender in the maps: each is a key that a relay attempt asks for."""

_match_entry = re.compile(rb'((?:"(?:[^"\\]|\\.)*+"|[^\s"]++)++)\s+(\S.*)', re.DOTALL).fullmatch


class SenderMaps(ChangingFile[dict[bytes, tuple[bytes, ...]]]):
    """Further senders per user, from a file in the format of Postfix's smtpd_sender_login_maps text source.

    An entry is `sender user[,user...]`, blanks or commas between users; the sender is user@domain, @domain, or a user
    whom user_domain completes. Lines are those of postmap(1). As in Postfix the first of user+extension@domain,
    user@domain and @domain that the file has decides. Where Postfix warns and leaves out a line, the whole file is
    refused: what it says is a permission.
    """

    def __init__(self, file: Path, user_domain: str) -> None:
        super().__init__(file, partial(parse, user_domain=user_domain), {})

    @classmethod
    def load(cls, file: Path, user_domain: str) -> SenderMaps:
        """The maps in `file`. Raises FileFault, also where the file cannot be read."""
        maps = cls(file, user_domain)
        maps.reload_if_changed()
        return maps

    def users(self, senders: Iterable[bytes]) -> tuple[bytes, ...]:
        """The users of the first of `senders` (folded: user@domain, @domain) that the file has; () if it has none."""
        for sender in senders:
            if users := self.content.get(sender):
                return users
        return ()


def parse(data: bytes, file: str, user_domain: str) -> dict[bytes, tuple[bytes, ...]]:
    """The users of each sender in the content of `file`. Raises FileFault."""
    entries: dict[bytes, tuple[bytes, ...]] = {}
    lines: dict[bytes, int] = {}
    faults = []
    data = data.removeprefix(b"\xef\xbb\xbf").lower()  # a BOM, if an editor left one
    all_text = is_text(data.translate(None, b"\n"))  # nearly always: then no line need be looked at for this
    for number, line in logical_lines(data):
        try:
            if not (all_text or is_text(line)):
                raise ValueError("expected UTF-8 text without control characters")
            sender, users = _parse_entry(line, user_domain)
            if sender in lines:
                raise ValueError(f"{shown(sender)} is listed a second time (first in line {lines[sender]})")
            lines[sender], entries[sender] = number, users
        except ValueError as fault:
            faults.append(f"{file}:{number}: {fault}")
    raise_faults(file, faults)
    return entries


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
