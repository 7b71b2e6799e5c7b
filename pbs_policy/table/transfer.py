"""The login table as JSON lines, to be carried from one Redis to another: `export_lines`, `parse_line`, `Import`.

One object a line, with the absolute end of what it stands for (`ends_at`, Unix seconds): on the way it loses the time
that passes. `target` is an address, a network, or "all" (a deny of everybody).

    {"kind": "login", "client_address", "user", "service", "login_at", "ends_at"}
    {"kind": "permit", "target", "given_at", and the other fields of a permit (`records`), "ends_at"}
    {"kind": "deny", "target", "reason", "ends_at"}
    {"kind": "auto-deny", "target", "reason", "ends_at"}
    {"kind": "deny-user", "user", "reason", "ends_at"}

A byte that is not UTF-8 is written as Python's surrogateescape has it (\\udcff for 0xFF), and read back as that byte.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

from pbs_policy.address import AddressError, ClientAddresses, Target
from pbs_policy.duration import LONGEST
from pbs_policy.table.keys import EVERYBODY
from pbs_policy.table.listing import AUTO_DENY, Deny, Entry, Progress, is_deny_of_everybody
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.permits import refuse_permit
from pbs_policy.table.records import Permit, Record, permit_fields, permit_from_fields

LONGEST_LINE = 1 << 20
"""Bytes of one line: a permit with ten thousand senders."""

_SLACK = 86_400  # seconds by which another host's clock may be ahead
_FIELDS = {
    "login": {"kind", "client_address", "user", "service", "login_at", "ends_at"},
    "deny": {"kind", "target", "reason", "ends_at"},
    "auto-deny": {"kind", "target", "reason", "ends_at"},
    "deny-user": {"kind", "user", "reason", "ends_at"},
}
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


def export_lines(
    table: LoginTable, addresses: ClientAddresses, left_out: Counter[str], progress: Progress
) -> Iterator[str]:
    """Every login, permit and deny as a line. What must not be carried on is counted in `left_out`, by what it is."""
    for entry in table.entries(progress=progress):
        fault = _why_left_out(addresses, entry.target, entry)
        if fault:
            left_out[fault] += 1
        elif entry.left is not None:
            yield _line(_entry_fields(entry), table.now() + entry.left)
    for deny in table.denies(progress=progress):
        of_address = deny.kind == "address" and not is_deny_of_everybody(deny)
        fault = _why_left_out(addresses, deny.target if of_address else "", deny)
        if fault:
            left_out[fault] += 1
        elif deny.left is not None:
            name = "user" if deny.kind == "user" else "target"
            kind = "deny-user" if deny.kind == "user" else "auto-deny" if deny.by == AUTO_DENY else "deny"
            yield _line({"kind": kind, name: deny.target, "reason": deny.reason}, table.now() + deny.left)


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


def _entry_fields(entry: Entry) -> dict[str, Any]:
    if entry.permit:
        given_at = entry.permit.given_at
        return {"kind": "permit", "target": entry.target, "given_at": given_at, **permit_fields(entry.permit)}
    record = entry.record
    return {
        "kind": "login",
        "client_address": entry.target,
        "user": record.user,
        "service": record.service,
        "login_at": record.login_at,
    }


def _line(fields: dict[str, Any], ends_at: float) -> str:
    return json.dumps(fields | {"ends_at": round(ends_at, 3)}) + "\n"


def parse_line(line: bytes, addresses: ClientAddresses, now: float) -> Item:
    """What a line says; `now` in Unix seconds. Raises ValueError, saying what is wrong with it.

    An address that is excluded here is no fault: `target.excluded` says so.
    """
    fields = _load(line)
    kind, ends_at = _text(fields, "kind"), _ends_at(fields, now)
    if kind == "permit":
        target = _target(addresses, fields, "target")
        if not target.excluded:
            refuse_permit(target)
        rest = {name: field for name, field in fields.items() if name not in ("kind", "target", "ends_at")}
        return Item(permit_from_fields(rest), target, ends_at)
    if kind not in _FIELDS:
        raise ValueError("kind: expected login, permit, deny, auto-deny or deny-user")
    unknown = set(fields) - _FIELDS[kind]
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}")
    if kind == "login":
        return Item(_record(fields), _client(addresses, fields), ends_at)
    reason = _text(fields, "reason")
    if kind == "deny-user":
        user = _text(fields, "user")
        if not user:
            raise ValueError("user: expected a name")
        return Item(reason, None, ends_at, user)
    if fields.get("target") == EVERYBODY and kind == "deny":
        return Item(reason, None, ends_at)
    denied = _target(_AS_WRITTEN, fields, "target")
    if denied.length and not denied.length[1]:
        raise ValueError(f'target: {denied.text} is everybody: expected "{EVERYBODY}"')
    return Item(reason, denied, ends_at, is_automatic=kind == "auto-deny")


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


def _ends_at(fields: dict[str, Any], now: float) -> float:
    ends_at: Any = fields.get("ends_at")
    if type(ends_at) not in (int, float) or not 0 <= ends_at <= now + LONGEST + _SLACK:
        raise ValueError("ends_at: expected Unix seconds, at most 1830d ahead")
    return float(ends_at)


def _record(fields: dict[str, Any]) -> Record:
    login_at, service = fields.get("login_at"), _text(fields, "service")
    if type(login_at) is not int or not 0 <= login_at < 10**12:
        raise ValueError("login_at: expected Unix seconds")
    if not _is_service(service):
        raise ValueError("service: expected a word such as imap")
    return Record(login_at, service, _text(fields, "user"))


def _target(addresses: ClientAddresses, fields: dict[str, Any], name: str) -> Target:
    try:
        return addresses.parse_target(_text(fields, name))
    except AddressError as error:
        raise ValueError(f"{name}: {error}") from None


def _client(addresses: ClientAddresses, fields: dict[str, Any]) -> Target:
    target = _target(addresses, fields, "client_address")
    if target.length:
        raise ValueError(f"client_address: {target.text} is a network, from which nobody logs in")
    return target


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
