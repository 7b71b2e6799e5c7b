"""Where the login table's Redis is: `redis_url`, checked when the settings are read, not at the first connection.

redis-py lets much pass that was not meant (`redis://host/abc` is database 0), so what is accepted is spelled out:

    redis://HOST[:PORT][/DB]                            TCP; an IPv6 address in brackets
    rediss://HOST[:PORT][/DB]                           the same over TLS
    unix:///PATH[?db=DB]                                a unix socket
    redis+sentinel://HOST[:PORT][,HOST...]/NAME[/DB]    the master that these Sentinels call NAME

No user and no password stand in the URL: a URL ends up in logs and listings. They have settings of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^\s/:@?\[\],]+)(?::[0-9]{1,5})?"
_TCP = re.compile(rf"redis(?P<tls>s?)://(?P<hosts>{_HOST})(?:/(?P<db>[0-9]{{1,5}})?)?")
_UNIX = re.compile(r"unix://(?P<path>/[^\s?]+)(?:\?db=(?P<db>[0-9]{1,5}))?")
_SENTINEL = re.compile(
    rf"redis\+sentinel://(?P<hosts>{_HOST}(?:,{_HOST})*)/(?P<master>[A-Za-z][\w.-]*)(?:/(?P<db>[0-9]{{1,5}}))?",
    re.ASCII,
)

EXPECTED = "redis[s]://HOST[:PORT][/DB], unix:///PATH[?db=DB] or redis+sentinel://HOST[:PORT][,HOST...]/NAME[/DB]"

Place = tuple[str, int]
"""A host and a port."""


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A checked `redis_url`: a unix socket `path`, a server (`host`, `port`), or Sentinels that know a `master`."""

    host: str = ""
    port: int = 0
    path: str = ""
    db: int = 0
    tls: bool = False
    master: str = ""
    sentinels: tuple[Place, ...] = ()

    @classmethod
    def parse(cls, text: str) -> RedisUrl:
        """Raises ValueError with what was expected."""
        if "@" in text and not text.startswith("unix:"):
            raise ValueError("a user and password do not belong into the URL: use redis_user and redis_password_file")
        if match := _UNIX.fullmatch(text):
            return cls(path=match["path"], db=int(match["db"] or 0))
        if match := _TCP.fullmatch(text):
            host, port = _place(match["hosts"], 6379)
            return cls(host=host, port=port, db=int(match["db"] or 0), tls=bool(match["tls"]))
        if match := _SENTINEL.fullmatch(text):
            sentinels = tuple(_place(each, 26379) for each in match["hosts"].split(","))
            return cls(master=match["master"], sentinels=sentinels, db=int(match["db"] or 0))
        raise ValueError(f"expected {EXPECTED}")

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        if self.master:
            return f"redis+sentinel://{','.join(map(_written, self.sentinels))}/{self.master}/{self.db}"
        return f"redis{'s' if self.tls else ''}://{_written((self.host, self.port))}/{self.db}"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files for `rediss://`, in PEM: whom to trust (empty: the system's authorities), and who we are, if asked."""

    ca: str = ""
    certificate: str = ""
    key: str = ""


def _place(text: str, default_port: int) -> Place:
    host, _, port = text.removeprefix("[").partition("]" if text.startswith("[") else ":")
    number = int(port.removeprefix(":") or default_port)
    if not 0 < number < 65536:
        raise ValueError(f"{text}: a port is from 1 to 65535")
    return host, number


def _written(place: Place) -> str:
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
