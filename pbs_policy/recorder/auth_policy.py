"""Dovecot's auth policy protocol, as far as a report goes: the JSON that Dovecot posts after each authentication.
Bytes in, a login out; no I/O. Whatever is not understood in full is no login.

Dovecot adds `success` and `policy_reject` to the attributes that it is told to send. Each of ours is needed to tell a
login that counts from one that does not, so a report that lacks one is refused: with Dovecot's own default a master
user, an anonymous login, or one that another host answers for could not be told from a user's.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, NoReturn

from pbs_policy.recorder.logins import SeenLogin
from pbs_policy.table.records import REPORT

ATTRIBUTES = ("user", "remote", "protocol", "mech", "master_user", "proxied", "nologin")
"""What a report has to name: the attributes of the shipped report-2.3.conf and report-2.4.conf."""

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what Dovecot writes for bytes that are no UTF-8


class Header(NamedTuple):
    """What `auth_policy_server_api_header` is in HTTP: as Dovecot does, without a colon the value of X-API-Key."""

    name: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Header:
        """The header of this text; without a value, that of none."""
        name, colon, value = text.partition(":")
        return cls(name.strip(), value.strip()) if colon else cls("X-API-Key", text.strip())


class ReportError(Exception):
    """Not a report, or not one that can be judged; the message never quotes it."""


def parse_report(body: bytes) -> SeenLogin | None:
    """The login that a report tells of, None where nobody has logged in. Raises ReportError."""
    try:
        report = json.loads(body.decode("utf-8"), object_pairs_hook=_without_doubles, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ReportError("it is no JSON object with each name once, in UTF-8") from None
    if not isinstance(report, dict):
        raise ReportError("it is no JSON object")
    if not (isinstance(report.get("success"), bool) and isinstance(report.get("policy_reject"), bool)):
        raise ReportError("success and policy_reject are not true or false")
    if not report["success"] or report["policy_reject"]:
        return None
    texts = {name: text for name in ATTRIBUTES if isinstance(text := report.get(name), str)}
    if lack := [name for name in ATTRIBUTES if name not in texts]:
        wanted = "the auth_policy_request_attributes of report-2.3.conf or report-2.4.conf"
        raise ReportError(f"it lacks {', '.join(lack)}: expected {wanted}")
    if texts["nologin"] != "no":  # the password was right, and Dovecot refuses the login
        return None
    if not texts["user"] or any(bad in text for text in texts.values() for bad in ("\0", _UNKNOWN)):
        raise ReportError("the name of its user is empty, or not known to the letter")
    try:
        user, mechanism, master = (texts[name].encode() for name in ("user", "mech", "master_user"))
    except UnicodeEncodeError:
        raise ReportError("half of a character stands in it") from None
    proxied = texts["proxied"] != "no"
    return SeenLogin(user, texts["remote"], texts["protocol"], REPORT, mechanism, master, proxied)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values under one name nobody can say which one is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
