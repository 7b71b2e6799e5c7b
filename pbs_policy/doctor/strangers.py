"""Checks of Postfix: what refuses a client that the service permits, and lets clients with SMTP AUTH through.

`permit_sasl_authenticated` ends a list for clients with SMTP AUTH. Our OK ends the one list that it stands in, so in
the others a permitted client is a stranger, and postscreen and the milters take it for one. What refuses it there is
named here: at each entry of master.cf where such a client comes in, and never behind our own check.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pbs_policy.doctor.finding import Finding, good, not_looked_at, warning
from pbs_policy.postfix.configuration import MasterService, PostfixConfig
from pbs_policy.postfix.listener import Listener
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


def check_strangers(config: PostfixConfig, listeners: tuple[Listener, ...]) -> Iterator[Finding]:
    """Every check of this module, over all entries where permitted clients come in."""
    ways_in = config.ways_in(listeners)
    screens = _postscreens_before(config, ways_in)
    for kind in _KINDS:
        found = [each for service in ways_in for each in _refusing(config, service, listeners, kind)]
        if kind.check == "postfix.dns_list":
            found += [each for screen in screens for each in _dns_lists_of(config, screen)]
        yield from dict.fromkeys(found) or [good(kind.check, kind.good)]
    yield from _check_postscreen(config, screens)
    yield from _check_filters(config, ways_in)


def _refusing(
    config: PostfixConfig, service: MasterService | None, listeners: Sequence[Listener], kind: _Kind
) -> Iterator[Finding]:
    """A finding for each list or class that has restrictions of this kind."""
    if kind.names == (CHECK,) and not config.find_ours(config.relay_list(service), service, listeners):
        return  # one of them may be meant to be ours: postfix.address
    by_place: dict[str, list[str]] = {}
    for name in LISTS[:-1]:  # at ETRN nobody relays
        for each in config.reached(name, service, listeners):
            if each.name in kind.names and not _asks_for_quota(each):
                by_place.setdefault(each.stands_in, []).append(f"{each.name} {each.argument}".rstrip())
    for name, restrictions in by_place.items():
        seen = f"{', '.join(dict.fromkeys(restrictions))} in {name} may refuse {kind.refuses}"
        yield warning(kind.check, seen, config.place(name, service), _CLASS)


def _asks_for_quota(each: Restriction) -> bool:
    """Dovecot's quota-status knows this host's users alone, and refuses nothing that is relayed."""
    return each.name == CHECK and "quota" in parse_policy_check(each.argument).endpoint


def _postscreens_before(config: PostfixConfig, ways_in: Sequence[MasterService | None]) -> list[MasterService]:
    """The postscreens that hand clients to these entries."""
    behind = {each.name for each in ways_in if each and each.kind == "pass"}
    return [each for each in config.postscreens if config.value("smtpd_service_name", each) in behind]


def _dns_lists_of(config: PostfixConfig, screen: MasterService) -> Iterator[Finding]:
    sites, action = "postscreen_dnsbl_sites", "postscreen_dnsbl_action"
    lists, does = config.value(sites, screen), config.value(action, screen)
    if lists and does in _ENFORCING:
        seen = f"{action} = {does}: postscreen refuses clients at dial-up addresses ({', '.join(words(lists))})," \
               " also permitted ones"  # fmt: skip
        yield warning("postfix.dns_list", seen, config.place(action, screen),
                      f"{action} = ignore, and the list in {_CLASS}")  # fmt: skip


def _check_postscreen(config: PostfixConfig, screens: Sequence[MasterService]) -> Iterator[Finding]:
    found = [(name, each) for each in screens for name in _AFTER_220 if config.value(name, each) == "yes"]
    for name, each in found:
        seen = f"{name} = yes: postscreen tells each new client 450 once, and a mail program shows that to its user"
        yield warning("postfix.postscreen", seen, config.place(name, each), f"{name} = no")
    if not found:
        yield good("postfix.postscreen", "postscreen sends no client away that may relay")


def _check_filters(config: PostfixConfig, ways_in: Sequence[MasterService | None]) -> Iterator[Finding]:
    """What a filter makes of a client that has not authenticated stands in its own configuration. An entry that
    tells milters its own name, for permitted clients alone, is what docs/howto/milters.md recommends."""
    found = []
    for service in ways_in:
        is_told = service is not None and not service.is_for_strangers and _ENTRY_NAME in service.overrides
        for name in _FILTERS:
            value = config.value(name, service)
            if value and not (is_told and "milter" in name):
                seen = f"{name} = {value}: to it a permitted client is a stranger, whose mail it may leave unsigned" \
                       " or take for spam"  # fmt: skip
                found.append(not_looked_at("postfix.filters", seen, config.place(name, service), _PAGE))
    yield from dict.fromkeys(found) or [good("postfix.filters", "no milter or content filter judges clients")]
