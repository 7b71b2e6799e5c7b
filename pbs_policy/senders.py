"""Whose login justifies an envelope sender: MAIL FROM and users, as names of the login table. No Redis here.

A sender is what Postfix writes into a request: the mailbox without its quotes, source route and comments. Postfix
3.7 and 3.10 send `"alice"@example.com` as alice@example.com, `"john doe"@example.com` with a bare blank, and both
`"a@b"@c` and `a@"b@c"` as a@b@c. So nothing is unquoted here: a quote in a sender belongs to the mailbox's name.

Only a sender of which mailbox and domain are certain matches anybody: one "@" with something on both sides, a domain
of plain labels, no control characters, UTF-8, at most LONGEST_SENDER bytes. Nobody matches a sender without a domain
(Postfix would append its own), @example.com, a@b@c, a trailing dot, an address literal; nor a "%" or "!" in the
mailbox, in which Postfix sees a route to another domain (allow_percent_hack, swap_bangpath).

ASCII letters are folded; other letters count byte for byte. A domain's A-label and U-label differ here: the standard
library's codec is that of IDNA 2003, to which different domains are the same. Sender maps can name both.
"""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pbs_policy.log import printable

LONGEST_SENDER = 320
"""Bytes: 64 for the mailbox, "@", 255 for the domain (RFC 5321, section 4.5.3.1)."""

MOST_USERS = 32
"""Users of one sender in the maps: each is a key that a relay attempt asks for."""

LONGEST_FILE = 1 << 26  # bytes: 10^6 lines, and a bound on what a wrong path can cost
SETTLING_SECONDS = 2.0  # a file changed less than this ago may change again and keep its time stamps
_MOST_FAULTS = 20  # shown of one file
_DOMAIN = rb"[a-zA-Z0-9_\x80-\xff-]+(?:\.[a-zA-Z0-9_\x80-\xff-]+)*"
_is_domain = re.compile(_DOMAIN).fullmatch
_match_sender = re.compile(rb"[^\x00-\x1f\x7f@%!]+(@" + _DOMAIN + rb")").fullmatch
_match_entry = re.compile(rb'((?:"(?:[^"\\]|\\.)*+"|[^\s"]++)++)\s+(\S.*)', re.DOTALL).fullmatch
_match_quoted = re.compile(rb'"((?:[^"\\@]|\\[^@])+)"(@[^"]*)?', re.DOTALL).fullmatch
_is_unquoted = re.compile(rb'[^\s"(),:;<>\[\\\]]+').fullmatch
# What nearly every sender in a file is, within LONGEST_SENDER: it needs no second look.
_is_plain = re.compile(rb"[a-z0-9._=+-]{1,64}@[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63}){1,3}").fullmatch
_CONTROLS = bytes({*range(32), 127} - {9})  # less the tab
_NEVER_SPLIT = (b"postmaster", b"mailer-daemon", b"double-bounce")


@dataclass(frozen=True, slots=True)
class SenderRules:
    """What is asked of a sender; the settings of these names. In `recipient_delimiter` each character is one."""

    match: Literal["off", "domain", "address"] = "off"
    user_domain: str = ""
    recipient_delimiter: str = ""
    null_sender: Literal["permit", "refuse"] = "refuse"


class SenderMapsError(ValueError):
    """A maps file is not usable. `faults` are `FILE:LINE: what is wrong, what was expected`, one or several."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))


def parse_user_domain(text: str) -> str:
    """The value of the setting user_domain. Raises ValueError."""
    if text and not _is_domain(text.encode("utf-8", "surrogateescape")):
        raise ValueError("expected a domain such as example.com")
    return text


def parse_recipient_delimiter(text: str) -> str:
    """The value of the setting recipient_delimiter. Raises ValueError."""
    # What an unquoted mailbox may hold besides letters and digits (RFC 5322 atext, the dot), less our "%" and "!".
    if not re.fullmatch(r"[#$&'*+/=?^_`{|}~.-]*", text):
        raise ValueError("expected punctuation such as + or +-")
    return text


def complete_user(user: bytes, user_domain: str) -> bytes:
    """The name under which a user is known in keys: folded, and with `user_domain` where it has no domain.

    b"" for a user without a name and for one that begins with "@": its key would be that of a whole domain.
    """
    name = user.lower()
    if not name or name.startswith(b"@"):
        return b""
    if user_domain and b"@" not in name:
        name += b"@" + user_domain.encode("utf-8", "surrogateescape").lower()
    return name


def names_of_user(user: bytes, user_domain: str) -> tuple[bytes, ...]:
    """Under which names a login of `user` is found besides its address: the user, and its `@domain` if it has one.

    A user whose name begins with "@" has none: it would pass for everybody of that domain.
    """
    name = complete_user(user, user_domain)
    local_part, _, domain = name.rpartition(b"@")
    return (name, b"@" + domain) if local_part and domain else (name,) if name else ()


def names_to_match(sender: bytes, rules: SenderRules, maps: SenderMaps | None) -> tuple[bytes, ...] | None:
    """The names of which one must be logged in from the address: users, and `@domain`.

    () where nobody can match: the sender is refused. None where this sender is not restricted: match is off, or it
    is the null sender and null_sender is permit. MAIL FROM is the client's word and proves nothing: a match narrows
    what an address' neighbours can do.

    match=address wants the sender, or the sender without its extension (recipient_delimiter); match=domain wants any
    user of the sender's domain. A user whom `maps` names for the sender will do in both.
    """
    if rules.match == "off":
        return None
    names = own_names(sender, rules)
    if not names:
        return None if not sender and rules.null_sender == "permit" else ()
    domain = names[0][names[0].rindex(b"@") :]
    own = (domain,) if rules.match == "domain" else names
    if maps is None:
        return own
    return tuple(dict.fromkeys(own + maps.users((*names, domain))))


def own_names(sender: bytes, rules: SenderRules) -> tuple[bytes, ...]:
    """Whom an envelope sender names by itself, whatever is matched: the user of this address, and of it without its
    extension. () where mailbox and domain are not certain."""
    name = sender
    if not _is_plain(sender):
        if not _judge(sender):
            return ()
        name = sender.lower()
    bare = _strip_extension(name, rules.recipient_delimiter) if rules.recipient_delimiter else b""
    return (name, bare) if bare else (name,)


def sender_is_user(sender: bytes, user: bytes, rules: SenderRules, maps: SenderMaps | None) -> bool:
    """Whether a login of this user alone justifies this sender. With match=off it is judged as for `domain`."""
    names = names_to_match(sender, replace(rules, match="domain") if rules.match == "off" else rules, maps)
    return names is None or not set(names).isdisjoint(names_of_user(user, rules.user_domain))


def unquote_sender(text: bytes) -> bytes:
    """A sender as people write it, quoted where RFC 5322 wants that, in the form of Postfix's requests.

    Raises ValueError. Nobody may match the result; `@domain` passes.
    """
    if _is_unquoted(text):
        return text
    if quoted := _match_quoted(text):
        return re.sub(rb"\\(.)", rb"\1", quoted[1], flags=re.DOTALL) + (quoted[2] or b"")
    hint = "expected user@domain, the user in quotes if it has special characters other than @"
    raise ValueError(f"{_shown(text)}: {hint}")


def _judge(sender: bytes) -> re.Match[bytes] | None:
    """The sender, with its `@domain` as group 1, where mailbox and domain are certain."""
    if len(sender) > LONGEST_SENDER or not (sender.isascii() or _is_text(sender)):
        return None
    return _match_sender(sender)


def _is_text(data: bytes) -> bool:
    """UTF-8 without control characters other than the tab."""
    return data.translate(None, _CONTROLS).decode("utf-8", "ignore").encode() == data


def _strip_extension(name: bytes, delimiters: str) -> bytes:
    """A folded sender without its extension, b"" where it has none. The rules are Postfix's (split_addr,
    strip_addr): the first delimiter splits, nothing may be left empty before it, and some names stay whole."""
    mailbox, _, domain = name.partition(b"@")
    if mailbox in _NEVER_SPLIT:
        return b""
    if "-" in delimiters and (mailbox.startswith(b"owner-") or mailbox.endswith(b"-request")):
        return b""  # owner_request_special is on by default
    bare = mailbox
    for delimiter in delimiters.encode("ascii", "ignore"):
        bare = bare.partition(b"%c" % delimiter)[0]
    return bare + b"@" + domain if bare and bare != mailbox else b""


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
        self._users = _parse(data, str(self.file), self._user_domain)
        return True


def _parse(data: bytes, file: str, user_domain: str) -> dict[bytes, tuple[bytes, ...]]:
    entries: dict[bytes, tuple[bytes, ...]] = {}
    lines: dict[bytes, int] = {}
    faults = []
    data = data.removeprefix(b"\xef\xbb\xbf").lower()  # a BOM, if an editor left one
    is_text = _is_text(data.translate(None, b"\n"))  # nearly always: then no line need be looked at for this
    for number, line in _logical_lines(data):
        try:
            if not (is_text or _is_text(line)):
                raise ValueError("expected UTF-8 text without control characters")
            sender, users = _parse_entry(line, user_domain)
            if sender in lines:
                raise ValueError(f"{_shown(sender)} is listed a second time (first in line {lines[sender]})")
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
        raise ValueError(f"expected sender user[,user...], found {_shown(line)}")
    sender = text if _is_plain(text) else _parse_sender(text, user_domain)
    if len(listed) > MOST_USERS:
        raise ValueError(f"{_shown(sender)} has {len(listed)} users, expected at most {MOST_USERS}")
    for user in listed:
        if user[:1] == b"@" or user[-1:] == b"@":
            raise ValueError(f"{_shown(user)}: expected a user such as alice or alice@example.com")
    return sender, tuple([user if b"@" in user else complete_user(user, user_domain) for user in listed])


def _parse_sender(text: bytes, user_domain: str) -> bytes:
    sender = unquote_sender(text)
    if b"@" not in sender:
        sender = complete_user(sender, user_domain)
    if _judge(b"any" + sender if sender.startswith(b"@") else sender) is None:
        hint = "" if b"@" in sender else " (there is no user_domain to complete it)"
        raise ValueError(f"{_shown(text)}: expected user@domain or @domain such as a request can have{hint}")
    return sender


def _shown(text: bytes) -> str:
    return printable(text.decode("utf-8", "replace"))
