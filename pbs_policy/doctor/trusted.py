"""Checks of who is believed about a client's address: whoever may claim one may claim that of somebody logged in.

By XCLIENT (`smtpd_authorized_xclient_hosts`) and the PROXY protocol at Postfix; by PROXY, ID and XCLIENT at Dovecot,
where a user could have somebody else's address recorded. XFORWARD is not among them: it changes what is logged and
passed on, and neither whom Postfix permits nor what it tells the service.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from pbs_policy.address import WIDEST
from pbs_policy.doctor.access_tables import STRANGERS
from pbs_policy.doctor.finding import Finding, check, unknown, warning, wrong
from pbs_policy.doctor.open_relay import networks_of, table_with
from pbs_policy.dovecot.doveconf import DovecotConfig
from pbs_policy.host import Host, NotLookedAt
from pbs_policy.postfix.configuration import MasterService, PostfixConfig

XCLIENT = "smtpd_authorized_xclient_hosts"
MOST_PROXIES = 16
"""Addresses of a network that may all be proxies; what is larger has other hosts in it."""

_DOVECOT = ("haproxy_trusted_networks", "login_trusted_networks")
_HOWTO = "docs/howto/haproxy.md"


@check("postfix.xclient", "XCLIENT is left to single hosts, or to nobody")
def check_xclient(config: PostfixConfig, host: Host) -> Finding | None:
    """Who may say XCLIENT, in main.cf and at each entry of master.cf: also where the service is not asked XCLIENT can
    claim a login by SMTP AUTH."""
    found = [finding for each in (None, *config.services) if (finding := _judge_xclient(config, each, host))]
    return next((each for each in found if each.level in ("wrong", "unknown")), next(iter(found), None))


def _judge_xclient(config: PostfixConfig, service: MasterService | None, host: Host) -> Finding | None:
    text, place = config.value(XCLIENT, service), config.place(XCLIENT, service)
    seen, everybody = _too_wide(text)
    try:
        table = table_with(networks_of(text)[1], STRANGERS, config, host)
    except NotLookedAt as error:
        return unknown(f"{XCLIENT}: {error}", place, "see that it holds proxies alone")
    if table:
        seen, everybody = f"everybody ({table} finds any address)", True
    if not seen:
        return None
    say = wrong if everybody else warning
    seen = f"{seen} may say XCLIENT, claim the address of somebody who is logged in, and relay"
    return say(seen, place, f"name the proxies alone in {XCLIENT}, each by its address")


@check("postfix.proxy_port", "no port takes the PROXY protocol from everywhere")
def check_listeners(config: PostfixConfig) -> Iterator[Finding]:
    """Postfix believes whoever speaks the PROXY protocol: nothing but a firewall keeps strangers from such a port."""
    for service in (*config.services, *config.postscreens):
        name = f"{'postscreen' if service in config.postscreens else 'smtpd'}_upstream_proxy_protocol"
        if config.value(name, service) and service.kind == "inet" and not _is_inside(config, service):
            seen = f"whoever reaches the entry {service.name} of master.cf may claim any client's address ({name})"
            yield warning(seen, service.place, f"a firewall that leaves it to the proxy: {_HOWTO}")
            return


@check("dovecot.trusted", "Dovecot believes single proxies about a client's address, or nobody")
def check_dovecot(config: DovecotConfig) -> Iterator[Finding]:
    """Whom Dovecot believes: a user there can have any address recorded as their own."""
    for name in _DOVECOT:
        seen, everybody = _too_wide(config.value((), name))
        if seen:
            say = wrong if everybody else warning
            seen = f"{seen} may claim any address at a login ({name}), and so let others relay"
            yield say(seen, config.place((), name), f"name the proxies alone in {name}")
            return


def _too_wide(text: str) -> tuple[str, bool]:
    """Of a list of hosts and networks what is more than proxies, as a subject, and whether that is everybody."""
    networks, others = networks_of(text)
    wide = [each for each in networks if each.num_addresses > MOST_PROXIES and not each.is_loopback]
    widest = min(wide, key=lambda each: each.prefixlen - WIDEST[each.version], default=None)
    if widest is not None:
        everybody = widest.prefixlen <= WIDEST[widest.version]
        return f"{'everybody' if everybody else 'every host'} in {widest}", everybody
    domain = next((each for each in others if each.startswith(".")), "")
    return (f"every host of {domain}", False) if domain else ("", False)


def _is_inside(config: PostfixConfig, service: MasterService) -> bool:
    """Whether an entry is for those who authenticate, or listens at a private address or loopback alone."""
    if service.is_submission:
        return True
    host = service.name.rpartition(":")[0].strip("[]")
    if not host:
        return config.value("inet_interfaces", service) == "loopback-only"
    try:
        return ip_address(host).is_private and not ip_address(host).is_unspecified
    except ValueError:
        return host == "localhost"
