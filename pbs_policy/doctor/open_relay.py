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
from pbs_policy.doctor.entry import SmtpdEntry
from pbs_policy.doctor.finding import Finding, check, good, unknown, warning, wrong
from pbs_policy.host import Host, NotLookedAt
from pbs_policy.postfix.configuration import PostfixConfig
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
        entry = SmtpdEntry(config, service, (), host)
        yield from _check_permits(entry)
        yield from _check_destinations(entry)
    for service in config.reachable():
        if service not in main:
            entry = SmtpdEntry(config, service, (), host)
            found = list(_check_permits(entry))
            if not service.is_closed and _takes_own_mail(entry):
                found += _check_destinations(entry)
            yield from (each for each in found if each.level in ("wrong", "unknown"))


def _takes_own_mail(entry: SmtpdEntry) -> bool:
    """Whether an entry permits by the domains that are ours."""
    restrictions = entry.restrictions()
    end = find_refusal(restrictions)
    permits = any(each.name == PERMIT_LOCAL for each in restrictions[:end])
    return permits or end is None or restrictions[end].name in REFUSING


@check("postfix.mynetworks")
def _check_permits(entry: SmtpdEntry) -> Finding:
    refuses = find_refusal(entry.restrictions()) is not None
    decide = [entry.relay] if refuses or entry.relay == RECIPIENT else [entry.relay, RECIPIENT]
    mynetworks = _judge_mynetworks(entry)
    found = next((each for name in decide if (each := _find_opening(entry, name, mynetworks))), None)
    if found:
        closed = any(_closes(entry, name, mynetworks) for name in _AT_RCPT if name != entry.relay)
        return good("a list refuses whomever it does not know") if closed else found
    names = [each.name for name in decide for each in entry.before_refusal(name)]
    if "permit_mynetworks" in names and mynetworks.level != "wrong":
        return mynetworks
    return good("mynetworks permits nobody to relay", entry.place("mynetworks"))


def _find_opening(entry: SmtpdEntry, name: str, mynetworks: Finding) -> Finding | None:
    """What permits everybody in a list before anything refuses."""
    for each in entry.before_refusal(name):
        if each.name == "permit":
            refuses = find_refusal(entry.restrictions(name)) is not None
            mend = f"take permit out of {name}" if refuses else f"put {REFUSING[0]} in place of permit in {name}"
            seen = f"permit stands in {name} before anything refuses: everybody may relay"
            return wrong(seen, entry.place(name), mend)
        if each.name == "permit_mynetworks" and mynetworks.level == "wrong":
            return mynetworks
        try:
            does, said = says_of_everybody(each, entry)
        except NotLookedAt:
            continue  # access_tables names it
        if does == "permits":
            seen = f"{each.name} {each.argument}".strip() + f" in {name} permits everybody ({said}): an open relay"
            mend = f"name your own hosts alone in that table of {each.stands_in}"
            return wrong(seen, entry.place(each.stands_in), mend)
        if does == "refuses" and not each.is_warned:
            return None
    return None


def _closes(entry: SmtpdEntry, name: str, mynetworks: Finding) -> bool:
    """Whether a list refuses strangers for certain: nothing before the refusal may permit one."""
    refuses = find_refusal(entry.restrictions(name)) is not None
    return refuses and all(_is_for_some(each, mynetworks) for each in entry.before_refusal(name))


def _is_for_some(each: Restriction, mynetworks: Finding) -> bool:
    narrow = each.name == "permit_mynetworks" and mynetworks.level in ("good", "warning")
    return narrow or each.is_warned or each.name in _FOR_SOME or each.name.startswith("reject_")


def _judge_mynetworks(entry: SmtpdEntry) -> Finding:
    place = entry.place("mynetworks")
    networks, tables = networks_of(entry.value("mynetworks"))
    for network in networks:
        if network.prefixlen <= WIDEST[network.version]:
            return wrong(f"mynetworks has {network}: everybody in it relays without any login", place, _OWN_HOSTS)
    try:
        table = table_with(tables, STRANGERS, entry.config, entry.host)
    except NotLookedAt as error:
        return unknown(f"mynetworks: {error}", place, "see that it holds no network of strangers")
    if table:
        seen = f"mynetworks has {table}, which finds any address: everybody relays without any login"
        return wrong(seen, place, _OWN_HOSTS)
    for network in networks:
        if network in _PRIVATE:
            seen = f"mynetworks has all of {network}: a gateway or container in it lets strangers relay"
            return warning(seen, place, "name the hosts or networks that there are")
    return good(f"mynetworks: {' '.join([*map(str, networks), *tables]) or 'empty'}", place)


@check("postfix.destinations", "Postfix takes mail of strangers for its own domains alone")
def _check_destinations(entry: SmtpdEntry) -> Iterator[Finding]:
    nobodys = f"{secrets.token_hex(8)}.invalid"
    for name in _DESTINATIONS:
        place, mend = entry.place(name), f"name the domains that you receive mail for in {name}"
        tables = [each for each in words(entry.value(name)) if ":" in each]
        below = _below(entry.config) if name == "relay_domains" else None
        try:
            top = "" if below is None else _find_top_level(entry, below)
            keys = [nobodys] if below is None else [nobodys, *(f"{below}{each}" for each in _TOP_LEVEL[:3])]
            table = table_with(tables, keys, entry.config, entry.host)
        except NotLookedAt as error:
            yield unknown(f"{name}: {error}", place, "see that it holds your own domains alone")
            return
        if top:
            yield wrong(f"{name} has {top}: whoever sends to any domain below {top} may relay", place, mend)
            return
        if table:
            seen = f"{name} has {table}, which finds any domain: whoever sends to anywhere may relay"
            yield wrong(seen, place, mend)
            return


def _below(config: PostfixConfig) -> str:
    """What relay_domains has before a domain that stands for all below it: nothing, or a dot."""
    return "" if "relay_domains" in words(config.value("parent_domain_matches_subdomains")) else "."


def _find_top_level(entry: SmtpdEntry, below: str) -> str:
    """A domain without a dot in relay_domains that stands for all below it; "" where there is none. The host's own
    names, and those that no public domain is below, are sound, as mydestination hands them down."""
    name = entry.value("myhostname").lower()
    own = {*_NO_TOP_LEVEL, name, name.partition(".")[0], entry.value("mydomain").lower()}
    if "mydestination" in entry.config.written.get("relay_domains", "$mydestination"):
        own |= set(words(entry.value("mydestination").lower()))
    for item in words(entry.value("relay_domains")):
        text = entry.host.read(item).decode("utf-8", "replace") if item.startswith("/") else item
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
