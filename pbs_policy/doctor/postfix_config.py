"""Postfix's configuration as doctor sees it: effective values from postconf, places from main.cf and master.cf.

postconf expands `$name` and `${name?...}`, and knows the defaults, so the values are its own (`-x`, `-xP`, `-M`). It
gives no lines: those are found in the two files, where the last assignment of a name is the one that counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pbs_policy.host import Host, NotLookedAt
from pbs_policy.postfix.postconf_output import (
    is_submission,
    parse_assignments,
    parse_entries,
    parse_overrides,
    parse_pairs,
)

# What takes the next word as its argument (postconf(5)).
_WITH_ARGUMENT = re.compile(r"check_(?!relay_domains$)\w+|(?:reject|permit)_(?:rbl|rhsbl|dnswl|rhswl)_\w+|sleep")


class Restriction(NamedTuple):
    """One restriction of a list: `check_policy_service` and its argument, braces taken off."""

    name: str
    argument: str = ""


class PolicyCheck(NamedTuple):
    """What `check_policy_service` was given: the endpoint and its attributes. `fault` says why smtpd rejects it."""

    endpoint: str
    attributes: dict[str, str]
    fault: str = ""


@dataclass(frozen=True)
class MasterService:
    """One entry of master.cf that runs smtpd or postscreen: `overrides` are its -o options, expanded."""

    name: str
    kind: str
    chrooted: bool
    overrides: dict[str, str]
    place: str
    override_places: dict[str, str] = field(default_factory=dict)

    @property
    def is_submission(self) -> bool:
        """Whether clients are to authenticate here (RFC 6409, RFC 8314)."""
        return is_submission(self.name)

    @property
    def is_port_25(self) -> bool:
        """Whether the world's mail comes in here, directly or through postscreen."""
        return self.name.rpartition(":")[2] in ("smtp", "25") or (self.kind == "pass" and self.name == "smtpd")


@dataclass(frozen=True)
class PostfixConfig:
    """Effective parameters, their places, and the entries of master.cf that run smtpd, and postscreen."""

    main_cf: str
    values: dict[str, str]
    places: dict[str, str]
    services: tuple[MasterService, ...]
    postscreens: tuple[MasterService, ...] = ()

    def value(self, name: str, service: MasterService | None = None) -> str:
        """The effective value of a parameter, for one entry of master.cf or for all."""
        if service and name in service.overrides:
            return service.overrides[name]
        return self.values.get(name, "")

    def place(self, name: str, service: MasterService | None = None) -> str:
        """Where the parameter is set; main.cf alone where it has its default."""
        if service and name in service.overrides:
            return service.override_places.get(name, service.place)
        return self.places.get(name, self.main_cf)

    def restrictions(self, name: str, service: MasterService | None = None) -> list[Restriction]:
        """The restrictions of a list, with those of restriction classes in place of the class."""
        return list(self._flat(self.value(name, service), service, frozenset()))

    def _flat(self, text: str, service: MasterService | None, inside: frozenset[str]) -> Iterator[Restriction]:
        classes = frozenset(words(self.value("smtpd_restriction_classes", service))) - inside
        for restriction in parse_restrictions(text):
            if restriction.name in classes:
                yield from self._flat(self.value(restriction.name, service), service, inside | {restriction.name})
            else:
                yield restriction


def read_postfix(host: Host, directory: str = "") -> PostfixConfig:
    """Ask postconf about the configuration in `directory` (the default: its own).

    Raises NotLookedAt where postconf is missing or refuses, with what it says.
    """
    where = ("-c", directory) if directory else ()
    values = dict(parse_pairs(_ask(host, *where, "-x")))
    directory = directory or values.get("config_directory", "/etc/postfix")
    overrides = parse_overrides(_ask(host, *where, "-xP"))
    jailed = values.get("compatibility_level", "0") == "0"  # what "-" means in the chroot column
    master_cf = f"{directory}/master.cf"
    entries = _master_lines(host, master_cf)
    said = _ask(host, *where, "-M")

    def running(command: str) -> Iterator[MasterService]:
        for columns in parse_entries(said, command):
            key = (columns[0], columns[1])
            place, option_places = entries.get(key, (master_cf, {}))
            chrooted = columns[4] == "y" or (columns[4] == "-" and jailed)
            yield MasterService(*key, chrooted, overrides.get(key, {}), place, option_places)

    main_cf = f"{directory}/main.cf"
    places = _main_places(host, main_cf)
    return PostfixConfig(main_cf, values, places, tuple(running("smtpd")), tuple(running("postscreen")))


def parse_restrictions(text: str) -> list[Restriction]:
    """The restrictions of a list as it is written: commas and blanks separate, braces group."""
    items = iter(words(text))
    return [
        Restriction(item, _without_braces(next(items, "")) if _WITH_ARGUMENT.fullmatch(item) else "")
        for item in items
    ]


def parse_policy_check(argument: str) -> PolicyCheck:
    """The argument of check_policy_service: an endpoint, or an endpoint with attributes (SMTPD_POLICY_README)."""
    endpoint, *rest = words(argument) or [""]
    attributes: dict[str, str] = {}
    for item in rest:
        name, equals, value = _without_braces(item).partition("=")
        if not equals:
            return PolicyCheck(endpoint, attributes, f"no = in {item!r} (braces around `name = value` with blanks?)")
        attributes[name.strip()] = value.strip()
    return PolicyCheck(endpoint, attributes)


def words(text: str) -> list[str]:
    """Split at commas and blanks, except inside braces, which stay on."""
    found: list[str] = []
    word, depth = "", 0
    for letter in text:
        depth = max(0, depth + (letter == "{") - (letter == "}"))
        if not depth and (letter in ", \t\r\n"):
            found += [word] if word else []
            word = ""
        else:
            word += letter
    return found + ([word] if word else [])


def _without_braces(text: str) -> str:
    return text[1:-1].strip() if text.startswith("{") and text.endswith("}") else text


def _ask(host: Host, *arguments: str) -> str:
    answer = host.run("postconf", *arguments)
    if answer.status:
        said = (
            [line for line in answer.err.splitlines() if "fatal" in line] or answer.err.splitlines() or ["no reason"]
        )
        raise NotLookedAt(said[0].removeprefix("postconf: "))
    return answer.out


def _main_places(host: Host, path: str) -> dict[str, str]:
    try:
        return {name: f"{path}:{number}" for name, number in parse_assignments(host.read(path))}
    except NotLookedAt:
        return {}  # postconf has read it, as somebody else or a moment ago: the findings then name the file alone


def _master_lines(host: Host, path: str) -> dict[tuple[str, str], tuple[str, dict[str, str]]]:
    """For each entry of master.cf (name, type): its place, and the places of its -o options."""
    try:
        lines = host.read(path).decode("utf-8", "replace").splitlines()
    except NotLookedAt:
        return {}
    entries: dict[tuple[str, str], tuple[str, dict[str, str]]] = {}
    options: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        columns = line.split()
        if not columns or columns[0].startswith("#"):
            continue
        place = f"{path}:{number}"
        if not line[0].isspace() and len(columns) > 1:
            options = {}
            entries[columns[0], columns[1]] = (place, options)
        for name in re.findall(r"-o\s*\{?\s*([^\s=]+)\s*=", line):
            options[name] = place
    return entries
