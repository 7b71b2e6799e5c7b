"""Checks of Postfix: what refuses a client that the service permits, and lets clients with SMTP AUTH through.

`permit_sasl_authenticated` ends a list for clients with SMTP AUTH. Our OK ends the one list that it stands in, so in
the others a permitted client is a stranger, and postscreen and the milters take it for one. What refuses it there is
named here: at each entry of master.cf where such a client comes in, and never behind our own check.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pbs_policy.doctor.entry import SmtpdEntry
from pbs_policy.doctor.finding import Finding, check, not_looked_at, warning
from pbs_policy.postfix.configuration import MasterService, PostfixConfig
from pbs_policy.postfix.restrictions import CHECK, LISTS, Restriction, parse_policy_check, words

_CLASS = "a restriction class for mail to your own domains: see postfix-examples/README.md"
_PAGE = "see docs/howto/milters.md"
_ENFORCING = ("enforce", "drop")
_AFTER_220 = ("postscreen_pipelining_enable", "postscreen_non_smtp_command_enable", "postscreen_bare_newline_enable")
_FILTERS = ("smtpd_milters", "smtpd_milter_maps", "smtpd_proxy_filter", "content_filter")
_ENTRY_NAME = "milter_macro_daemon_name"


class _Kind(NamedTuple):
    """Restrictions that mail programs run into: what they refuse, and what is said where there is none."""

    check: str
    names: tuple[str, ...]
    refuses: str
    good: str


_KINDS = (
    _Kind(
        "postfix.client_names",
        (
            "reject_invalid_helo_hostname", "reject_invalid_hostname", "reject_non_fqdn_helo_hostname",
            "reject_non_fqdn_hostname", "reject_unknown_client", "reject_unknown_client_hostname",
            "reject_unknown_helo_hostname", "reject_unknown_hostname", "reject_unknown_reverse_client_hostname",
        ),
        "clients without the HELO name or PTR record of a mail server, also permitted ones",
        "no list asks a client for the names of a mail server",
    ),
    _Kind(
        "postfix.verification",
        ("reject_unverified_recipient", "reject_unverified_sender"),
        "or delay mail until the address's own server has answered, mail of permitted clients too",
        "no address is verified before a permitted client's mail is taken",
    ),
    _Kind(
        "postfix.dns_list",
        (
            "reject_rbl_client", "reject_rhsbl_client", "reject_rhsbl_helo", "reject_rhsbl_recipient",
            "reject_rhsbl_reverse_client", "reject_rhsbl_sender",
        ),
        "clients at dial-up addresses, also permitted ones",
        "no DNS list refuses a client that may relay",
    ),
    _Kind(
        "postfix.policy_services",
        (CHECK,),
        "clients that it does not know (greylisting, SPF), also permitted ones",
        "no other policy service is asked about a client that may relay",
    ),
)  # fmt: skip


def check_strangers(entries: Sequence[SmtpdEntry]) -> Iterator[Finding]:
    """Every check of this module, over the entries where permitted clients come in."""
    config = entries[0].config
    # The postscreens that hand clients to these entries.
    behind = {each.service.name for each in entries if each.service and each.service.kind == "pass"}
    screens = [each for each in config.postscreens if config.value("smtpd_service_name", each) in behind]
    for kind in _KINDS:
        yield from check(kind.check, kind.good)(_find_refusing)(entries, screens, kind)
    yield from _check_postscreen(config, screens)
    yield from _check_filters(entries)


def _find_refusing(
    entries: Sequence[SmtpdEntry], screens: Sequence[MasterService], kind: _Kind
) -> Iterator[Finding]:
    found = [finding for each in entries for finding in _refusing(each, kind)]
    if kind.check == "postfix.dns_list":
        found += [finding for each in screens for finding in _dns_lists_of(entries[0].config, each)]
    yield from dict.fromkeys(found)


def _refusing(entry: SmtpdEntry, kind: _Kind) -> Iterator[Finding]:
    """A finding for each list or class that has restrictions of this kind."""
    if kind.names == (CHECK,) and not entry.ours():
        return  # one of them may be meant to be ours: postfix.address
    by_place: dict[str, list[str]] = {}
    for name in LISTS[:-1]:  # at ETRN nobody relays
        for each in entry.reached(name):
            if each.name in kind.names and not _asks_for_quota(each):
                by_place.setdefault(each.stands_in, []).append(f"{each.name} {each.argument}".rstrip())
    for name, restrictions in by_place.items():
        seen = f"{', '.join(dict.fromkeys(restrictions))} in {name} may refuse {kind.refuses}"
        yield warning(seen, entry.place(name), _CLASS)


def _asks_for_quota(each: Restriction) -> bool:
    """Dovecot's quota-status knows this host's users alone, and refuses nothing that is relayed."""
    return each.name == CHECK and "quota" in parse_policy_check(each.argument).endpoint


def _dns_lists_of(config: PostfixConfig, screen: MasterService) -> Iterator[Finding]:
    sites, action = "postscreen_dnsbl_sites", "postscreen_dnsbl_action"
    lists, does = words(config.value(sites, screen)), config.value(action, screen)
    if lists and does in _ENFORCING:
        seen = f"{action} = {does}: postscreen refuses clients at dial-up addresses ({', '.join(lists)})"
        mend = f"{action} = ignore, and the list in {_CLASS}"
        yield warning(f"{seen}, also permitted ones", config.place(action, screen), mend)


@check("postfix.postscreen", "postscreen sends no client away that may relay")
def _check_postscreen(config: PostfixConfig, screens: Sequence[MasterService]) -> Iterator[Finding]:
    for name in _AFTER_220:
        for each in screens:
            if config.value(name, each) == "yes":
                seen = f"{name} = yes: postscreen tells each new client 450 once, and a mail program shows that"
                yield warning(f"{seen} to its user", config.place(name, each), f"{name} = no")


@check("postfix.filters", "no milter or content filter judges clients")
def _check_filters(entries: Sequence[SmtpdEntry]) -> Iterator[Finding]:
    """What a filter makes of a client that has not authenticated stands in its own configuration. An entry that
    tells milters its own name, for permitted clients alone, is what docs/howto/milters.md recommends."""
    found: dict[Finding, None] = {}
    for entry in entries:
        is_told = entry.service is not None and not entry.service.is_for_strangers and entry.sets(_ENTRY_NAME)
        for name in _FILTERS:
            value = entry.value(name)
            if value and not (is_told and "milter" in name):
                seen = f"{name} = {value}: to it a permitted client is a stranger, whose mail it may leave unsigned"
                found[not_looked_at(f"{seen} or take for spam", entry.place(name), _PAGE)] = None
    yield from found
