"""Postfix's configuration: effective values from postconf, places from main.cf and master.cf.

postconf expands `$name` and `${name?...}`, and knows the defaults, so the values are its own (`-x`, `-xP`, `-M`). It
gives no lines: those are found in the two files, where the last assignment of a name is the one that counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from pbs_policy.host import ConfigurationFault, Host, NotLookedAt
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.main_cf import logical_lines
from pbs_policy.postfix.restrictions import (
    CHECK,
    LISTS,
    RECIPIENT,
    RELAY,
    Restriction,
    is_at,
    parse_policy_check,
    parse_restrictions,
    words,
)

_SUBMISSION = ("submission", "submissions", "smtps", "465", "587")
_FAULT = re.compile(r"fatal: (?:open |file )?(?P<file>/[^\s,]+?)(?:[,:] line (?P<line>\d+))?: (?P<what>.*)")


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
        return self.name.rpartition(":")[2] in _SUBMISSION

    @property
    def is_port_25(self) -> bool:
        """Whether the world's mail comes in here, directly or through postscreen."""
        return self.name.rpartition(":")[2] in ("smtp", "25") or (self.kind == "pass" and self.name == "smtpd")

    @property
    def is_for_strangers(self) -> bool:
        """Whether clients of other hosts may come in here without authenticating. They may not at a loopback address,
        where a content filter returns mail, nor where a list of the entry's own refuses whomever it does not know."""
        closed = not self.is_port_25 and (self.is_closed or self._refuses(RELAY))
        return not (self.is_submission or self.is_loopback or closed)

    @property
    def is_closed(self) -> bool:
        """Whether a list of the entry's own, beside the relay list, refuses whomever it does not know: whoever the
        service permits is refused there, too."""
        return any(self._refuses(name) for name in LISTS if name != RELAY)

    def _refuses(self, name: str) -> bool:
        own = parse_restrictions(self.overrides.get(name, ""))
        return any(each.name == "reject" and each.refuses for each in own)

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this host come in here."""
        host = self.name.rpartition(":")[0].strip("[]")
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


@dataclass(frozen=True)
class PostfixConfig:
    """Effective parameters and their places, the entries of master.cf that run smtpd, and postscreen; what main.cf
    sets, as it is `written`, the `lines` that set it, and what postconf finds strange."""

    main_cf: str
    values: dict[str, str]
    lines: dict[str, list[int]]
    services: tuple[MasterService, ...]
    postscreens: tuple[MasterService, ...] = ()
    written: dict[str, str] = field(default_factory=dict)
    warnings: frozenset[str] = frozenset()

    def value(self, name: str, service: MasterService | None = None) -> str:
        """The effective value of a parameter, for one entry of master.cf or for all."""
        if service and name in service.overrides:
            return service.overrides[name]
        return self.values.get(name, "")

    @property
    def queue_directory(self) -> str:
        """Where smtpd runs, and what a relative path of a unix socket is below."""
        return self.value("queue_directory")

    def place(self, name: str, service: MasterService | None = None) -> str:
        """Where the parameter is set; main.cf alone where it has its default."""
        if service and name in service.overrides:
            return service.override_places.get(name, service.place)
        return f"{self.main_cf}:{self.lines[name][-1]}" if name in self.lines else self.main_cf

    def for_strangers(self) -> list[MasterService]:
        """The entries where strangers come in, those at port 25 first."""
        return sorted((each for each in self.services if each.is_for_strangers), key=lambda each: not each.is_port_25)

    def reachable(self) -> list[MasterService]:
        """The entries that other hosts can reach, also those for clients with SMTP AUTH."""
        inside = {"loopback-only", "localhost", "127.0.0.1", "[::1]", "::1"}
        return [
            each
            for each in self.services
            if each.kind in ("inet", "pass")
            and not each.is_loopback
            and (":" in each.name or not inside.issuperset(words(self.value("inet_interfaces", each) or "all")))
        ]

    def ways_in(self, listeners: Sequence[Listener]) -> list[MasterService | None]:
        """The entries where clients come in whom the service may permit; the main one where none asks the service."""
        asking = [
            each
            for each in self.services
            if not (each.is_submission or each.is_loopback)
            and (each.is_for_strangers or self.relay_list(each) in each.overrides)
            and self.find_ours(self.relay_list(each), each, listeners)
        ]
        return [*asking] or [self.main_service()]

    def main_service(self) -> MasterService | None:
        """The entry where relay attempts come in: port 25 if there is one, else the first that is not submission."""
        others = [each for each in self.services if not each.is_submission]
        return next(iter([*self.for_strangers(), *others]), None)

    def port_25(self) -> list[MasterService | None]:
        """The entries of port 25, each of which may have lists of its own; the main one where there is none."""
        return [each for each in self.for_strangers() if each.is_port_25] or [self.main_service()]

    def relay_list(self, service: MasterService | None = None) -> str:
        """The name of the list that decides who may relay: RECIPIENT where RELAY is empty, as before Postfix 2.10."""
        return RELAY if self.restrictions(RELAY, service) else RECIPIENT

    def restrictions(self, name: str, service: MasterService | None = None) -> list[Restriction]:
        """The restrictions of a list, with those of restriction classes in place of the class."""
        return list(self._flat(name, service, frozenset()))

    def reached(
        self, name: str, service: MasterService | None, listeners: Iterable[Listener]
    ) -> Iterator[Restriction]:
        """The restrictions of a list that may refuse a client whom the service permits. Our own check ends the list
        with its OK; so does `permit`, and what refuses everybody. `warn_if_reject` refuses nobody."""
        ours = self.find_ours(name, service, listeners)
        for at, restriction in enumerate(self.restrictions(name, service)):
            if at in ours or restriction.refuses or restriction.name == "permit":
                return
            if not restriction.is_warned:
                yield restriction

    def classes(self, service: MasterService | None = None) -> list[str]:
        """The names of the restriction classes."""
        return words(self.value("smtpd_restriction_classes", service))

    def _flat(self, name: str, service: MasterService | None, inside: frozenset[str]) -> Iterator[Restriction]:
        classes = frozenset(self.classes(service)) - inside
        for restriction in parse_restrictions(self.value(name, service)):
            if restriction.name in classes:
                for each in self._flat(restriction.name, service, inside | {restriction.name}):
                    yield each._replace(is_warned=each.is_warned or restriction.is_warned)
            else:
                yield restriction._replace(stands_in=name)

    def find_ours(self, name: str, service: MasterService | None, listeners: Iterable[Listener]) -> list[int]:
        """Where in a list the policy service at these listeners is asked: the numbers of the restrictions."""
        asked = [
            (at, parse_policy_check(each.argument).endpoint)
            for at, each in enumerate(self.restrictions(name, service))
            if each.name == CHECK
        ]
        queue = self.queue_directory
        return [at for at, endpoint in asked if any(is_at(endpoint, each, queue) for each in listeners)]


def read_postfix(host: Host, directory: str = "") -> PostfixConfig:
    """Ask postconf about the configuration in `directory` (the default: its own).

    Raises NotLookedAt where postconf is missing or may not read it, ConfigurationFault where it is wrong.
    """
    where = ("-c", directory) if directory else ()
    values = dict(parse_pairs(_ask(host, *where, "-x")[0]))
    directory = directory or values.get("config_directory", "/etc/postfix")
    main_cf, master_cf = f"{directory}/main.cf", f"{directory}/master.cf"
    written, warnings = _ask(host, *where, "-n")
    overrides: dict[tuple[str, str], dict[str, str]] = {}
    for option, value in parse_pairs(_ask(host, *where, "-xP")[0]):
        name, kind, parameter = option.rsplit("/", 2)
        overrides.setdefault((name, kind), {})[parameter] = value
    jailed = values.get("compatibility_level", "0") == "0"  # what "-" means in the chroot column
    places = _master_places(host, master_cf)
    running: dict[str, list[MasterService]] = {"smtpd": [], "postscreen": []}
    for line in _ask(host, *where, "-M")[0].splitlines():
        # name, type, private, unprivileged, chroot, wakeup, maxproc, command, arguments: master(5)
        columns = line.split(None, 8)
        command = columns[7].rpartition("/")[2] if len(columns) > 7 else ""
        if command in running:
            key = (columns[0], columns[1])
            place, option_places = places.get(key, (master_cf, {}))
            chrooted = columns[4] == "y" or (columns[4] == "-" and jailed)
            entry = MasterService(*key, chrooted, overrides.get(key, {}), place, option_places)
            running[command].append(entry)
    smtpds, postscreens = map(tuple, running.values())
    lines = _main_lines(host, main_cf)
    found = frozenset(warnings.splitlines())
    return PostfixConfig(main_cf, values, lines, smtpds, postscreens, dict(parse_pairs(written)), found)


def parse_pairs(text: str) -> Iterator[tuple[str, str]]:
    """Name and value of each line `name = value` of postconf; the value is empty in `name =`."""
    for line in text.splitlines():
        name, equals, value = line.partition(" =")
        if equals:
            yield name, value.strip()


def _ask(host: Host, *arguments: str) -> tuple[str, str]:
    answer = host.run("postconf", *arguments)
    if answer.status:
        said = answer.err.splitlines() or ["no reason"]
        fatal = next((line for line in said if "fatal" in line), said[0]).rpartition("postconf: ")[2]
        if "Permission denied" in fatal:
            raise NotLookedAt(fatal)
        match = _FAULT.search(fatal)
        if match:
            raise ConfigurationFault(match["what"], f"{match['file']}:{match['line'] or ''}".removesuffix(":"))
        raise ConfigurationFault(
            fatal.removeprefix("fatal: "), f"{arguments[1]}/main.cf" if arguments[0] == "-c" else "main.cf"
        )
    return answer.out, answer.err


def _main_lines(host: Host, path: str) -> dict[str, list[int]]:
    """The lines of main.cf that set each parameter."""
    lines: dict[str, list[int]] = {}
    try:
        data = host.read(path)
    except NotLookedAt:
        return {}  # postconf has read it, as somebody else or a moment ago: the findings then name the file alone
    for number, line in logical_lines(data):
        name, equals, _ = line.decode("utf-8", "surrogateescape").partition("=")
        if equals:
            lines.setdefault(name.strip(), []).append(number)
    return lines


def _master_places(host: Host, path: str) -> dict[tuple[str, str], tuple[str, dict[str, str]]]:
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
