"""Checks of the running service: does it answer on every listener, asked as Postfix asks, are its processes and units
of this version, and what do its numbers say of the mail host itself?
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial

from pbs_policy import __version__
from pbs_policy.command_line import command_line
from pbs_policy.decision.rules import DUNNO
from pbs_policy.doctor.finding import Finding, check, good, not_looked_at, unknown, warning, where, wrong
from pbs_policy.extras import why_no_metrics
from pbs_policy.host import Host, NotLookedAt
from pbs_policy.log import printable
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.query import ask
from pbs_policy.service.stats import Minute, read_minutes, read_services
from pbs_policy.settings import Settings
from pbs_policy.settings.sources import Value
from pbs_policy.shipped import shipped
from pbs_policy.table.login_table import LoginTable

STRANGER = "192.0.2.1"
"""An address of RFC 5737: it is in use nowhere, so nobody is logged in from it."""

_PATIENCE = 2.0  # seconds: `timeout=2s` of postfix-examples; the service takes 0.5 s at the most

_LOOPBACK_MEND = (
    "permit_mynetworks first in smtpd_relay_restrictions, with 127.0.0.0/8 [::1]/128 in mynetworks; or SMTP AUTH"
)
_UNITS = ("pbs-policy.socket", "pbs-policy.service")
_PROPERTIES = ("Id", "LoadState", "ActiveState", "Result", "FragmentPath", "NeedDaemonReload")
_PACKAGED = ("/usr/lib/systemd/system", "/lib/systemd/system")
_RESTART = "systemctl stop pbs-policy.service && systemctl restart pbs-policy.socket pbs-policy.service"
"""A socket is not started while its service runs without it."""


def check_service(settings: Settings, values: Mapping[str, Value], store_told: bool = False) -> Iterator[Finding]:
    """Ask every listener once, about a client that nobody has logged in from. `store_told`: that Redis does not
    answer the service was said."""
    yield from _check_answers(settings, where(values["listen"]), store_told)
    if settings.observe_only:
        yield from _check_observing(where(values["observe_only"]))
    if settings.metrics_listen:
        yield from _check_metrics(where(values["metrics_listen"]))


@check("service.observe_only")
def _check_observing(place: str) -> Finding:
    seen = "observe_only = yes: the service permits nobody, and logs who it would"
    return warning(seen, place, "observe_only = no, when you have seen enough")


@check("service.metrics", "the packages for metrics_listen are installed")
def _check_metrics(place: str) -> Iterator[Finding]:
    seen, found, cure = why_no_metrics().partition("): ")
    if found:
        yield warning(f"{seen})", place, f"{cure}; then restart the service")


@check("service.answers")
def _check_answers(settings: Settings, place: str, store_told: bool) -> Iterator[Finding]:
    found = [ask_listener(listener, place, store_told) for listener in settings.listen]
    if all(each.level == "wrong" for each in found):  # the service does not run: one cause
        yield wrong("; ".join(each.seen for each in found), place, found[0].mend)
    else:
        yield from found


def ask_listener(listener: Listener, place: str, store_told: bool = False) -> Finding:
    """One request to one listener."""
    start = "systemctl status pbs-policy; journalctl -u pbs-policy; restart it where listen was changed"
    began = time.monotonic()
    try:
        action = ask(listener, STRANGER, sender="", recipient="postmaster@example.net").action
    except TimeoutError:
        return wrong(f"{listener} accepts and does not answer", place, start)
    except PermissionError as error:
        return unknown(f"{listener}: {error.strerror}", place)
    except (OSError, ValueError) as error:
        return wrong(f"{listener} is not answered: {printable(str(error))}", place, start)
    took = time.monotonic() - began
    if action.startswith("DEFER") and store_told:
        return good(f"{listener} answers {printable(action)}, as it should without Redis", place)
    if action.startswith("DEFER"):
        return wrong(f"{listener} answers {printable(action)}: Redis is unavailable to the service", place, start)
    if action != DUNNO:
        seen = f"{listener} answers a stranger {printable(action)!r}, not DUNNO: is that another program?"
        return wrong(seen, place, "give the service a port or path of its own")
    if took > _PATIENCE:
        return warning(f"{listener} took {took:.1f} s to answer: Postfix waits 2 s", place, start)
    return good(f"{listener} answers in {1000 * took:.0f} ms", place)


@check("service.units")
def check_units(host: Host) -> Iterator[Finding]:
    """That none has failed, and that they are of this version: a failed socket unit leaves Postfix with nobody to
    ask, while the service may go on and look well. Nothing where systemd does not run, or has no such unit."""
    try:
        answer = host.run("systemctl", "show", f"--property={','.join(_PROPERTIES)}", *_UNITS)
    except NotLookedAt:
        return
    units = [dict(re.findall(r"(?m)^(\w+)=(.*)$", block)) for block in answer.out.split("\n\n")]
    loaded = [unit for unit in units if unit.get("LoadState") == "loaded"] if not answer.status else []
    findings = [found for unit in loaded for found in _judge_unit(unit, host)]
    yield from findings
    if loaded and not findings:
        yield good(f"{' and '.join(unit['Id'] for unit in loaded)}: as they came with this version")


def _judge_unit(unit: dict[str, str], host: Host) -> Iterator[Finding]:
    name, file = unit["Id"], unit.get("FragmentPath", "")
    if unit.get("ActiveState") == "failed":
        seen = f"{name} has failed ({unit.get('Result')}), and systemd does not start it again"
        yield wrong(seen, file, f"journalctl -u {name} says why; then {_RESTART}")
    elif unit.get("NeedDaemonReload") == "yes":
        seen = f"systemd goes by an earlier {name} than the one in the file"
        yield warning(seen, file, f"systemctl daemon-reload && {_RESTART}")
    try:
        ours = _of_this_version(name, file, host)
        differs = bool(ours) and _lines(host.read(ours)) != _lines(host.read(file))
    except NotLookedAt:
        return
    if differs:
        mend = f"{command_line('diff', file, ours)}; lines of your own belong in a drop-in (systemctl edit {name})"
        yield warning(f"{name} is of another version, or was edited", file, mend)


def _of_this_version(name: str, file: str, host: Host) -> str:
    """The unit as it came with what is installed: from the package that an own one hides, or with us; "" for none."""
    for folder in _PACKAGED:
        path = f"{folder}/{name}"
        if host.locate(path).exists():
            return "" if host.locate(path).samefile(host.locate(file)) else path
    try:
        return str(shipped(f"systemd/{name}"))
    except FileNotFoundError:
        return ""


def _lines(data: bytes) -> list[bytes]:
    """What counts of a unit. Debian's package enables the socket by itself, and leaves `Also=` out."""
    lines = (line.strip() for line in data.splitlines())
    return [line for line in lines if line and not line.startswith((b"#", b";", b"Also="))]


def check_numbers(table: LoginTable) -> Iterator[Finding]:
    """What the numbers of the last day say, which are read once."""
    minutes = cache(partial(read_minutes, table.redis, table.keys, table.now()))
    yield from _check_versions(table, minutes)
    yield from _check_loopback(minutes)


@check("service.version")
def _check_versions(table: LoginTable, minutes: Callable[[], list[Minute]]) -> Iterator[Finding]:
    """A warning for each process that is not of our version, such as one that an upgrade did not restart."""
    services = read_services(table.redis, table.keys, minutes())
    others = [each for each in services if each.version != __version__]
    for each in others:
        name, theirs = f"{printable(each.host)}, process {each.pid}", printable(each.version) or "?"
        seen = f"the service on {name}, is version {theirs}, pbs-policy here is {__version__}"
        yield warning(seen, "", "systemctl restart pbs-policy, on that host")
    if not services:
        yield not_looked_at("no process of the service has written its numbers in the last 15 s")
    elif not others:
        yield good(f"processes of version {__version__}: {len(services)}")


@check("use.loopback", "nobody asked from a loopback address in the last day")
def _check_loopback(minutes: Callable[[], list[Minute]]) -> Iterator[Finding]:
    """Loopback is never recorded: what a webmail or a program on the mail host sends is not permitted by a login."""
    counts = [each for minute in minutes() for each in minute.counts.items()]
    refused = sum(number for name, number in counts if name.partition(" ")[2] == "loopback")
    if refused:
        seen = f"{refused:,} relay attempts from the mail host itself were not permitted in the last day: "
        yield warning(f"{seen}no login permits a loopback address", "", _LOOPBACK_MEND)
