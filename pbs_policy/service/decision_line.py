"""A decision as a line of the log: `name=value` in the names that Postfix uses, or the members of a JSON object."""

from __future__ import annotations

from pbs_policy.decision.rules import Decision
from pbs_policy.log import json_value, value
from pbs_policy.postfix.protocol import Request, first


def as_text(decision: Decision, client_address: str, request: Request) -> str:
    """`action=OK client_address=192.0.2.7 reason=login user=alice@example.com service=pop3 sender=...`, and so on."""
    return " ".join([f"{name}={value(text)}" for name, text in _fields(decision, client_address, request)])


def as_json(decision: Decision, client_address: str, request: Request) -> str:
    """The same names as members, without the braces."""
    return ",".join([f'"{name}":{json_value(text)}' for name, text in _fields(decision, client_address, request)])


def _fields(decision: Decision, client_address: str, request: Request) -> list[tuple[str, str]]:
    fields = [
        ("action", decision.action.partition(" ")[0]),
        ("client_address", client_address),
        ("reason", decision.reason),
    ]
    if decision.would_be:
        fields.append(("would_be", decision.would_be.partition(" ")[0]))
    record = decision.record
    if record is not None:
        fields += [field for field in (("user", record.user), ("service", record.service)) if field[1]]
    fields += [(name, first(request, name.encode()).decode("utf-8", "replace")) for name in ("sender", "recipient")]
    return fields
