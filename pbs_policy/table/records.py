"""The values in Redis that stand for a login or a permit. They are a public interface: whatever can say one
`SET key value EX seconds` to Redis can record a login.

A login is `<login_at> [<service> [<user>]]`: Unix seconds, one word, and the user verbatim to the end. Dovecot's
last_login plugin writes the first field alone, which is a login without a user. The word is the service, such as
`imap`; where `pbs-policy record` wrote it, it ends in the way in which that learned of the login: `imap-report` by
Dovecot's report, `imap-session` by a session that is still open. Rules on services see `imap`. A program that knows
no ways takes all of it for the service, so that it permits less and never more.

A permit is a JSON object with the fields of `Permit`, or a record like a login's, which is a permit without
conditions. One with a field that is not known here is not honoured: it may be a condition.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from pbs_policy.cap import Cap

_RECORD = re.compile(rb"(?P<login_at>[0-9]{1,12})(?: (?P<service>[A-Za-z0-9_-]{1,32})(?: (?P<user>.*))?)?", re.DOTALL)

WAYS = REPORT, SESSION = "report", "session"
"""How the recorder learns of a login; the post-login script's own is not written."""

_match_word = re.compile(rf"(.+?)(?:-({'|'.join(WAYS)}))?").fullmatch

_USUAL_WORDS = {  # what needs no second look: the service and the way in it
    f"{service}-{way}".removesuffix("-").encode(): (service, way)
    for service in ("imap", "pop3")
    for way in ("", *WAYS)
}

MANUAL = "manual"
"""The service of a permit's record: no service of Dovecot's."""


class Record(NamedTuple):
    """What one login or permit left: when (Unix seconds), by which service, and by whom, as far as known; and the
    `way` of WAYS in which that was learned, "" for every other."""

    login_at: int
    service: str = ""
    user: str = ""
    way: str = ""

    @property
    def user_text(self) -> str:
        """The user for JSON: bytes that are not UTF-8, which `user` keeps as surrogates, become U+FFFD."""
        return self.user.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    @property
    def word(self) -> str:
        """The service, as it stands in the table: with the way. A user without a service is from `unknown`."""
        word = self.service or ("unknown" if self.user else "")
        return f"{word}-{self.way}" if self.way else word

    @property
    def recorded_by(self) -> str:
        """What wrote a login last: one of WAYS, or what writes none; "" for a permit."""
        return self.way or ("last_login" if not self.service else "" if self.service == MANUAL else "script")

    @property
    def how(self) -> str:
        """The service and what recorded it, for people: `imap, by report`."""
        return ", ".join(part for part in (self.service, f"by {self.recorded_by}" * bool(self.recorded_by)) if part)


class Permit(NamedTuple):
    """A permission that an administrator gave, and its conditions: every one that is not empty must hold."""

    given_at: int
    """Unix seconds."""
    user: str = ""
    """Whom it is for; shown in listings and logs."""
    senders: tuple[str, ...] = ()
    """Envelope senders it holds for, folded; `@example.com` stands for the whole domain."""
    recipient_domains: tuple[str, ...] = ()
    """Domains of the recipient it holds for, folded."""
    cap: Cap | None = None
    """Recipients per period, in place of the settings' caps."""
    note: str = ""

    @property
    def record(self) -> Record:
        """What listings and logs show of it."""
        return Record(self.given_at, MANUAL, self.user)


def parse_record(value: bytes) -> Record | None:
    """The record in a key's value, or None where the value is not one."""
    match = _RECORD.fullmatch(value)
    if match is None:
        return None
    login_at, word, user = match.groups(b"")
    service, way = _USUAL_WORDS.get(word) or _split_word(word.decode("ascii"))
    return Record(int(login_at), service, user.decode("utf-8", "surrogateescape"), way)


def _split_word(word: str) -> tuple[str, str]:
    match = _match_word(word)
    return (match[1], match[2] or "") if match else ("", "")


def user_of_record(value: bytes) -> bytes | None:
    """The user in a record's value, b"" where it has none; None where the value is no record. The hot path's way."""
    fields = value.split(b" ", 2)
    if len(fields) == 3 and len(fields[0]) <= 12 and fields[0].isdigit() and fields[1] in _USUAL_WORDS:
        return fields[2]
    match = _RECORD.fullmatch(value)
    return None if match is None else match[3] or b""


def serialise_record(record: Record) -> bytes:
    """The value that holds `record`; a user without a service is recorded as from service `unknown`."""
    fields = [str(record.login_at).encode()]
    if record.word:
        fields.append(record.word.encode())
    if record.user:
        fields.append(record.user.encode("utf-8", "surrogateescape"))
    return b" ".join(fields)


def parse_permit(value: bytes) -> Permit | None:
    """The permit in a key's value, or None where the value is not one that is understood in full."""
    record = parse_record(value)
    if record is not None:
        return Permit(record.login_at, record.user)
    try:
        return permit_from_fields(json.loads(value))
    except (ValueError, RecursionError):
        return None


def serialise_permit(permit: Permit) -> bytes:
    """The value that holds `permit`: a plain record where it has no conditions, which is cheaper to read."""
    if permit == Permit(permit.given_at, permit.user):
        return serialise_record(permit.record)
    return json.dumps(permit_fields(permit)).encode()


def permit_fields(permit: Permit) -> dict[str, object]:
    """The fields of `permit` as JSON knows them, empty ones left out."""
    fields = permit._asdict() | {"cap": str(permit.cap) if permit.cap else ""}
    return {name: field for name, field in fields.items() if field or name == "given_at"}


def permit_from_fields(fields: object) -> Permit:
    """The permit with these fields. Raises ValueError, saying which field is wrong."""
    if not isinstance(fields, dict):
        raise ValueError("expected a JSON object")
    unknown = set(fields) - set(Permit._fields)
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}")
    given_at = fields.get("given_at")
    if type(given_at) is not int or not 0 <= given_at < 10**12:
        raise ValueError("given_at: expected Unix seconds")
    texts = {name: fields.get(name, "") for name in ("user", "cap", "note")}
    lists = {name: fields.get(name, []) for name in ("senders", "recipient_domains")}
    for name, text in texts.items():
        if not _is_text(text):
            raise ValueError(f"{name}: expected text")
    for name, items in lists.items():
        if not isinstance(items, list) or not all(item and _is_text(item) for item in items):
            raise ValueError(f"{name}: expected a list of texts")
        if name in fields and not items:
            raise ValueError(f"{name}: expected at least one")
    cap = Cap.parse(texts["cap"]) if "cap" in fields else None
    senders, domains = (tuple(items) for items in lists.values())
    return Permit(given_at, texts["user"], senders, domains, cap, texts["note"])


def _is_text(field: object) -> bool:
    """Whether a field is text that stands for bytes: not so half of a character, which JSON can write."""
    try:
        return isinstance(field, str) and field.encode("utf-8", "surrogateescape") is not None
    except UnicodeEncodeError:
        return False
