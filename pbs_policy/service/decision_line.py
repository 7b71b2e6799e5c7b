"""A decision as a line of the log: `name=value` in the names that Postfix uses, or the members of a JSON object.

The dearest thing about an OK, so nearly every line goes a short way: its values are put together as bytes and looked
at once, all together. What is not plain there goes the long way, and what that makes of a plain line is the same.
"""

from __future__ import annotations

import re

from pbs_policy.decision.rules import Decision
from pbs_policy.log import LONGEST_VALUE, json_value, value
from pbs_policy.postfix.protocol import Request, first

_VALUE = rf"[!#-~]{{1,{LONGEST_VALUE}}}"  # as `log.value` leaves it alone
_ASKED = rf"sender={_VALUE} recipient={_VALUE}"
_PLAIN_REQUEST = re.compile(_ASKED.encode()).fullmatch
_PLAIN_LOGIN = re.compile(rf"user={_VALUE} service=[\w-]{{1,32}} {_ASKED}".encode()).fullmatch


def as_text(decision: Decision, client_address: str, request: Request) -> str:
    """`action=OK client_address=192.0.2.7 reason=login user=alice@example.com service=pop3 sender=...`, and so on."""
    sender, recipient = first(request, b"sender"), first(request, b"recipient")
    by = decision.by
    if not decision.would_be:
        tail = None
        if by is None:
            tail = _PLAIN_REQUEST(b"sender=%b recipient=%b" % (sender, recipient))
        elif by.permit is None and len(login := by.value.split(b" ", 2)) == 3:
            _, service, user = login
            tail = _PLAIN_LOGIN(b"user=%b service=%b sender=%b recipient=%b" % (user, service, sender, recipient))
        if tail is not None:
            action = decision.action.partition(" ")[0]
            return f"action={action} client_address={client_address} reason={decision.reason} {tail[0].decode()}"
    return " ".join(f"{name}={value(text)}" for name, text in _fields(decision, client_address, request))


def as_json(decision: Decision, client_address: str, request: Request) -> str:
    """The same names as members, without the braces."""
    return ",".join(f'"{name}":{json_value(text)}' for name, text in _fields(decision, client_address, request))


def _fields(decision: Decision, client_address: str, request: Request) -> list[tuple[str, str]]:
    fields = [
        ("action", decision.action.partition(" ")[0]),
        ("client_address", client_address),
        ("reason", decision.reason),
    ]
    if decision.would_be:
        fields.append(("would_be", decision.would_be.partition(" ")[0]))
    record = decision.record
    if record is not None and record.user:
        fields.append(("user", record.user))
    if record is not None and record.service:
        fields.append(("service", record.service))
    fields += [(name, first(request, name.encode()).decode("utf-8", "replace")) for name in ("sender", "recipient")]
    return fields
