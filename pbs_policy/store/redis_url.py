"""Where the login table's Redis is: `redis_url`, checked when the settings are read, not at the first connection.

redis-py lets much pass that was not meant (`redis://host/abc` is database 0), so what is accepted is spelled out:

    redis://HOST[:PORT][/DB]                            TCP; an IPv6 address in brackets
    unix:///PATH[?db=DB]                                a unix socket
    redis+sentinel://HOST[:PORT][,HOST...]/NAME[/DB]    the master that these Sentinels call NAME
    redis+cluster://HOST[:PORT][,HOST...]               the Cluster of which these are nodes

`rediss` in place of `redis` is the same over TLS, with Sentinels and the master alike. `valkey` and `valkeys` are
other spellings of both, and are shown as those.

No user and no password stand in the URL: a URL ends up in logs and listings. They have settings of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^\s/:@?\[\],]+)(?::[0-9]{1,5})?"
_HOSTS = rf"(?P<hosts>{_HOST}(?:,{_HOST})*)"
_SCHEME = r"(?:redis|valkey)(?P<tls>s?)"
_TCP = re.compile(rf"{_SCHEME}://(?P<hosts>{_HOST})(?:/(?P<db>[0-9]{{1,5}})?)?")
_SEVERAL = re.compile(rf"{_SCHEME}://{_HOST}(?:,{_HOST})+(?:/.*)?")
_UNIX = re.compile(r"unix://(?P<path>/[^\s?]+)(?:\?db=(?P<db>[0-9]{1,5}))?")
_SENTINEL = re.compile(
    rf"{_SCHEME}\+sentinel://{_HOSTS}/(?P<master>[A-Za-z][\w.-]*)(?:/(?P<db>[0-9]{{1,5}}))?", re.ASCII
)
_CLUSTER = re.compile(rf"{_SCHEME}\+cluster://{_HOSTS}/?")

EXPECTED = (
    "redis[s]://HOST[:PORT][/DB], unix:///PATH[?db=DB], "
    "redis[s]+sentinel://HOST[:PORT][,HOST...]/NAME[/DB] or redis[s]+cluster://HOST[:PORT][,HOST...]"
)

Place = tuple[str, int]
"""A host and a port."""

_PORT = 6379
_SENTINEL_PORT = 26379


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A checked `redis_url`: a unix socket `path`, or `places`: a server, Sentinels that know a `master`, or nodes of
    a `cluster`."""

    places: tuple[Place, ...] = ()
    path: str = ""
    db: int = 0
    tls: bool = False
    master: str = ""
    cluster: bool = False

    @classmethod
    def parse(cls, text: str) -> RedisUrl:
        """Raises ValueError with what was expected."""
        if "@" in text and not text.startswith("unix:"):
            raise ValueError("a user and password do not belong into the URL: use redis_user and redis_password_file")
        if match := _UNIX.fullmatch(text):
            return cls(path=match["path"], db=int(match["db"] or 0))
        if match := _TCP.fullmatch(text):
            return cls(_places(match["hosts"], _PORT), db=int(match["db"] or 0), tls=bool(match["tls"]))
        if match := _SENTINEL.fullmatch(text):
            places = _places(match["hosts"], _SENTINEL_PORT)
            return cls(places, db=int(match["db"] or 0), tls=bool(match["tls"]), master=match["master"])
        if match := _CLUSTER.fullmatch(text):
            return cls(_places(match["hosts"], _PORT), tls=bool(match["tls"]), cluster=True)
        if _SEVERAL.fullmatch(text):
            kinds = "redis+sentinel://... or redis+cluster://..."
            raise ValueError(f"of several servers only Sentinel or a Cluster knows the master: expected {kinds}")
        raise ValueError(f"expected {EXPECTED}")

    @property
    def names_master(self) -> bool:
        """Whether Sentinels or the nodes of a Cluster are to be asked for the server."""
        return bool(self.master) or self.cluster

    @property
    def place(self) -> Place:
        """The one server there is, where the URL names it; of a unix socket only `path` counts."""
        return self.places[0] if self.places else ("", 0)

    @property
    def server(self) -> Place | None:
        """The one server there is to be asked by TCP; None where that is a unix socket, or has to be found."""
        return None if self.path or self.names_master else self.place

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        kind = "+sentinel" if self.master else "+cluster" if self.cluster else ""
        path = f"/{self.master}/{self.db}" if self.master else "" if self.cluster else f"/{self.db}"
        return f"redis{'s' if self.tls else ''}{kind}://{','.join(map(written, self.places))}{path}"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files for `rediss://`, in PEM: whom to trust (empty: the system's authorities), and who we are, if asked."""

    ca: str = ""
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Login:
    """Whom to log in as, to Redis or to a Sentinel: an empty `user` is the default user, no password no login."""

    user: str = ""
    password: str = field(default="", repr=False)


NOBODY = Login()


def written(place: Place) -> str:
    """A place as it stands in a URL."""
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def in_one_slot(key_prefix: str) -> bool:
    """Whether all keys with this prefix are in one hash slot of a Cluster: what decides is the text between the first
    "{" and the first "}" behind it, if there is any (Redis' Cluster specification, "Hash tags")."""
    return bool(re.match(r"[^{]*\{[^}]+\}", key_prefix))


def _places(text: str, default_port: int) -> tuple[Place, ...]:
    return tuple(_place(each, default_port) for each in text.split(","))


def _place(text: str, default_port: int) -> Place:
    host, _, port = text.removeprefix("[").partition("]" if text.startswith("[") else ":")
    number = int(port.removeprefix(":") or default_port)
    if not 0 < number < 65536:
        raise ValueError(f"{text}: a port is from 1 to 65535")
    return host, number
