"""Who Dovecot takes a client for: mechanisms, the password databases, and what they are asked.

2.3 has `passdb { driver, args, default_fields, override_fields }` with most of it in files that `args` names; 2.4
has `passdb NAME { ..., fields { } }`. Both are made the same few values. What a database answers is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pbs_policy.dovecot.doveconf import ConfigLine, DovecotConfig, parse_lines, variables
from pbs_policy.host import Host, NotLookedAt

_QUERIES = ("password_query", "query", "pass_filter", "filter", "auth_bind_userdn", "bind_userdn")
_ANSWERS = ("password_query", "query", "pass_attrs")
PROXY = ("proxy", "proxy_maybe")
"""The fields that have a user's login proxied to another host."""

_CONTINUE = ("continue", "continue-fail")  # of result_success: another database decides


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
        """Whether it lets in only those whom something else has vouched for, here."""
        mechanisms = (self.value("mechanisms") or self.value("mechanisms_filter")).lower().split()
        return (
            {"allow_nets", "allow_real_nets"} & set(self.fields) != set()
            or (mechanisms != [] and not {"plain", "login"} & set(mechanisms))
            or self.value("skip") == "unauthenticated"
            or self.value("result_success") in _CONTINUE
            or self.value("deny") == "yes"
        )


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
            yield from ((word.partition("=")[0], line) for word in line.value.split())


def lets_everybody_in(config: DovecotConfig, databases: list[Passdb]) -> Passdb | None:
    """A database by which anybody is whoever they say, without a password."""
    if config.value((), "auth_ssl_require_client_cert") == "yes":
        return None
    return next((each for each in databases if "nopassword" in each.fields and not each.is_limited), None)


class Unchecked(NamedTuple):
    """Where a success that Dovecot reports proves no password, or no login: the field that says so of every user of a
    database (`always`), or that the database may add."""

    passdb: Passdb
    field: str
    place: str
    always: bool


def unchecked(databases: list[Passdb], host: Host) -> Iterator[Unchecked]:
    """What has Dovecot report a success without having checked the password (`nopassword`), or for a login that goes
    on elsewhere (`proxy`) or not at all (`nologin`). Raises NotLookedAt where a database's file cannot be read."""
    for each in databases:
        for name in ("nopassword", *PROXY, "nologin"):
            if name in each.fields:
                if name != "nopassword" or not each.is_vouched_for:
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
