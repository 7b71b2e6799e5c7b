"""Dovecot's reports of logins as they are configured (its auth policy protocol): 2.3's `auth_policy_...` settings and
2.4's block `auth_policy { ... }` are made the same few values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from pbs_policy.dovecot.doveconf import ConfigLine, DovecotConfig

_HEAD = "auth_policy_"
_ANY = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on
_HASH = "hashed_password"
_DEFAULTS = {"pwhash": f"%{{{_HASH}}}"}  # of Dovecot's own, which 2.4 adds ours to


@dataclass(frozen=True)
class Reports:
    """Where Dovecot reports each authentication to, and what it says."""

    url: str
    lines: dict[str, ConfigLine]
    attributes: dict[str, str]
    place: str
    attributes_place: str

    def place_of(self, name: str) -> str:
        """Where a setting is written, else where the URL is."""
        return self.lines[name].place if name in self.lines else self.place

    def is_on(self, name: str) -> bool:
        """Whether Dovecot does this: `check_before_auth`, `check_after_auth`, `report_after_auth`, by default all."""
        return self.value(name) != "no"

    def value(self, name: str) -> str:
        """A setting as it is written, "" for one that is not."""
        return self.lines[name].value if name in self.lines else ""

    @property
    def server(self) -> str:
        """The URL without a password that may be in it, or a path."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}/"

    @property
    def tells_hash(self) -> bool:
        """Whether a hash of the password is among the attributes."""
        return any(_HASH in each for each in self.attributes.values())

    def is_to(self, places: Iterable[tuple[str, int]]) -> bool:
        """Whether it is to one of these, a host and a port, by its address or a name of this host."""
        try:
            parts = urlsplit(self.url)
            port = parts.port or 80
        except ValueError:  # no URL
            return False
        host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
        return any(its_port == port and its_host in (host, *_ANY) for its_host, its_port in places)


def report_url(host: str, port: int) -> str:
    """Where Dovecot, on this host, reaches a recorder that listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def read_reports(config: DovecotConfig) -> Reports | None:
    """How Dovecot reports; None where it does not."""
    lines, attributes = {}, {}
    for line in config.effective:
        if not line.name or line.blocks[:1] not in ((), ("auth_policy",), (f"{_HEAD}request_attributes",)):
            continue
        if line.blocks and line.blocks[-1].endswith("request_attributes"):
            attributes[line.name] = line.value
        elif line.blocks or line.name.startswith(_HEAD):
            name = line.name.removeprefix(_HEAD)
            lines[name] = line._replace(place=_place(config, name))
    url = lines.pop("server_url", None)
    if url is None or not url.value:
        return None
    place = _place(config, "request_attributes") if attributes or "request_attributes" in lines else url.place
    if "request_attributes" in lines:  # of 2.3, one line instead of its own
        attributes = dict(each.partition("=")[::2] for each in lines["request_attributes"].value.split())
    else:
        attributes = _DEFAULTS | attributes
    return Reports(url.value, lines, attributes, url.place, place)


def _place(config: DovecotConfig, name: str) -> str:
    """2.4's doveconf shows all of it in a block, wherever and however it was written; the attributes are one, too."""
    ways = [((), _HEAD + name), (("auth_policy",), name), ((_HEAD + name,), ""), (("auth_policy", name), "")]
    written = [each for each in config.written if (each.blocks, each.name) in ways]
    return written[-1].place if written else config.file
