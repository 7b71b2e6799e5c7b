"""Checks of use: what the logins that are there now say about the network in front of this host."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import islice

from pbs_policy.doctor.finding import Finding, check, good, not_looked_at, warning, wrong
from pbs_policy.host import Host, NotLookedAt
from pbs_policy.log import printable
from pbs_policy.table.login_table import Entry

MOST_ENTRIES = 20_000
"""How many logins are looked at."""

MANY_USERS = 10
"""From how many users on an address is shared by more than a household or a small office."""

_PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")))

_ENOUGH = 5  # users, before anything is concluded from all of them


Address = IPv4Address | IPv6Address
Users = dict[str, set[str]]
"""Who is logged in from each address."""


def check_use(entries: Iterable[Entry], inet_protocols: str, host: Host) -> Iterator[Finding]:
    """What can be told from the login table. `inet_protocols` is Postfix's, "" where it is not known."""
    users: Users = defaultdict(set)
    yield from _count_users(entries, users)
    if users:
        yield from _check_gateways(users, host)
        yield from _check_private(users)
        yield from _check_shared(users)
        yield from _check_families(users, inet_protocols)


@check("use.private_addresses")
def _count_users(entries: Iterable[Entry], users: Users) -> Iterator[Finding]:
    """The logins are added to `users`."""
    for entry in islice(entries, MOST_ENTRIES):
        if entry.kind == "login":
            users[entry.target].add(entry.record.user.lower())
    if not users:
        yield not_looked_at("nobody is logged in now")


@check("use.gateways", "nobody logs in from a gateway or an address of this host")
def _check_gateways(users: Users, host: Host) -> Iterator[Finding]:
    """One login is enough: the next client behind it may be a stranger. Behind a bridge with a userland proxy, or
    address translation towards the host, the gateway stands for everybody. A login widened by `ipv6_prefix` is taken
    for the gateway's where that lies in it; an address of this host may lie in it because both are in one office."""
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
            yield warning(seen, "", f"never_record = {address}, and docs/howto/containers.md")
            return


def own_addresses(host: Host) -> set[Address]:
    """Every address of this host's interfaces."""
    v4 = re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", _read(host, "/proc/net/fib_trie"))
    v6 = [line.split()[0] for line in _read(host, "/proc/net/if_inet6").splitlines()]
    return {*map(IPv4Address, v4), *(IPv6Address(int(each, 16)) for each in v6)}


def gateways(host: Host) -> set[Address]:
    """The next hops of the default routes."""
    found: set[Address] = set()
    for line in _read(host, "/proc/net/route").splitlines()[1:]:
        _, destination, gateway, *_ = line.split()
        if destination == "00000000":
            found.add(IPv4Address(int(gateway, 16).to_bytes(4, sys.byteorder)))  # printed as the machine stores it
    for line in _read(host, "/proc/net/ipv6_route").splitlines():
        destination, length, _, _, gateway, *_ = line.split()
        if int(destination, 16) == 0 and length == "00":
            found.add(IPv6Address(int(gateway, 16)))
    return {each for each in found if not each.is_unspecified}


def _read(host: Host, path: str) -> str:
    try:
        return host.read(path).decode("ascii", "replace")
    except NotLookedAt:
        return ""  # a kernel without IPv6


@check("use.private_addresses")
def _check_private(users: Users) -> Finding:
    private = [address for address in users if _is_private(address)]
    crowded, number = _most_crowded(users, private)
    mend = f"PROXY protocol or XCLIENT in front, or never_record = {crowded}"
    if number >= _ENOUGH and len(users) == 1:
        seen = f"all {number} users log in from {crowded}: a gateway or load balancer hides the clients"
        return wrong(seen, "", f"{mend} (haproxy = yes, smtpd_upstream_proxy_protocol = haproxy)")
    if number > 1:
        seen = f"{number} users log in from the private address {crowded}: a gateway permits them all"
        return warning(seen, "", mend)
    return good(f"{len(private)} private addresses, none with two users")


@check("use.shared_addresses")
def _check_shared(users: Users) -> Finding:
    crowded, number = _most_crowded(users, [address for address in users if not _is_private(address)])
    if number < MANY_USERS:
        return good(f"{len(users)} addresses, none with {MANY_USERS} users or more")
    seen = f"{number} users are logged in from {printable(crowded)}: everybody there may relay"
    return warning(seen, "", "sender_match = address, or a shorter ttl")


@check("use.address_families")
def _check_families(users: Users, inet_protocols: str) -> Finding:
    v6 = set().union(*(names for address, names in users.items() if ":" in address))
    v4 = set().union(*(names for address, names in users.items() if ":" not in address))
    if inet_protocols == "ipv4" and v6 - v4:
        name = printable(sorted(v6 - v4)[0]) or "somebody"
        seen = f"{name} logs in over IPv6 alone, and Postfix serves IPv4 alone: that login permits nothing"
        return warning(seen, "", "inet_protocols = all, or no IPv6 in Dovecot's listen")
    if inet_protocols in ("ipv4", "all"):
        return good(f"logins of {len(v4)} users over IPv4, of {len(v6)} over IPv6")
    return not_looked_at("whether clients send over the protocol they log in by")


def _most_crowded(users: Users, addresses: list[str]) -> tuple[str, int]:
    address = max(addresses, key=lambda each: len(users[each]), default="")
    return address, len(users[address]) if address else 0


def _is_private(address: str) -> bool:
    try:
        network = ip_network(address, strict=False)
    except ValueError:  # somebody else's key
        return False
    return any(network.version == each.version and network.network_address in each for each in _PRIVATE)
