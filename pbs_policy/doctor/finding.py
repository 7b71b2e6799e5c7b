"""What a check of `pbs-policy doctor` says, and nothing else: one `Finding` for each thing it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pbs_policy.host import is_for_root
from pbs_policy.settings.sources import Value

Level = Literal["good", "warning", "wrong", "unknown", "not looked at"]


AS_ROOT = "run doctor as root"
"""How to see what only some may read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is a stable name such as `postfix.order`; `seen` is what was found, in a sentence; `place` is
    `FILE:LINE`, or a file alone where a line is missing; `mend` is the command or the line that mends it."""

    check: str
    level: Level
    seen: str
    place: str = ""
    mend: str = ""


def good(check: str, seen: str, place: str = "") -> Finding:
    """Nothing to mend."""
    return Finding(check, "good", seen, place)


def warning(check: str, seen: str, place: str, mend: str) -> Finding:
    """It works, and not in every case, or with a risk that somebody should have chosen."""
    return Finding(check, "warning", seen, place, mend)


def wrong(check: str, seen: str, place: str, mend: str) -> Finding:
    """Logins, relaying or mail do not work as they should, or a stranger may relay."""
    return Finding(check, "wrong", seen, place, mend)


def unknown(check: str, why: str, place: str, mend: str) -> Finding:
    """It is there, and could not be looked at: as bad as a fault, for it may be one. `why`, and how to look at it."""
    return Finding(check, "unknown", why, place, AS_ROOT if is_for_root(why) else mend)


def not_looked_at(check: str, why: str, place: str = "", mend: str = "") -> Finding:
    """There is nothing of this to look at, or it is not for this user to look at, which is no fault."""
    if is_for_root(why):
        return unknown(check, why, place, mend)
    return Finding(check, "not looked at", why, place, mend)


def where(value: Value) -> str:
    """The place of a setting; "" for one that nobody has set."""
    return "" if value.place == "default" else value.place
