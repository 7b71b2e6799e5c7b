"""What doctor concludes from the logins that are there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from typing import Any

import pytest

from pbs_policy.doctor.finding import Finding
from pbs_policy.doctor.use import check_use, gateways, own_addresses
from pbs_policy.host import Host, NotLookedAt
from pbs_policy.programs import find_program
from pbs_policy.table.login_table import Entry
from pbs_policy.table.records import Record

_ANY = "0" * 32
# As they look in a container on a bridge of Docker's, with IPv6: 192.168.203.2 and fd00:203::2.
CONTAINER = {
    "/proc/net/route": """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t01CBA8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t00CBA8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
""",
    "/proc/net/ipv6_route": f"""\
{_ANY} 00 {_ANY} 00 fd000203000000000000000000000001 00000400 00000001 00000000 00000003     eth0
fd000203000000000000000000000000 40 {_ANY} 00 {_ANY} 00000100 00000001 00000000 00000001     eth0
{_ANY} 00 {_ANY} 00 {_ANY} ffffffff 00000001 00000000 00200200       lo
""",
    "/proc/net/fib_trie": """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 192.168.203.0/24 2 0 2
        |-- 192.168.203.0
           /24 link UNICAST
Local:
     +-- 192.168.203.0/24 2 0 2
        |-- 192.168.203.2
           /32 host LOCAL
        |-- 192.168.203.255
           /32 link BROADCAST
""",
    "/proc/net/if_inet6": "fd000203000000000000000000000002 04 40 00 82     eth0\n",
}  # fmt: skip


class Container(Host):
    """A host of which only this much is known."""

    def read(self, path: str) -> bytes:
        try:
            return CONTAINER[path].encode()
        except KeyError:
            raise NotLookedAt(path) from None


def entries(logins: Iterable[tuple[str, str]]) -> list[Entry]:
    return [Entry("login", address, Record(0, "pop3", user), 60.0) for address, user in logins]


def users(number: int) -> list[str]:
    return [f"user{each}@example.com" for each in range(number)]


def said(logins: Iterable[tuple[str, str]], inet_protocols: str = "ipv4") -> list[Finding]:
    """What is not good."""
    found = check_use(entries(logins), inet_protocols, Container())
    return [each for each in found if each.level != "good"]


BOTH = [("192.0.2.7", "alice"), ("2001:db8::7", "alice")]


@pytest.mark.parametrize(
    ("logins", "check", "level"),
    [
        ([("172.17.0.1", user) for user in users(5)], "use.private_addresses", "wrong"),
        ([("172.17.0.1", user) for user in users(2)], "use.private_addresses", "warning"),
        ([(host, user) for user in users(2) for host in ("fd00::1", "192.0.2.1")],
         "use.private_addresses", "warning"),
        ([("203.0.113.7", user) for user in users(10)], "use.shared_addresses", "warning"),
        ([("2001:db8::7", "alice"), ("192.0.2.7", "bob")], "use.address_families", "warning"),
        (BOTH, "", ""),
        ([("10.1.2.3", "alice"), ("10.1.2.4", "bob")], "", ""),
        ([("203.0.113.7", user) for user in users(9)], "", ""),
        ([("2001:db8::/64", "alice"), ("192.0.2.1", "Alice")], "", ""),
        ([("no address", "alice")], "", ""),
        *[([*BOTH, (neighbour, "alice")], "", "")
          for neighbour in ("192.168.203.3", "192.168.203.255", "fd00:203::3", "2001:db8::/64")],
    ],
)  # fmt: skip
def test_what_logins_say_of_the_network_is_found_and_ordinary_use_has_no_fault(
    logins: list[tuple[str, str]], check: str, level: str
) -> None:
    found = said(logins)
    assert [(each.check, each.level) for each in found] == ([(check, level)] if check else [])
    assert all(each.mend for each in found)


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("192.168.203.1", "the gateway of this host"),
        ("fd00:203::1", "the gateway of this host"),
        ("fd00:203::/64", "the gateway of this host"),
        ("192.168.203.2", "an address of this host itself"),
        ("fd00:203::2", "an address of this host itself"),
    ],
)
def test_one_login_from_a_gateway_or_from_this_host_is_enough(address: str, what: str) -> None:
    (found,) = said([(address, "alice"), ("203.0.113.7", "bob")], "all")
    assert (found.check, found.level, what in found.seen) == ("use.gateways", "warning", True)
    assert found.mend.startswith(f"never_record = {address}")


def test_what_cannot_be_known_of_use_is_not_looked_at() -> None:
    assert [each.level for each in said([])] == ["not looked at"]
    assert [(each.check, each.level) for each in said(BOTH, "")] == [("use.address_families", "not looked at")]


def test_what_the_kernel_lists_is_what_ip_says() -> None:
    ip = find_program("ip")
    if ip is None:
        pytest.skip("iproute2 is not installed: apt-get install iproute2")

    def said(*arguments: str) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = json.loads(subprocess.check_output([ip, "-j", *arguments]) or b"[]")
        return listed

    own = {each["local"] for link in said("addr") for each in link.get("addr_info", ()) if "local" in each}
    assert {str(each) for each in own_addresses(Host())} == own
    routes = [*said("-4", "route", "show", "default"), *said("-6", "route", "show", "default")]
    assert {str(each) for each in gateways(Host())} >= {each["gateway"] for each in routes if "gateway" in each}


def test_a_kernel_that_lists_nothing_has_no_gateways() -> None:
    class Nothing(Host):
        def read(self, path: str) -> bytes:
            raise NotLookedAt(path)

    assert gateways(Nothing()) == own_addresses(Nothing()) == set()
