"""Whose login justifies an envelope sender: MAIL FROM and users, as names of the login table. No Redis here.

A sender is what Postfix writes into a request: the mailbox without its quotes, source route and comments. Postfix
3.7 and 3.10 send `"alice"@example.com` as alice@example.com, `"john doe"@example.com` with a bare blank, and both
`"a@b"@c` and `a@"b@c"` as a@b@c. So nothing is unquoted here: a quote in a sender belongs to the mailbox's name.

Only a sender of which mailbox and domain are certain matches anybody: one "@" with something on both sides, a domain
of plain labels, no control characters, UTF-8, at most LONGEST_SENDER bytes. Nobody matches a sender without a domain
(Postfix would append its own), @example.com, a@b@c, a trailing dot, an address literal; nor a "%" or "!" in the
mailbox, in which Postfix sees a route to another domain (allow_percent_hack, swap_bangpath).

A gateway may have put a tag on a sender: BATV (`prvs=TAG=alice@example.com`) to know its own bounces, SRS
(`SRS0=HASH=TIME=example.com=alice@example.net`) to get them back. Anybody can write one. So a sender passes for the
one within its BATV tag only where `batv` says so, and never for the one within SRS, which is of another domain. A
deny holds within every tag, whatever is set.

ASCII letters are folded; other letters count byte for byte. A domain's A-label and U-label differ here: the standard
library's codec is that of IDNA 2003, to which different domains are the same. Sender maps can name both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pbs_policy.log import printable
from pbs_policy.table.users import names_of_user

LONGEST_SENDER = 320
"""Bytes: 64 for the mailbox, "@", 255 for the domain (RFC 5321, section 4.5.3.1)."""

_DOMAIN = rb"[a-zA-Z0-9_\x80-\xff-]+(?:\.[a-zA-Z0-9_\x80-\xff-]+)*"
_is_domain = re.compile(_DOMAIN).fullmatch
_match_sender = re.compile(rb"[^\x00-\x1f\x7f@%!]+(@" + _DOMAIN + rb")").fullmatch
# Local parts that need no quotes, and domains of which there is one spelling.
_is_certain = re.compile(
    rb"[a-zA-Z0-9#$&'*+/=?^_`{|}~.-]+@(?:(?![xX][nN]--)[a-zA-Z0-9_-]+\.)+(?![xX][nN]--)[a-zA-Z0-9_-]+"
).fullmatch
_match_quoted = re.compile(rb'"((?:[^"\\@]|\\[^@])+)"(@[^"]*)?', re.DOTALL).fullmatch
_is_unquoted = re.compile(rb'[^\s"(),:;<>\[\\\]]+').fullmatch
# What nearly every sender in a file is, within LONGEST_SENDER: it needs no second look.
is_plain = re.compile(rb"[a-z0-9._=+-]{1,64}@[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63}){1,3}").fullmatch
_CONTROLS = bytes({*range(32), 127} - {9})  # less the tab
_match_batv = re.compile(rb"(?:prvs=[^=@]*=|btv1==[^=@]*==)+([^@]+@[^@]+)").fullmatch
_match_srs = re.compile(rb"srs(?:0|1[=+-][^=@]*=[^=@]*=)[=+-][^=@]*=[^=@]*=([^=@]+)=([^@]+)@[^@]+").fullmatch
_NEVER_SPLIT = (b"postmaster", b"mailer-daemon", b"double-bounce")


@dataclass(frozen=True, slots=True)
class SenderRules:
    """What is asked of a sender; the settings of these names. In `recipient_delimiter` each character is one."""

    match: Literal["off", "domain", "address"] = "off"
    user_domain: str = ""
    recipient_delimiter: str = ""
    null_sender: Literal["permit", "refuse"] = "refuse"
    batv: Literal["off", "fold"] = "off"


class Maps(Protocol):
    """Further users per sender (`sender_maps`)."""

    def users(self, senders: Iterable[bytes]) -> tuple[bytes, ...]:
        """The users of the first of `senders` (folded: user@domain, @domain) that is listed; () where none is."""
        ...


def parse_user_domain(text: str) -> str:
    """The value of the setting user_domain. Raises ValueError."""
    if text and not _is_domain(text.encode("utf-8", "surrogateescape")):
        raise ValueError("expected a domain such as example.com")
    return text


def parse_login_domains(text: str) -> frozenset[str]:
    """The value of the setting login_domains, ASCII letters folded. Raises ValueError."""
    domains = [each.encode("utf-8", "surrogateescape") for each in text.replace(",", " ").split()]
    if not all(map(_is_domain, domains)):
        raise ValueError("expected domains such as example.com example.net")
    return frozenset(domain.lower().decode("utf-8", "surrogateescape") for domain in domains)


def parse_recipient_delimiter(text: str) -> str:
    """The value of the setting recipient_delimiter. Raises ValueError."""
    # What an unquoted mailbox may hold besides letters and digits (RFC 5322 atext, the dot), less our "%" and "!".
    if not re.fullmatch(r"[#$&'*+/=?^_`{|}~.-]*", text):
        raise ValueError("expected punctuation such as + or +-")
    return text


def names_to_match(sender: bytes, rules: SenderRules, maps: Maps | None) -> tuple[bytes, ...] | None:
    """The names of which one must be logged in from the address: users, and `@domain`.

    () where nobody can match: the sender is refused. None where this sender is not restricted: match is off, or it
    is the null sender and null_sender is permit. MAIL FROM is the client's word and proves nothing: a match narrows
    what an address' neighbours can do.

    match=address wants the sender, or the sender without its extension (recipient_delimiter) or tag (batv);
    match=domain wants any user of the sender's domain. A user whom `maps` names for the sender will do in both.
    """
    return None if rules.match == "off" else names_under(sender, rules, rules.match == "domain", maps)


def names_under(
    sender: bytes, rules: SenderRules, is_by_domain: bool, maps: Maps | None
) -> tuple[bytes, ...] | None:
    """The same as if `match` were `domain`, or `address`, whatever it is."""
    names = own_names(sender, rules)
    if not names:
        return None if not sender and rules.null_sender == "permit" else ()
    domain = names[0][names[0].rindex(b"@") :]
    own = (domain,) if is_by_domain else names
    if maps is None:
        return own
    return tuple(dict.fromkeys(own + maps.users((*names, domain))))


def own_names(sender: bytes, rules: SenderRules) -> tuple[bytes, ...]:
    """Whom an envelope sender names by itself, whatever is matched: the user of this address, and of it without its
    extension or tag. () where mailbox and domain are not certain."""
    name = sender
    if not is_plain(sender):
        if not judge(sender):
            return ()
        name = sender.lower()
    names = _with_bare(name, rules)
    if rules.batv == "fold" and b"=" in name and (tagged := _match_batv(name)):
        names += _with_bare(tagged[1], rules)
    return names


def names_to_deny(sender: bytes, rules: SenderRules) -> tuple[bytes, ...]:
    """The same, with every address that stands within a tag: who is denied may not hide in one."""
    names = own_names(sender, rules)
    if b"=" not in sender:
        return names
    inner = names[0] if names else b""
    while b"=" in inner:
        if tagged := _match_batv(inner):
            inner = tagged[1]
        elif tagged := _match_srs(inner):
            inner = tagged[2] + b"@" + tagged[1]
        else:
            break
        names += _with_bare(inner, rules)
    return tuple(dict.fromkeys(names))


def _with_bare(name: bytes, rules: SenderRules) -> tuple[bytes, ...]:
    """A folded sender, and the same without its extension where it has one."""
    bare = _strip_extension(name, rules.recipient_delimiter) if rules.recipient_delimiter else b""
    return (name, bare) if bare else (name,)


def denied_names(user: bytes, rules: SenderRules) -> tuple[bytes, ...]:
    """Under which names a deny of this user may stand. Dovecot may let alice@example.com log in as
    `alice@example.com.` and `alice+x@example.com` too, and without user_domain a denied alice could be of any domain.
    """
    if b"@" not in user:
        return (user,) if user else ()
    name = user.rstrip(b".")
    names = [user] if name == user else [user, name]
    if rules.recipient_delimiter and (bare := _strip_extension(name, rules.recipient_delimiter)):
        names.append(bare)
    if not rules.user_domain:
        names += [each.partition(b"@")[0] for each in names]
    return tuple(names)


def is_among(sender: bytes, senders: Sequence[str], rules: SenderRules) -> bool:
    """Whether a sender is one of `senders` (folded: user@domain, @domain), with or without its extension."""
    names = own_names(sender, rules)
    wanted = {each.encode("utf-8", "surrogateescape") for each in senders}
    return bool(names) and not wanted.isdisjoint((*names, names[0][names[0].rindex(b"@") :]))


def is_within(recipient: bytes, domains: Sequence[str]) -> bool:
    """Whether a recipient is in one of `domains` (folded). One that Postfix would route elsewhere is in none."""
    found = judge(recipient)
    return found is not None and found[1][1:].lower() in {each.encode("utf-8", "surrogateescape") for each in domains}


def is_certain(sender: bytes) -> bool:
    """Whether a sender names nobody but the user of this very address, whatever Postfix makes of it.

    Not so where Postfix rewrites (a trailing dot, "%", "!", a missing domain or one without a dot, quotes), nor where
    there are other spellings of the same (letters that are not ASCII, A-labels). The null sender names nobody.
    """
    return not sender or (len(sender) <= LONGEST_SENDER and _is_certain(sender) is not None)


def justifies(names: Sequence[bytes] | None, user: bytes, rules: SenderRules) -> bool:
    """Whether a login of this user alone is one of those that a sender needs (`names_under`)."""
    return names is None or any(name in names for name in names_of_user(user, rules.user_domain))


def unquote_sender(text: bytes) -> bytes:
    """A sender as people write it, quoted where RFC 5322 wants that, in the form of Postfix's requests.

    Raises ValueError. Nobody may match the result; `@domain` passes.
    """
    if _is_unquoted(text):
        return text
    if quoted := _match_quoted(text):
        return re.sub(rb"\\(.)", rb"\1", quoted[1], flags=re.DOTALL) + (quoted[2] or b"")
    hint = "expected user@domain, the user in quotes if it has special characters other than @"
    raise ValueError(f"{shown(text)}: {hint}")


def judge(sender: bytes) -> re.Match[bytes] | None:
    """The sender, with its `@domain` as group 1, where mailbox and domain are certain."""
    if len(sender) > LONGEST_SENDER or not (sender.isascii() or is_text(sender)):
        return None
    return _match_sender(sender)


def is_text(data: bytes) -> bool:
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


def shown(text: bytes) -> str:
    return printable(text.decode("utf-8", "replace"))
