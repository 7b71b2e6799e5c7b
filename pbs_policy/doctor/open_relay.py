"""Checks of who may relay whatever the service says: hosts in mynetworks, and mail for domains that are not ours.

Every entry of master.cf that others can reach is judged, for one port is enough. What stands in a lookup table is
asked by postmap, about addresses and a domain that nobody has.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from ipaddress import ip_network

from pbs_policy.address import WIDEST, Network
from pbs_policy.doctor.access_tables import STRANGERS, says_of_everybody
from pbs_policy.doctor.finding import Finding, good, unknown, warning, wrong
from pbs_policy.host import Host, NotLookedAt
from pbs_policy.postfix.configuration import MasterService, PostfixConfig
from pbs_policy.postfix.restrictions import (
    LISTS,
    PERMIT_LOCAL,
    RECIPIENT,
    REFUSING,
    Restriction,
    find_refusal,
    words,
)
from pbs_policy.postfix.tables import find_value

_PERMITS = "postfix.mynetworks"
_PRIVATE = tuple(ip_network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
_OWN_HOSTS = "name 127.0.0.0/8 [::1]/128 and your own hosts in mynetworks, and no more"
_DESTINATIONS = ("mydestination", "virtual_alias_domains", "virtual_mailbox_domains", "relay_domains")
"""What permit_auth_destination permits, and reject_unauth_destination does not refuse."""

_TOP_LEVEL = ("com", "net", "org", "info", "biz", "edu", "gov", "mil", "int", "arpa")
_NO_TOP_LEVEL = ("localhost", "localdomain", "local", "lan", "internal", "intranet", "home", "corp", "test",
                 "example", "invalid")  # fmt: skip
_AT_RCPT = LISTS[1:5]
_FOR_SOME = ("permit_sasl_authenticated", "permit_tls_clientcerts", "permit_inet_interfaces", "warn_if_reject")
"""What permits no stranger: beside these, mynetworks and what refuses."""


def check_open_relay(config: PostfixConfig, host: Host) -> Iterator[Finding]:
    """Whether strangers may relay without being logged in. Beside port 25 it is said only where they may."""
    main = config.port_25()
    for service in main:
        yield _check_permits(config, service, host)
        yield _check_destinations(config, service, host)
    for service in config.reachable():
        if service not in main:
            found = [_check_permits(config, service, host)]
            if _takes_own_mail(config, service):
                found.append(_check_destinations(config, service, host))
            yield from (each for each in found if each.level in ("wrong", "unknown"))


def _takes_own_mail(config: PostfixConfig, service: MasterService) -> bool:
    """Whether an entry permits by the domains that are ours."""
    restrictions = config.restrictions(config.relay_list(service), service)
    end = find_refusal(restrictions)
    permits = any(each.name == PERMIT_LOCAL for each in restrictions[:end])
    return not service.is_closed and (permits or end is None or restrictions[end].name in REFUSING)


def _check_permits(config: PostfixConfig, service: MasterService | None, host: Host) -> Finding:
    relay = config.relay_list(service)
    refuses = find_refusal(config.restrictions(relay, service)) is not None
    decide = [relay] if refuses or relay == RECIPIENT else [relay, RECIPIENT]
    mynetworks = _judge_mynetworks(config, service, host)
    found = next((each for name in decide if (each := _find_opening(config, service, name, mynetworks, host))), None)
    if found:
        closed = any(_closes(config, service, name, mynetworks) for name in _AT_RCPT if name != relay)
        return good(_PERMITS, "a list refuses whomever it does not know") if closed else found
    names = [each.name for name in decide for each in _before_refusal(config, service, name)]
    if "permit_mynetworks" in names and mynetworks.level != "wrong":
        return mynetworks
    return good(_PERMITS, "mynetworks permits nobody to relay", config.place("mynetworks", service))


def _before_refusal(config: PostfixConfig, service: MasterService | None, name: str) -> list[Restriction]:
    restrictions = config.restrictions(name, service)
    return restrictions[: find_refusal(restrictions)]


def _find_opening(
    config: PostfixConfig, service: MasterService | None, name: str, mynetworks: Finding, host: Host
) -> Finding | None:
    """What permits everybody in a list before anything refuses."""
    for each in _before_refusal(config, service, name):
        place = config.place(each.stands_in, service)
        if each.name == "permit":
            refuses = find_refusal(config.restrictions(name, service)) is not None
            mend = f"take permit out of {name}" if refuses else f"put {REFUSING[0]} in place of permit in {name}"
            seen = f"permit stands in {name} before anything refuses: everybody may relay"
            return wrong(_PERMITS, seen, config.place(name, service), mend)
        if each.name == "permit_mynetworks" and mynetworks.level == "wrong":
            return mynetworks
        try:
            does, said = says_of_everybody(each, config, service, host)
        except NotLookedAt:
            continue  # access_tables names it
        if does == "permits":
            seen = f"{each.name} {each.argument}".strip() + f" in {name} permits everybody ({said}): an open relay"
            return wrong(_PERMITS, seen, place, f"name your own hosts alone in that table of {each.stands_in}")
        if does == "refuses" and not each.is_warned:
            return None
    return None


def _closes(config: PostfixConfig, service: MasterService | None, name: str, mynetworks: Finding) -> bool:
    """Whether a list refuses strangers for certain: nothing before the refusal may permit one."""
    restrictions = config.restrictions(name, service)
    end = find_refusal(restrictions)
    return end is not None and all(_is_for_some(each, mynetworks) for each in restrictions[:end])


def _is_for_some(each: Restriction, mynetworks: Finding) -> bool:
    narrow = each.name == "permit_mynetworks" and mynetworks.level in ("good", "warning")
    return narrow or each.is_warned or each.name in _FOR_SOME or each.name.startswith("reject_")


def _judge_mynetworks(config: PostfixConfig, service: MasterService | None, host: Host) -> Finding:
    check, place = _PERMITS, config.place("mynetworks", service)
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
        below = _below(config) if name == "relay_domains" else None
        try:
            top = "" if below is None else _find_top_level(config, service, below, host)
            keys = [nobodys] if below is None else [nobodys, *(f"{below}{each}" for each in _TOP_LEVEL[:3])]
            table = table_with(tables, keys, config, host)
        except NotLookedAt as error:
            return unknown(check, f"{name}: {error}", place, "see that it holds your own domains alone")
        if top:
            seen = f"{name} has {top}: whoever sends to any domain below {top} may relay"
            return wrong(check, seen, place, f"name the domains that you receive mail for in {name}")
        if table:
            seen = f"{name} has {table}, which finds any domain: whoever sends to anywhere may relay"
            return wrong(check, seen, place, f"name the domains that you receive mail for in {name}")
    return good(check, "Postfix takes mail of strangers for its own domains alone")


def _below(config: PostfixConfig) -> str:
    """What relay_domains has before a domain that stands for all below it: nothing, or a dot."""
    return "" if "relay_domains" in words(config.value("parent_domain_matches_subdomains")) else "."


def _find_top_level(config: PostfixConfig, service: MasterService | None, below: str, host: Host) -> str:
    """A domain without a dot in relay_domains that stands for all below it; "" where there is none. The host's own
    names, and those that no public domain is below, are sound, as mydestination hands them down."""
    name = config.value("myhostname", service).lower()
    own = {*_NO_TOP_LEVEL, name, name.partition(".")[0], config.value("mydomain", service).lower()}
    if "mydestination" in config.written.get("relay_domains", "$mydestination"):
        own |= set(words(config.value("mydestination", service).lower()))
    for item in words(config.value("relay_domains", service)):
        text = host.read(item).decode("utf-8", "replace") if item.startswith("/") else item
        for word in words("\n".join(line.partition("#")[0] for line in text.lower().splitlines())):
            domain = word.removeprefix(below)
            if word.startswith(below) and domain.replace("-", "").isalnum() and domain not in own - _public(own):
                return word
    return ""


def _public(names: set[str]) -> set[str]:
    """Those of the names that are, or may be, top-level domains: every country has one of two letters."""
    return {each for each in names if each in _TOP_LEVEL or (len(each) == 2 and each.isalpha())}


def table_with(tables: Sequence[str], keys: Sequence[str], config: PostfixConfig, host: Host) -> str:
    """The first of the tables, or of the files with lists, that has one of these keys; "" where none has. Raises
    NotLookedAt."""
    for table in tables:
        if table.startswith("/"):
            if _has_everybody(host.read(table).decode("utf-8", "replace")):
                return table
        elif ":" in table and not table.startswith("!") and find_value(host, config, table, keys) is not None:
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
