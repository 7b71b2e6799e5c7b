"""Who Dovecot takes a client for: mechanisms, the password databases, and what they are asked.

2.3 has `passdb { driver, args, default_fields, override_fields }` with most of it in files that `args` names; 2.4
has `passdb NAME { ..., fields { } }`. Both are made the same few values. What a database answers is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import NamedTuple

from pbs_policy.address import WIDEST
from pbs_policy.dovecot.doveconf import ConfigLine, DovecotConfig, parse_lines, variables
from pbs_policy.host import Host, NotLookedAt

_QUERIES = ("password_query", "query", "pass_filter", "filter", "auth_bind_userdn", "bind_userdn")
_STATIC_PASSWORD = ("password", "static_password", "passdb_static_password")  # of 2.4
_ANSWERS = ("password_query", "query", "pass_attrs")
PROXY = ("proxy", "proxy_maybe")
"""The fields that have a user's login proxied to another host."""

EMPTY = "an empty password"
"""What a static database has that takes an empty password of everybody: no better than `nopassword`."""

ONE_FOR_ALL = "one password for everybody"
"""What a static database has that takes the same password of everybody."""

_VOUCHING = {"external", "gssapi", "gss-spnego", "none"}
"""Mechanisms that find out by themselves who the client is, from a certificate that TLS has checked or from Kerberos;
`none` are lookups in which nobody logs in. All others compare with what the database answers (cram-md5), or leave it
to the database (oauthbearer, xoauth2): with `nopassword` anybody is whoever they say."""


@dataclass
class Passdb:
    """One password database: its driver, the lines of its block, the fields it adds, and the file it reads."""

    driver: str
    lines: list[ConfigLine] = field(default_factory=list)
    fields: dict[str, ConfigLine] = field(default_factory=dict)
    file: str = ""

    def value(self, name: str) -> str:
        """A setting of the block."""
        return next((each.value for each in self.lines[::-1] if each.name == name), "")

    @property
    def proxies(self) -> ConfigLine | None:
        """What has all of its users proxied to another host."""
        return next((self.fields[name] for name in PROXY if name in self.fields), None)

    @property
    def is_limited(self) -> bool:
        """Whether it lets in nobody by itself, or only those whom something else has vouched for."""
        return self.proxies is not None or self.is_vouched_for

    @property
    def is_vouched_for(self) -> bool:
        """Whether it lets in only those whom something else has vouched for, here.

        With `result_success = continue` (or continue-ok) Dovecot takes the password for verified, and the next
        database does not look at it; with `continue-fail` it has to.
        """
        networks = [self.fields[name].value for name in ("allow_nets", "allow_real_nets") if name in self.fields]
        mechanisms = (self.value("mechanisms") or self.value("mechanisms_filter")).lower().split()
        in_a_block = (each for each in self.lines if each.blocks[1:] == ("mechanisms_filter",))
        mechanisms += [each.name.lower() for each in in_a_block if each.value == "yes"]
        return (
            any(map(_is_of_some, networks))
            or (mechanisms != [] and set(mechanisms) <= _VOUCHING)
            or self.value("skip") == "unauthenticated"
            or self.value("result_success") == "continue-fail"
            or self.value("deny") == "yes"
        )

    @property
    def asks_for_nothing(self) -> ConfigLine | None:
        """What has it take anybody for whoever they say: its name is `nopassword`, or EMPTY."""
        password = self._static_password
        if password and re.fullmatch(r"(\{[^}]*\})?", password.value):
            return self.fields.get("nopassword") or password._replace(name=EMPTY)
        return self.fields.get("nopassword")

    @property
    def one_for_all(self) -> ConfigLine | None:
        """The password of everybody who is no master user: that may be meant, so it has to be confirmed."""
        if self.asks_for_nothing or self.is_limited or self.value("master") == "yes":
            return None
        return self._static_password

    @property
    def _static_password(self) -> ConfigLine | None:
        if self.driver != "static":
            return None
        set_by_itself = (each for each in self.lines if each.name in _STATIC_PASSWORD and len(each.blocks) == 1)
        return self.fields.get("password") or next(set_by_itself, None)


def _is_of_some(networks: str) -> bool:
    """Whether a list of networks is known to leave strangers out. `local` are clients without an address."""
    try:
        found = [ip_network(each, strict=False) for each in re.split(r"[,\s]+", networks) if each != "local"]
    except ValueError:
        return False
    return all(each.prefixlen > WIDEST[each.version] for each in found)


def mechanism(config: DovecotConfig, name: str) -> ConfigLine | None:
    """The line that allows an authentication mechanism, if one does."""
    for line in config.effective:
        words = line.value.lower().split() if line.name == "auth_mechanisms" else []
        if line.blocks[-1:] == ("auth_mechanisms",) and line.value == "yes":
            words = [line.name.lower()]
        if name in words:
            return line._replace(place=config.place_of(line))
    return None


def passdbs(config: DovecotConfig) -> list[Passdb]:
    """The password databases in the order in which they are asked."""
    found: list[Passdb] = []
    for line in config.effective:
        head = line.blocks[0] if line.blocks else ""
        if head.partition(" ")[0] != "passdb":
            continue
        if len(line.blocks) == 1 and not line.name:
            found.append(Passdb(head.partition(" ")[2]))
        elif line.name:
            found[-1].lines.append(line._replace(place=config.place_of(line)))
    for each in found:
        each.driver = each.value("driver") or each.driver
        each.fields = dict(_fields(each))
        words = [*each.value("args").split(), each.value("passwd_file_path"), each.value("lua_file")]
        paths = [word.removeprefix("file=") for word in words]
        each.file = next((path for path in paths if path.startswith("/") and not variables(path)), "")
    return found


def _fields(passdb: Passdb) -> Iterator[tuple[str, ConfigLine]]:
    for line in passdb.lines:
        if line.blocks[1:] == ("fields",):
            yield line.name, line
        elif line.name in ("default_fields", "override_fields") or (line.name, passdb.driver) == ("args", "static"):
            for word in line.value.split():
                name, _, value = word.partition("=")
                yield name, line._replace(name=name, value=value)


class Unchecked(NamedTuple):
    """Where a success that Dovecot reports proves no password, or no login: the field that says so of every user of a
    database (`always`), or that the database may add."""

    passdb: Passdb
    field: str
    place: str
    always: bool

    def __str__(self) -> str:
        has = "has" if self.always or self.field == ONE_FOR_ALL else "may answer"
        return f"{self.place}: passdb {self.passdb.driver} {has} {self.field}"


def lets_everybody_in(config: DovecotConfig, databases: list[Passdb]) -> Unchecked | None:
    """A database by which anybody is whoever they say, without a password."""
    if config.value((), "auth_ssl_require_client_cert") == "yes":
        return None
    found = ((each, each.asks_for_nothing) for each in databases if not each.is_limited)
    return next((Unchecked(each, line.name, line.place, True) for each, line in found if line), None)


def one_for_all(databases: list[Passdb]) -> Iterator[Unchecked]:
    """Databases that take one password of everybody: whether few enough know it is not to be seen."""
    found = ((each, each.one_for_all) for each in databases)
    return (Unchecked(each, ONE_FOR_ALL, line.place, False) for each, line in found if line)


def unchecked(databases: list[Passdb], host: Host) -> Iterator[Unchecked]:
    """What has Dovecot report a success without having checked the password (`nopassword`), or for a login that goes
    on elsewhere (`proxy`) or not at all (`nologin`). Raises NotLookedAt where a database's file cannot be read."""
    yield from one_for_all(databases)
    for each in databases:
        line = each.asks_for_nothing
        if line and not each.is_vouched_for:
            yield Unchecked(each, line.name, line.place, True)
        for name in ("nopassword", *PROXY, "nologin"):
            if name in each.fields:
                if name != "nopassword":  # said above
                    yield Unchecked(each, name, each.fields[name].place, True)
            elif place := may_answer(each, name, host):
                yield Unchecked(each, name, place, False)


def may_answer(passdb: Passdb, name: str, host: Host) -> str:
    """Where it is written that this database may add a field; "" where that is not to be seen.

    Raises NotLookedAt where its own file cannot be read.
    """
    word = re.compile(rf"\b{name}\b")
    for line in passdb.lines:
        if line.name in _ANSWERS and word.search(line.value):
            return line.place
    for number, text in enumerate(_own_text(passdb, host).splitlines(), 1):
        # What is in front of the fields in a file of users may be anybody's name.
        fields = ":".join(text.split(":")[7:]) if passdb.driver == "passwd-file" else text
        if word.search(fields) and not text.lstrip().startswith(("#", "--")):
            return f"{passdb.file}:{number}"
    return ""


def domainless_lookup(passdb: Passdb, host: Host) -> ConfigLine | None:
    """What asks this database for a user without the domain, and takes the name as the client gave it.

    A database that answers who the user is (`user`, `domain`) corrects the name. Lookups in a userdb are not looked
    at: whoever is not in a passdb does not get that far. Raises NotLookedAt where its own file cannot be read.
    """
    if {"user", "username", "domain"} & set(passdb.fields):
        return None
    for line in passdb.lines:
        asked = re.search(r"\busername_format=(\S+)", line.value) if line.name == "args" else None
        if asked and _drops_domain(asked[1]):
            return line
        if line.name == "auth_username_format" and _drops_domain(line.value):
            return line
    lines = [*passdb.lines]
    if passdb.driver in ("sql", "ldap"):
        lines += parse_lines(_own_text(passdb, host), passdb.file)
    if any(each.name == "pass_attrs" and re.search(r"=\s*(?:user|domain)\b", each.value) for each in lines):
        return None
    return next((each for each in lines if each.name in _QUERIES and _asks_without_domain(each.value)), None)


def _asks_without_domain(query: str) -> bool:
    """Whether a query finds a user by the name alone, and does not answer with the right one. A filter is a condition
    without a SELECT."""
    *select, condition = re.split(r"(?i)\bwhere\b", query)
    columns = re.split(r"(?i)\bfrom\b", "".join(select[:1]))[0]
    answers = re.search(r"(?i)\b(?:user|domain)\b", columns) and not {"user", "domain"} & variables(columns)
    return not answers and _drops_domain(condition)


def keeps_domain(config: DovecotConfig) -> bool:
    """Whether a user's name keeps the domain that the client gave, as it does by default."""
    return not _drops_domain(config.value((), "auth_username_format"))


def _drops_domain(text: str) -> bool:
    names = variables(text)
    return "username" in names and not {"user", "domain"} & names


def _own_text(passdb: Passdb, host: Host) -> str:
    """What the file of a database says, "" without one: passwords may be in it, so it is searched and forgotten."""
    if not passdb.file:
        return ""
    try:
        return host.read(passdb.file).decode("utf-8", "replace")
    except NotLookedAt as error:
        if "Permission denied" in str(error):
            raise
        return ""  # not there: Dovecot will say so
