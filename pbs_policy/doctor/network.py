"""The host's own place in the network: its addresses, and the gateways it sends through, as the kernel lists them.

A login that comes from one of them is not one client's: behind a bridge with a userland proxy, or address translation
towards the host, the gateway stands for everybody.
"""

from __future__ import annotations

import re
import sys
from ipaddress import IPv4Address, IPv6Address

from pbs_policy.host import Host, NotLookedAt

Address = IPv4Address | IPv6Address


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
