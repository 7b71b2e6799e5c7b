"""A decision as a line of the log: `name=value` in the names that Postfix uses, or the members of a JSON object."""

from __future__ import annotations

from pbs_policy.decision.rules import Decision
from pbs_policy.log import json_value, value
from pbs_policy.postfix.protocol import Request, first


def as_text(decision: Decision, client_address: str, request: Request) -> str:
    """`action=OK client_address=192.0.2.7 reason=login user=alice@example.com service=pop3 sender=...`, and so on."""
    ours = [f"{name}={text}" for name, text in _ours(decision, client_address)]
    return " ".join(ours + [f"{name}={value(text)}" for name, text in _theirs(decision, request)])


def as_json(decision: Decision, client_address: str, request: Request) -> str:
    """The same names as members, without the braces."""
    fields = _ours(decision, client_address) + _theirs(decision, request)
    return ",".join([f'"{name}":{json_value(text)}' for name, text in fields])


def _ours(decision: Decision, client_address: str) -> list[tuple[str, str]]:
    """What the program has written, with no letter that could pass for another field."""
    fields = [
        ("action", decision.action.partition(" ")[0]),
        ("client_address", client_address),
        ("reason", decision.reason),
    ]
    if decision.would_be:
        fields.append(("would_be", decision.would_be.partition(" ")[0]))
    return fields


def _theirs(decision: Decision, request: Request) -> list[tuple[str, str]]:
    """What comes from Redis and from Postfix."""
    record = decision.record
    fields = [("user", record.user), ("service", record.service)] if record is not None else []
    fields = [field for field in fields if field[1]]
    fields += [(name, first(request, name.encode()).decode("utf-8", "replace")) for name in ("sender", "recipient")]
    return fields
