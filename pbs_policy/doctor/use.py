"""Checks of use: what the logins that are there now say about the network in front of this host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from itertools import islice

from pbs_policy.doctor.finding import Finding, good, not_looked_at, warning, wrong
from pbs_policy.doctor.network import gateways, own_addresses
from pbs_policy.host import Host
from pbs_policy.log import printable
from pbs_policy.table.login_table import Entry

MOST_ENTRIES = 20_000
"""How many logins are looked at."""

MANY_USERS = 10
"""From how many users on an address is shared by more than a household or a small office."""

_PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")))

_ENOUGH = 5  # users, before anything is concluded from all of them


def check_use(entries: Iterable[Entry], inet_protocols: str, host: Host) -> Iterator[Finding]:
    """What can be told from the login table. `inet_protocols` is Postfix's, "" where it is not known."""
    users: dict[str, set[str]] = defaultdict(set)
    for entry in islice(entries, MOST_ENTRIES):
        if entry.kind == "login":
            users[entry.target].add(entry.record.user.lower())
    everybody = set().union(*users.values()) if users else set()
    if not users:
        yield not_looked_at("use.private_addresses", "nobody is logged in now")
        return
    yield _check_gateways(users, host)
    yield from _check_private(users, everybody)
    yield from _check_shared(users)
    yield from _check_families(users, inet_protocols)


def _check_gateways(users: dict[str, set[str]], host: Host) -> Finding:
    """One login is enough: the next client behind it may be a stranger. A login widened by `ipv6_prefix` is taken for
    the gateway's where that lies in it; an address of this host may lie in it because both are in one office."""
    routes, own = gateways(host), own_addresses(host)
    for address in users:
        try:
            network = ip_network(address, strict=False)
        except ValueError:  # somebody else's key
            continue
        what = "the gateway of this host" if any(each in network for each in routes) else ""
        if network.num_addresses == 1 and network.network_address in own:
            what = "an address of this host itself"
        if what:
            seen = f"somebody logs in from {address}, {what}: whoever comes through it looks the same, and may relay"
            return warning("use.gateways", seen, "", f"never_record = {address}, and docs/howto/containers.md")
    return good("use.gateways", "nobody logs in from a gateway or an address of this host")


def _check_private(users: dict[str, set[str]], everybody: set[str]) -> Iterator[Finding]:
    private = {address: names for address, names in users.items() if _is_private(address)}
    crowded = max(private, key=lambda address: len(private[address]), default="")
    mend = f"PROXY protocol or XCLIENT in front, or never_record = {crowded}"
    if crowded and len(users) == 1 and len(everybody) >= _ENOUGH:
        seen = f"all {len(everybody)} users log in from {crowded}: a gateway or load balancer hides the clients"
        yield wrong(
            "use.private_addresses", seen, "", f"{mend} (haproxy = yes, smtpd_upstream_proxy_protocol = haproxy)"
        )
    elif crowded and len(private[crowded]) > 1:
        seen = f"{len(private[crowded])} users log in from the private address {crowded}: a gateway permits them all"
        yield warning("use.private_addresses", seen, "", mend)
    else:
        yield good("use.private_addresses", f"{len(private)} private addresses, none with two users")


def _check_shared(users: dict[str, set[str]]) -> Iterator[Finding]:
    public = {address: names for address, names in users.items() if not _is_private(address)}
    crowded = max(public, key=lambda address: len(public[address]), default="")
    if crowded and len(public[crowded]) >= MANY_USERS:
        seen = f"{len(public[crowded])} users are logged in from {printable(crowded)}: everybody there may relay"
        yield warning("use.shared_addresses", seen, "", "sender_match = address, or a shorter ttl")
    else:
        yield good("use.shared_addresses", f"{len(users)} addresses, none with {MANY_USERS} users or more")


def _check_families(users: dict[str, set[str]], inet_protocols: str) -> Iterator[Finding]:
    v6 = set().union(*(names for address, names in users.items() if ":" in address))
    v4 = set().union(*(names for address, names in users.items() if ":" not in address))
    if inet_protocols == "ipv4" and v6 - v4:
        name = printable(sorted(v6 - v4)[0]) or "somebody"
        seen = f"{name} logs in over IPv6 alone, and Postfix serves IPv4 alone: that login permits nothing"
        yield warning("use.address_families", seen, "", "inet_protocols = all, or no IPv6 in Dovecot's listen")
    elif inet_protocols in ("ipv4", "all"):
        yield good("use.address_families", f"logins of {len(v4)} users over IPv4, of {len(v6)} over IPv6")
    else:
        yield not_looked_at("use.address_families", "whether clients send over the protocol they log in by")


def _is_private(address: str) -> bool:
    try:
        network = ip_network(address, strict=False)
    except ValueError:  # somebody else's key
        return False
    return any(network.version == each.version and network.network_address in each for each in _PRIVATE)
