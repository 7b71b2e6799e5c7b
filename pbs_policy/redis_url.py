"""Where the login table's Redis is: `redis_url`, checked when the settings are read, not at the first connection.

redis-py lets much pass that was not meant (`redis://host/abc` is database 0), so what is accepted is spelled out:

    redis://HOST[:PORT][/DB]        TCP; an IPv6 address in brackets
    unix:///PATH[?db=DB]            a unix socket

No user and no password stand in the URL: a URL ends up in logs and listings. They have settings of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TCP = re.compile(r"redis://(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s/:@?\[\]]+))(?::(?P<port>\d{1,5}))?(?:/(?P<db>\d{1,5}))?/?")
_UNIX = re.compile(r"unix://(?P<path>/[^\s?]+)(?:\?db=(?P<db>\d{1,5}))?")

EXPECTED = "redis://HOST[:PORT][/DB] or unix:///PATH[?db=DB]"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A checked `redis_url`: either `path` (a unix socket) or `host` and `port` (TCP), and the database number."""

    host: str = ""
    port: int = 0
    path: str = ""
    db: int = 0

    @classmethod
    def parse(cls, text: str) -> RedisUrl:
        """Raises ValueError with what was expected."""
        if match := _UNIX.fullmatch(text):
            return cls(path=match["path"], db=int(match["db"] or 0))
        match = _TCP.fullmatch(text)
        if match and 0 < int(match["port"] or 6379) < 65536:
            return cls(host=match["v6"] or match["host"], port=int(match["port"] or 6379), db=int(match["db"] or 0))
        if "@" in text:
            raise ValueError("a user and password do not belong into the URL: use redis_user and redis_password_file")
        raise ValueError(f"expected {EXPECTED}")

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis://{host}:{self.port}/{self.db}"
