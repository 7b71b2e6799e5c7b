"""The login table as JSON lines, to be carried from one Redis to another: `export_lines`, `parse_line`, `Import`.

A line is an object with the names that listings have (`rows`), those left out that are empty. It says when the entry
expires (`expires_at`), not in how long: on the way it loses the time that passes. `client_address` is an address, a
network, or "all" (a deny of everybody).

    {"kind": "login", "client_address", "user", "service", "since", "expires_at", "recorded_by"}
    {"kind": "permit", "client_address", "user", "since", "expires_at", "senders", "recipient_domains", "cap", "note"}
    {"kind": "deny", "client_address" or "user", "expires_at", "by", "reason"}

A byte that is not UTF-8 is written as Python's surrogateescape has it (\\udcff for 0xFF), and read back as that byte.

Files of earlier versions are read as well: they have other names for the same (`_EARLIER`), and Unix seconds.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from math import nan
from typing import IO, Any, NamedTuple

from pbs_policy.address import AddressError, ClientAddresses, Target
from pbs_policy.duration import LONGEST
from pbs_policy.table.keys import EVERYBODY
from pbs_policy.table.listing import ADMINISTRATOR, AUTO_DENY, Deny, Entry, Progress, is_deny_of_everybody
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.permits import refuse_permit
from pbs_policy.table.records import WAYS, Permit, Record, permit_from_fields
from pbs_policy.table.rows import deny_row, entry_row, read_time

LONGEST_LINE = 1 << 20
"""Bytes of one line: a permit with ten thousand senders."""

_SLACK = 86_400  # seconds by which another host's clock may be ahead
_FIELDS = {
    "login": {"kind", "client_address", "user", "service", "since", "expires_at", "recorded_by"},
    "permit": {
        "kind", "client_address", "user", "since", "expires_at", "senders", "recipient_domains", "cap", "note"
    },
    "deny": {"kind", "client_address", "user", "expires_at", "by", "reason"},
}  # fmt: skip
_EARLIER = {"target": "client_address", "login_at": "since", "given_at": "since", "ends_at": "expires_at"}
_EARLIER_DENIES = {"deny-user": ADMINISTRATOR, "auto-deny": AUTO_DENY}
"""Kinds of earlier versions, and whose deny each was."""

_AS_WRITTEN = ClientAddresses()
"""Of denies: one that was written under another ipv6_prefix holds for what it names."""

_is_service = re.compile(r"[A-Za-z0-9_-]{0,32}").fullmatch


class Item(NamedTuple):
    """What one line says: a login, permit or deny, of an address or network (`target`), of everybody (None), or of
    a user; and when it ends. `is_automatic`: a deny of the service's own (auto_deny)."""

    what: Record | Permit | str
    target: Target | None
    ends_at: float
    denied_user: str = ""
    is_automatic: bool = False

    @property
    def kind(self) -> str:
        """As the summary of an import counts it."""
        return {Record: "logins", Permit: "permits"}.get(type(self.what), "denies")

    @property
    def text(self) -> str:
        """The address or network, or EVERYBODY."""
        return self.target.text if self.target else EVERYBODY


def export_lines(
    table: LoginTable, addresses: ClientAddresses, left_out: Counter[str], progress: Progress
) -> Iterator[str]:
    """Every login, permit and deny as a line. What must not be carried on is counted in `left_out`, by what it is."""
    for entry in table.entries(progress=progress):
        fault = _why_left_out(addresses, entry.target, entry)
        if fault:
            left_out[fault] += 1
        else:
            row = entry_row(entry, table.now())
            if entry.permit:
                del row["service"]  # it is no service's
            yield _line(row)
    for deny in table.denies(progress=progress):
        of_address = deny.kind == "address" and not is_deny_of_everybody(deny)
        fault = _why_left_out(addresses, deny.target if of_address else "", deny)
        if fault:
            left_out[fault] += 1
        else:
            yield _line(deny_row(deny, table.now()))


def _line(row: dict[str, Any]) -> str:
    return json.dumps({name: field for name, field in row.items() if field}) + "\n"


def _why_left_out(addresses: ClientAddresses, text: str, what: Entry | Deny) -> str:
    if what.left is None:
        return "without an end"
    if not text:
        return ""
    try:
        target = (addresses if isinstance(what, Entry) else _AS_WRITTEN).parse_target(text)
        if isinstance(what, Entry):
            refuse_permit(target)
    except AddressError:
        target = None
    is_login = isinstance(what, Entry) and what.permit is None
    if target is None or target.text != text or (is_login and target.length):
        return "of an address or network that may not relay, or that the service does not ask for"
    return ""


def parse_line(line: bytes, addresses: ClientAddresses, now: float) -> Item:
    """What a line says; `now` in Unix seconds. Raises ValueError, saying what is wrong with it.

    An address that is excluded here is no fault: `target.excluded` says so.
    """
    fields = _named_as_now(_load(line))
    kind, ends_at = _text(fields, "kind"), _expiry(fields, now)
    if kind not in _FIELDS:
        raise ValueError("kind: expected login, permit or deny")
    unknown = set(fields) - _FIELDS[kind]
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}")
    if kind == "login":
        client = _target(addresses, fields)
        if client.length:
            raise ValueError(f"client_address: {client.text} is a network, from which nobody logs in")
        return Item(_record(fields), client, ends_at)
    if kind == "permit":
        target = _target(addresses, fields)
        if not target.excluded:
            refuse_permit(target)
        conditions = {name: fields[name] for name in fields.keys() & set(Permit._fields)}
        return Item(permit_from_fields({**conditions, "given_at": _since(fields)}), target, ends_at)
    return _deny(fields, ends_at)


def _named_as_now(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a line of an earlier version in the names of this one."""
    named = {_EARLIER.get(name, name): field for name, field in fields.items()}
    if len(named) < len(fields):
        raise ValueError(f"one field by two names: expected one of {', '.join(sorted(fields.keys() & _EARLIER))}")
    kind = fields.get("kind")
    if isinstance(kind, str) and kind in _EARLIER_DENIES:
        if ("user" in named) != (kind == "deny-user"):
            raise ValueError(f"{kind}: expected {'a user' if kind == 'deny-user' else 'a target'}")
        named |= {"kind": "deny", "by": _EARLIER_DENIES[kind]}
    return named


def _deny(fields: dict[str, Any], ends_at: float) -> Item:
    by, reason = fields.get("by", ADMINISTRATOR), _text(fields, "reason")
    if by not in (ADMINISTRATOR, AUTO_DENY):
        raise ValueError(f"by: expected {ADMINISTRATOR} or {AUTO_DENY}")
    is_automatic = by == AUTO_DENY
    if ("user" in fields) == ("client_address" in fields):
        raise ValueError("expected either client_address or user")
    if "user" in fields:
        user = _text(fields, "user")
        if not user or is_automatic:
            raise ValueError("user: expected a name" if not user else f"by: no user is denied by {AUTO_DENY}")
        return Item(reason, None, ends_at, user)
    if fields["client_address"] == EVERYBODY and not is_automatic:
        return Item(reason, None, ends_at)
    denied = _target(_AS_WRITTEN, fields)
    if denied.length and not denied.length[1]:
        raise ValueError(f'client_address: {denied.text} is everybody: expected "{EVERYBODY}"')
    return Item(reason, denied, ends_at, is_automatic=is_automatic)


def _load(line: bytes) -> dict[str, Any]:
    if len(line) > LONGEST_LINE:
        raise ValueError(f"longer than {LONGEST_LINE} bytes")
    try:
        text = line.decode()
        fields = json.loads(text)
        if "\\u" in text:
            json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError("a lone surrogate that stands for no byte") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(fields, dict):
        raise ValueError("expected a JSON object")
    return fields


def _text(fields: dict[str, Any], name: str) -> str:
    text = fields.get(name, "")
    if not isinstance(text, str):
        raise ValueError(f"{name}: expected text")
    return text


def _seconds(fields: dict[str, Any], name: str) -> float:
    """The time in a field, as Unix seconds; NaN where there is none."""
    field = fields.get(name)
    if isinstance(field, str):
        try:
            return read_time(field)
        except ValueError:
            return nan
    return field if isinstance(field, int | float) and not isinstance(field, bool) else nan


def _expiry(fields: dict[str, Any], now: float) -> float:
    seconds = _seconds(fields, "expires_at")
    if not 0 <= seconds <= now + LONGEST + _SLACK:
        raise ValueError("expires_at: expected a time such as 2026-11-28T10:02:00Z, at most 1830d ahead")
    return float(seconds)


def _since(fields: dict[str, Any]) -> int:
    seconds = _seconds(fields, "since")
    if not 0 <= seconds < 10**12:
        raise ValueError("since: expected a time such as 2026-11-28T10:02:00Z")
    return int(seconds)


def _record(fields: dict[str, Any]) -> Record:
    since, service = _since(fields), _text(fields, "service")
    if not _is_service(service):
        raise ValueError("service: expected a word such as imap")
    by = _text(fields, "recorded_by")
    if by not in ("", *WAYS, "script", "last_login"):
        raise ValueError(f"recorded_by: expected script, {', '.join(WAYS)} or last_login")
    return Record(since, service, _text(fields, "user"), by if by in WAYS else "")


def _target(addresses: ClientAddresses, fields: dict[str, Any]) -> Target:
    try:
        return addresses.parse_target(_text(fields, "client_address"))
    except AddressError as error:
        raise ValueError(f"client_address: {error}") from None


def read_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of a stream; of one that is longer than LONGEST_LINE no more than shows that."""
    while line := stream.readline(LONGEST_LINE + 1):
        yield line
        while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
            line = stream.readline(LONGEST_LINE + 1)


def parse_lines(
    lines: Iterable[bytes], addresses: ClientAddresses, now: float
) -> Iterator[tuple[int, Item | ValueError]]:
    """The number of each line, and what it says or what is wrong with it. Empty lines are passed over."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, parse_line(line, addresses, now)
        except ValueError as error:
            yield number, error
