"""What access tables (`check_client_access` and the like) say of everybody: of clients and addresses that nobody has.

A table that permits those permits everybody. That it refuses them need not concern whom the site knows: only a
constant (`static:REJECT`) refuses everybody.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

from pbs_policy.doctor.finding import Finding, good, not_looked_at, wrong
from pbs_policy.host import Host, NotLookedAt
from pbs_policy.postfix.configuration import MasterService, PostfixConfig
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.restrictions import LISTS, Restriction, find_refusal, parse_restrictions
from pbs_policy.postfix.tables import find_value

CHECK = "postfix.access"
STRANGERS = ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1")
"""Addresses of documentation networks: in nobody's list, unless everybody is in it."""

_PERMITTING = ("OK", "RELAY", "PERMIT")
_REFUSING = ("REJECT", "DEFER", "DEFER_IF_PERMIT", "DISCARD")
_AUTHENTICATED = ("check_sasl_access", "check_ccert_access")
_NEVER_PERMIT = ("_mx_access", "_ns_access", "_a_access")
_ETRN = "smtpd_etrn_restrictions"


def says_of_everybody(
    each: Restriction, config: PostfixConfig, service: MasterService | None, host: Host
) -> tuple[str, str]:
    """What an access check does with everybody ("permits", "refuses" or ""), and what its table says. Raises
    NotLookedAt."""
    table = _table_of(each)
    name = f"{secrets.token_hex(8)}.invalid"
    keys = STRANGERS if "client" in each.name else (name,) if "helo" in each.name else (f"nobody@{name}",)
    said = find_value(host, config, table, keys) if table else None
    does = _meaning(said, config, service) if said else ""
    if (does == "refuses" and not _is_constant(table)) or (does == "permits" and each.name.endswith(_NEVER_PERMIT)):
        does = ""
    return does, said or ""


def _table_of(each: Restriction) -> str:
    """The table of an access check; "" where it is none, or asks about who has authenticated."""
    if ":" in each.name:
        return each.name  # the old form
    if not each.name.endswith("_access") or each.name in _AUTHENTICATED:
        return ""
    table = each.argument
    return table[1:-1].strip() if table.startswith("{") and table.endswith("}") else table


def _is_constant(table: str) -> bool:
    return table.removeprefix("proxy:").startswith("static:")


def _meaning(said: str, config: PostfixConfig, service: MasterService | None) -> str:
    """What a result of access(5) does: an action, a number for OK, or a list of restrictions and classes."""
    word, *text = said.split() or [""]
    if word.upper() in _PERMITTING or said.isdecimal():
        return "permits"
    if word.upper() in _REFUSING or (text and word.isdecimal() and word[0] in "45"):
        return "refuses"
    for each in parse_restrictions(said):
        is_class = each.name in config.classes(service)
        for inner in config.restrictions(each.name, service) if is_class else [each]:
            if inner.refuses or inner.name == "permit":
                return "refuses" if inner.refuses else "permits"
    return ""


def check_access(
    config: PostfixConfig, service: MasterService | None, listeners: Sequence[Listener], host: Host
) -> Iterator[Finding]:
    """Which constants refuse a client that the service permits; and which tables of the relay list could permit
    strangers, and cannot be asked."""
    relay = config.relay_list(service)
    if not config.find_ours(relay, service, listeners):
        return  # that is the fault: postfix.relay_restrictions
    faults = [
        found for name in LISTS if name != _ETRN and (found := _find_constant(config, service, name, listeners, host))
    ]
    restrictions = config.restrictions(relay, service)
    for each in restrictions[: find_refusal(restrictions)]:
        try:
            says_of_everybody(each, config, service, host)
        except NotLookedAt as error:
            seen = f"whom {each.name} in {each.stands_in} permits is not known: {error}"
            mend = "see that it permits no strangers"
            faults.append(not_looked_at(CHECK, seen, config.place(each.stands_in, service), mend))
    yield from faults or [good(CHECK, "no access table refuses everybody")]


def _find_constant(
    config: PostfixConfig, service: MasterService | None, name: str, listeners: Sequence[Listener], host: Host
) -> Finding | None:
    for each in config.reached(name, service, listeners):
        if not _is_constant(_table_of(each)):
            continue
        try:
            does, said = says_of_everybody(each, config, service, host)
        except NotLookedAt:
            continue
        if does == "refuses":
            what = f"{each.name} {each.argument}".strip()
            seen = f"{what} in {each.stands_in} refuses everybody ({said}), also clients that the service permits"
            mend = f"in place of {what} a table of those that are to be refused, in {each.stands_in}"
            return wrong(CHECK, seen, config.place(each.stands_in, service), mend)
        if does == "permits":
            return None
    return None
