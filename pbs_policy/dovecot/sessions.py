"""Who is connected to Dovecot: what `doveadm who -1` prints of each session, of 2.3 and 2.4.

It is asked for JSON. The tab-separated form escapes nothing: a user name with a newline and tabs in it would be read
as somebody else's session. (The JSON of 2.3 is broken without `-1`, and sound with it; there, both versions give the
fields the same names.) In JSON a byte that is no UTF-8 becomes U+FFFD, so a name with that is not certain.

What is not certain is passed over: no session is ever of a wrong user or address.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import NamedTuple

WHO = ("-f", "json", "who", "-1")
"""What doveadm is told."""

_LONGEST_USER = 1024  # bytes; Dovecot itself ends a login with a longer one
_is_service = re.compile(r"[A-Za-z0-9_-]{1,32}").fullmatch
# A session that a proxy passes on belongs to a login process (2.4), and one that idles to a process of its own.
_PROCESSES = {f"{service}-{kind}": service for service in ("imap", "pop3") for kind in ("login", "hibernate")}


class NotSessions(ValueError):
    """What doveadm printed is no list of sessions; the message says what it is."""


class MailSession(NamedTuple):
    """One session or several alike: the user as Dovecot has it in the end, the service as the post-login script calls
    it, and the client's address as Dovecot writes it."""

    user: str
    service: str
    address: str


def parse_who(printed: bytes) -> tuple[list[MailSession], Counter[str]]:
    """The sessions in what doveadm printed when it was told WHO, each once; and how many rows were passed over, by
    the reason. Raises NotSessions."""
    try:
        rows = json.loads(printed.decode())
    except UnicodeDecodeError:
        raise NotSessions("it is not UTF-8") from None
    except (ValueError, RecursionError):
        raise NotSessions("it is not JSON" if printed.strip() else "it is empty") from None
    if not isinstance(rows, list):
        raise NotSessions("it is not a list")
    found: dict[MailSession, None] = {}
    passed_over: Counter[str] = Counter()
    for row in rows:
        session = _parse_row(row)
        if isinstance(session, MailSession):
            found[session] = None
        else:
            passed_over[session] += 1
    return list(found), passed_over


def _parse_row(row: object) -> MailSession | str:
    """The session of one row, or why there is none."""
    fields = [row.get(name) for name in ("username", "service", "ip")] if isinstance(row, dict) else []
    if not fields or not all(isinstance(field, str) for field in fields):
        return "a row without username, service and ip"
    user, service, address = map(str, fields)
    if not _is_service(service):
        return "a service with an unknown name"
    if not address:
        return "no client address"  # a program on the host itself
    if not user:
        return "no user"
    if "\ufffd" in user or "\0" in user or not _is_text(user):
        return "a user name that is not certain"
    return MailSession(user, _PROCESSES.get(service, service), address)


def _is_text(user: str) -> bool:
    """Not so half of a character, which JSON can write."""
    try:
        return len(user.encode()) <= _LONGEST_USER
    except UnicodeEncodeError:
        return False
