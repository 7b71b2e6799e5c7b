"""Checks of who may relay whatever the service says: hosts in mynetworks, and mail for domains that are not ours.

What stands in a lookup table is asked by postmap, about addresses and a domain that nobody has.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from ipaddress import ip_network

from pbs_policy.address import WIDEST, Network
from pbs_policy.doctor.finding import Finding, good, unknown, warning, wrong
from pbs_policy.host import Host, NotLookedAt
from pbs_policy.postfix.configuration import MasterService, PostfixConfig
from pbs_policy.postfix.restrictions import find_refusal, words
from pbs_policy.postfix.tables import find_key

STRANGERS = ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1")
"""Addresses of documentation networks: in nobody's list, unless everybody is in it."""

_PRIVATE = tuple(ip_network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
_OWN_HOSTS = "name 127.0.0.0/8 [::1]/128 and your own hosts in mynetworks, and no more"
_DESTINATIONS = ("mydestination", "virtual_alias_domains", "virtual_mailbox_domains", "relay_domains")
"""What permit_auth_destination permits, and reject_unauth_destination does not refuse."""


def check_open_relay(config: PostfixConfig, service: MasterService | None, host: Host) -> Iterator[Finding]:
    """Whether strangers may relay without being logged in."""
    yield _check_mynetworks(config, service, host)
    yield _check_destinations(config, service, host)


def _check_mynetworks(config: PostfixConfig, service: MasterService | None, host: Host) -> Finding:
    check, place = "postfix.mynetworks", config.place("mynetworks", service)
    relay = config.relay_list(service)
    restrictions = config.restrictions(relay, service)
    names = [each.name for each in restrictions[: find_refusal(restrictions)]]
    if "permit" in names:
        seen = f"permit stands in {relay} before anything refuses: everybody may relay"
        return wrong(check, seen, config.place(relay, service), f"take permit out of {relay}")
    if "permit_mynetworks" not in names:
        return good(check, "mynetworks permits nobody to relay", place)
    networks, tables = networks_of(config.value("mynetworks", service))
    for network in networks:
        if network.prefixlen <= WIDEST[network.version]:
            seen = f"mynetworks has {network}: everybody in it relays without any login"
            return wrong(check, seen, place, _OWN_HOSTS)
    try:
        table = table_with(tables, STRANGERS, config, host)
    except NotLookedAt as error:
        return unknown(check, f"mynetworks: {error}", place, "see that it holds no network of strangers")
    if table:
        seen = f"mynetworks has {table}, which finds any address: everybody relays without any login"
        return wrong(check, seen, place, _OWN_HOSTS)
    for network in networks:
        if network in _PRIVATE:
            seen = f"mynetworks has all of {network}: a gateway or container in it lets strangers relay"
            return warning(check, seen, place, "name the hosts or networks that there are")
    listed = " ".join([*map(str, networks), *tables]) or "empty"
    return good(check, f"mynetworks: {listed}", place)


def _check_destinations(config: PostfixConfig, service: MasterService | None, host: Host) -> Finding:
    check = "postfix.destinations"
    nobodys = f"{secrets.token_hex(8)}.invalid"
    for name in _DESTINATIONS:
        place = config.place(name, service)
        tables = [each for each in words(config.value(name, service)) if ":" in each]
        try:
            table = table_with(tables, (nobodys,), config, host)
        except NotLookedAt as error:
            return unknown(check, f"{name}: {error}", place, "see that it holds your own domains alone")
        if table:
            seen = f"{name} has {table}, which finds any domain: whoever sends to anywhere may relay"
            return wrong(check, seen, place, f"name the domains that you receive mail for in {name}")
    return good(check, "Postfix takes mail of strangers for its own domains alone")


def table_with(tables: Sequence[str], keys: Sequence[str], config: PostfixConfig, host: Host) -> str:
    """The first of the tables, or of the files with lists, that has one of these keys; "" where none has. Raises
    NotLookedAt."""
    for table in tables:
        if table.startswith("/"):
            if _has_everybody(host.read(table).decode("utf-8", "replace")):
                return table
        elif ":" in table and not table.startswith("!") and find_key(host, config, table, keys):
            return table
    return ""


def _has_everybody(text: str) -> bool:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return any(each.prefixlen <= WIDEST[each.version] for each in networks_of("\n".join(lines))[0])


def networks_of(text: str) -> tuple[list[Network], list[str]]:
    """The networks of such a list, and what is not one: tables, files, names. What `!` takes out is left out."""
    networks: list[Network] = []
    tables = []
    for item in words(text):
        try:
            if not item.startswith("!"):
                networks.append(ip_network(item.replace("[", "").replace("]", ""), strict=False))
        except ValueError:
            tables.append(item)
    return networks, tables
