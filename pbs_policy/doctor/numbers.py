"""Checks of what the service has counted: the version of its processes, and refusals on the mail host itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pbs_policy import __version__
from pbs_policy.doctor.finding import Finding, good, not_looked_at, warning
from pbs_policy.log import printable
from pbs_policy.service.stats import Minute, ServiceState, read_minutes, read_services
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.table.login_table import LoginTable

VERSION, LOOPBACK = "service.version", "use.loopback"

_LOOPBACK_MEND = (
    "permit_mynetworks first in smtpd_relay_restrictions, with 127.0.0.0/8 [::1]/128 in mynetworks; or SMTP AUTH"
)


def check_numbers(table: LoginTable) -> Iterator[Finding]:
    """What the numbers of the last day say."""
    try:
        minutes = read_minutes(table.redis, table.keys, table.now())
        services = read_services(table.redis, table.keys, minutes)
    except StoreUnavailable as error:
        yield not_looked_at(VERSION, printable(str(error)))
        return
    yield from _check_versions(services)
    yield _check_loopback(minutes)


def _check_versions(services: Sequence[ServiceState]) -> Iterator[Finding]:
    """A warning for each process that is not of our version, such as one that an upgrade did not restart."""
    if not services:
        yield not_looked_at(VERSION, "no process of the service has written its numbers in the last 15 s")
        return
    others = [each for each in services if each.version != __version__]
    for each in others:
        name = f"{printable(each.host)}, process {each.pid}"
        seen = f"the service on {name}, is version {printable(each.version) or '?'}, pbs-policy here is {__version__}"
        yield warning(VERSION, seen, "", "systemctl restart pbs-policy, on that host")
    if not others:
        yield good(VERSION, f"processes of version {__version__}: {len(services)}")


def _check_loopback(minutes: Sequence[Minute]) -> Finding:
    """Loopback is never recorded: what a webmail or a program on the mail host sends is not permitted by a login."""
    reasons: Counter[str] = Counter()
    for minute in minutes:
        for name, number in minute.counts.items():
            reasons[name.partition(" ")[2]] += number
    refused = reasons["loopback"]
    if not refused:
        return good(LOOPBACK, "nobody asked from a loopback address in the last day")
    seen = (
        f"{refused:,} relay attempts from the mail host itself were not permitted in the last day: "
        "no login permits a loopback address"
    )
    return warning(LOOPBACK, seen, "", _LOOPBACK_MEND)
