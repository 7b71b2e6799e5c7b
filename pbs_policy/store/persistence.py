"""What Redis forgets where it is killed, from what INFO says of its persistence.

A forgotten login costs a user a login. A forgotten deny lets somebody relay again, and nobody is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pbs_policy.duration import format_duration
from pbs_policy.store.errors import StoreRefused

if TYPE_CHECKING:
    from pbs_policy.store.connect import RedisClient

APPEND = "redis-cli CONFIG SET appendonly yes, then CONFIG REWRITE"
"""With which Redis forgets a second at most. In this order: a Redis 7.0 that is restarted with the line new in its
redis.conf begins empty."""


def read_info(redis: RedisClient, section: str) -> dict[str, str]:
    """What INFO says: lines `name:value`, and headings. Raises StoreUnavailable."""
    (reply,) = redis.ask([(b"INFO", section.encode())])
    lines = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def what_a_crash_forgets(info: Mapping[str, str], now: float) -> str:
    """In words; "" where Redis writes everything down at once, or does not say. `now` is Unix time."""
    if info.get("aof_enabled") != "0":
        return ""
    saved = info.get("rdb_last_save_time", "")
    since = f" {format_duration(now - int(saved))} ago" if saved.isdecimal() else ""
    return f"Redis keeps no append-only file: if it is killed, it forgets what is newer than its last save{since}"


def warn_of_crash(redis: RedisClient, now: float) -> str:
    """The same, asked of Redis; "" where this user may not ask."""
    try:
        return what_a_crash_forgets(read_info(redis, "persistence"), now)
    except StoreRefused:
        return ""
