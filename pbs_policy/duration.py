"""Times as people write them: `90`, `30m`, `8h`, `90d`, `1w`. A number alone is seconds."""

from __future__ import annotations

import re
import time
from functools import lru_cache

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(?P<number>\d{1,9})(?P<unit>[smhdw]?)", re.ASCII)

LONGEST = 5 * 366 * 86_400
"""Seconds. A permission is for a limited time: five years is the life of a device, and Redis counts that far."""

EXPECTED = "a time from 1s to 1830d such as 90s, 30m, 8h, 90d"


def parse_duration(text: str) -> int:
    """Seconds. Raises ValueError, saying what was expected."""
    match = _DURATION.fullmatch(text)
    seconds = int(match["number"]) * _UNITS[match["unit"] or "s"] if match else 0
    if not 0 < seconds <= LONGEST:
        raise ValueError(f"expected {EXPECTED}")
    return seconds


def format_duration(seconds: float) -> str:
    """The two largest units that say it: `1h 30m`, `45s`, `12d 3h`."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number or (unit == "s" and not parts):
            parts.append(f"{number}{unit}")
    return " ".join(parts[:2])


def ago_at(at: float, now: float) -> str:
    """How long ago `at` was, and when: `3m ago, 10:02`."""
    return f"{format_duration(now - at)} ago, {_clock(at, now)}"


def left_until(at: float, now: float) -> str:
    """How long it is until `at`, and when that is: `27m, 10:32`."""
    return f"{format_duration(at - now)}, {_clock(at, now)}"


def _clock(at: float, now: float) -> str:
    """A time in the local time zone, as the mail log has it: the clock's within a day, else the day."""
    within_a_day, within_months = abs(now - at) < 86_400, abs(now - at) < 180 * 86_400
    return _written(int(at) // 60, "%H:%M" if within_a_day else "%d %b" if within_months else "%Y-%m-%d")


@lru_cache(4096)
def _written(minute: int, form: str) -> str:
    return time.strftime(form, time.localtime(minute * 60))


def write_duration(seconds: int) -> str:
    """The time as `parse_duration` reads it, in the largest unit that says it exactly: `90m`."""
    unit = max((unit for unit, size in _UNITS.items() if seconds % size == 0), key=_UNITS.__getitem__)
    return f"{seconds // _UNITS[unit]}{unit}"
