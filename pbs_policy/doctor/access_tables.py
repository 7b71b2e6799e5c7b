"""What access tables (`check_client_access` and the like) say of everybody: of clients and addresses that nobody has.

A table that permits those permits everybody. That it refuses them need not concern whom the site knows: only a
constant (`static:REJECT`) refuses everybody.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

from pbs_policy.doctor.entry import SmtpdEntry
from pbs_policy.doctor.finding import Finding, check, not_looked_at, wrong
from pbs_policy.host import NotLookedAt
from pbs_policy.postfix.restrictions import LISTS, Restriction, parse_restrictions
from pbs_policy.postfix.tables import find_value, values_of

STRANGERS = ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1")
"""Addresses of documentation networks: in nobody's list, unless everybody is in it."""

_PERMITTING = ("OK", "RELAY", "PERMIT")
_REFUSING = ("REJECT", "DEFER", "DEFER_IF_PERMIT", "DISCARD")
_AUTHENTICATED = ("check_sasl_access", "check_ccert_access")
_BY_WORD = re.compile("sender|helo|ehlo")  # what a client says of itself
_NEVER_PERMIT = ("_mx_access", "_ns_access", "_a_access")


def says_of_everybody(each: Restriction, entry: SmtpdEntry) -> tuple[str, str]:
    """What an access check does with everybody ("permits", "refuses" or ""), and what its table says. Raises
    NotLookedAt."""
    table = _table_of(each)
    name = f"{secrets.token_hex(8)}.invalid"
    keys = STRANGERS if "client" in each.name else (name,) if "helo" in each.name else (f"nobody@{name}",)
    said = find_value(entry.host, entry.config, table, keys) if table else None
    does = _meaning(said, entry) if said else ""
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


def _meaning(said: str, entry: SmtpdEntry) -> str:
    """What a result of access(5) does: an action, a number for OK, or a list of restrictions and classes."""
    word, *text = said.split() or [""]
    if word.upper() in _PERMITTING or said.isdecimal():
        return "permits"
    if word.upper() in _REFUSING or (text and word.isdecimal() and word[0] in "45"):
        return "refuses"
    for each in parse_restrictions(said):
        is_class = each.name in entry.config.classes(entry.service)
        for inner in entry.restrictions(each.name) if is_class else [each]:
            if inner.refuses or inner.name == "permit":
                return "refuses" if inner.refuses else "permits"
    return ""


@check("postfix.access", "no access table refuses everybody")
def check_access(entry: SmtpdEntry) -> Iterator[Finding]:
    """Which constants refuse a client that the service permits; and which tables of the relay list could permit
    strangers, and cannot be asked."""
    for name in LISTS[:-1]:  # at ETRN nobody relays
        yield from _find_constant(entry, name)
    for each in entry.before_refusal():
        try:
            does, _ = says_of_everybody(each, entry)
            if not does and (word := _word_that_permits(each, entry)):
                seen = f"{each.name} {each.argument} in {each.stands_in} permits whoever says {word}: anybody can"
                mend = f"take {word} out of that table: clients are known by their address (check_client_access)"
                yield wrong(seen, entry.place(each.stands_in), mend)
        except NotLookedAt as error:
            seen = f"whom {each.name} in {each.stands_in} permits is not known: {error}"
            yield not_looked_at(seen, entry.place(each.stands_in), "see that it permits no strangers")


def _word_that_permits(each: Restriction, entry: SmtpdEntry) -> str:
    """A sender or name (HELO) that an access table permits, which is the client's word; "" where there is none.
    Raises NotLookedAt."""
    table = _table_of(each)
    is_by_word = _BY_WORD.search(each.name) and not each.name.endswith(_NEVER_PERMIT)
    if not table or _is_constant(table) or each.is_warned or not is_by_word:
        return ""
    values = values_of(entry.host, entry.config, table)
    return next((key for key, said in values if _meaning(said, entry) == "permits"), "")


def _find_constant(entry: SmtpdEntry, name: str) -> Iterator[Finding]:
    """The first of a list that refuses everybody, unless everybody is permitted before."""
    for each in entry.reached(name):
        if not _is_constant(_table_of(each)):
            continue
        try:
            does, said = says_of_everybody(each, entry)
        except NotLookedAt:
            continue
        if does == "refuses":
            what = f"{each.name} {each.argument}".strip()
            seen = f"{what} in {each.stands_in} refuses everybody ({said}), also clients that the service permits"
            mend = f"in place of {what} a table of those that are to be refused, in {each.stands_in}"
            yield wrong(seen, entry.place(each.stands_in), mend)
        if does:
            return
