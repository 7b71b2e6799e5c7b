"""Logins, permits and denies in the names and the order that JSON and TSV have for them, the same in every command:
docs/reference.md says what each name means. Times are ISO 8601, UTC, whole seconds.

Text is as Redis has it: a byte that is not UTF-8 is a lone surrogate, as Python's surrogateescape has it.
"""

from __future__ import annotations

import time
from datetime import datetime
from functools import lru_cache
from typing import Any

from pbs_policy.table.listing import Deny, Entry

_LAST = 253_402_300_799
"""The end of the year 9999, which is the last that ISO 8601 writes with four digits."""

_LONGEST = 40  # characters of a time
_MOST_TIMES = 4096  # a long list has the same few thousand seconds again and again


def write_time(seconds: float) -> str:
    """Unix seconds as ISO 8601. What is left of a second is cut off: nothing is shown to last longer than it does."""
    return _written(min(int(seconds), _LAST))


@lru_cache(_MOST_TIMES)
def _written(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@lru_cache(_MOST_TIMES)
def read_time(text: str) -> float:
    """Unix seconds. Raises ValueError for what is no time of ISO 8601 with its zone."""
    found = datetime.fromisoformat(text[:_LONGEST])
    if found.tzinfo is None or len(text) > _LONGEST:
        raise ValueError("no time zone, or no end")
    return found.timestamp()


def entry_row(entry: Entry, now: float) -> dict[str, Any]:
    """One login or permit, read at `now`. A permit's `client_address` may be a network."""
    permit = entry.permit
    return {
        "kind": entry.kind,
        "client_address": entry.target,
        "user": entry.record.user or None,
        "service": entry.record.service or None,
        "since": write_time(entry.record.login_at),
        "expires_at": _expiry(entry.left, now),
        "senders": permit.senders if permit else (),
        "recipient_domains": permit.recipient_domains if permit else (),
        "cap": str(permit.cap) if permit and permit.cap else None,
        "note": (permit.note or None) if permit else None,
        "recorded_by": entry.record.recorded_by or None,
    }


def deny_row(deny: Deny, now: float) -> dict[str, Any]:
    """One deny, read at `now`: of an address, a network or everybody (`EVERYBODY`), else of a user."""
    return {
        "kind": "deny",
        "client_address": None if deny.kind == "user" else deny.target,
        "user": deny.target if deny.kind == "user" else None,
        "expires_at": _expiry(deny.left, now),
        "by": deny.by,
        "reason": deny.reason or None,
    }


def _expiry(left: float | None, now: float) -> str | None:
    return None if left is None else write_time(now + left)
