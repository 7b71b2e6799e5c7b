"""The check of Postfix and Dovecot together: does a proxy tell both of them the client's address, or neither?

Where only one is told, the address that is recorded is never the one that is asked for: docs/howto/haproxy.md.
"""

from __future__ import annotations

from ipaddress import ip_network

from pbs_policy.doctor.finding import Finding, check, good, not_looked_at, warning
from pbs_policy.doctor.trusted import XCLIENT
from pbs_policy.dovecot.doveconf import DovecotConfig
from pbs_policy.postfix.configuration import MasterService, PostfixConfig
from pbs_policy.postfix.restrictions import words

_TRUSTED = "haproxy_trusted_networks"
_LOGINS = ("service pop3-login", "service imap-login")
_HOWTO = "docs/howto/haproxy.md"


@check("postfix.upstream_proxy")
def check_proxy(postfix: PostfixConfig, dovecot: DovecotConfig) -> Finding:
    """Whether both are told, or neither."""
    service = postfix.main_service()
    entry = next((each for each in postfix.services if _protocol_of(postfix, each)[0]), None)
    dovecot_told, dovecot_place = _behind(dovecot)
    if dovecot_told and entry is None and not _names_proxy(postfix, service, dovecot):
        seen = (
            f"Dovecot is told the clients' addresses by a proxy ({dovecot_told}, {dovecot_place}), Postfix is not:"
            " behind the same proxy every client has the proxy's address, and nobody's login is found (or"
            " everybody's, were that address recorded)"
        )
        mend = (
            f"{_parameter(service)} = haproxy at the port that the proxy sends to, and send-proxy at the proxy:"
            f" {_HOWTO}; nothing, where clients reach Postfix without it"
        )
        return warning(seen, service.place if service else postfix.main_cf, mend)
    if entry is not None and not dovecot_told and not dovecot.value((), "login_trusted_networks"):
        if dovecot.unread:
            return not_looked_at(f"what stands in {dovecot.unread[0]} is not known: Permission denied")
        name, place = _protocol_of(postfix, entry)
        seen = (
            f"Postfix is told the clients' addresses by a proxy ({name}, {place}), Dovecot is not: behind the same"
            " proxy every login is recorded with the proxy's address, and nobody's is found"
        )
        mend = (
            f"haproxy = yes in a listener of pop3-login and imap-login, {_TRUSTED}, and send-proxy at the proxy:"
            f" {_HOWTO}; nothing, where clients reach Dovecot without it"
        )
        return warning(seen, dovecot.file, mend)
    both = "a proxy tells Postfix and Dovecot" if dovecot_told or entry else "no proxy tells Postfix or Dovecot"
    by_xclient = postfix.value(XCLIENT, service)
    if by_xclient and not entry and not dovecot_told:
        both = f"whoever is in {XCLIENT} ({by_xclient}) may tell Postfix"
    return good(f"{both} the clients' addresses")


def _behind(dovecot: DovecotConfig) -> tuple[str, str]:
    """What says that a proxy tells Dovecot the clients' addresses, and its place; twice "" where nothing does."""
    for line in dovecot.effective:
        listens = len(line.blocks) == 2 and line.blocks[0] in _LOGINS and line.blocks[1].startswith("inet_listener")
        if listens and (line.name, line.value) == ("haproxy", "yes"):
            return f"haproxy = yes in {line.blocks[0]}", dovecot.place(line.blocks, line.name)
    networks = dovecot.value((), _TRUSTED)
    return (f"{_TRUSTED} = {networks}", dovecot.place((), _TRUSTED)) if networks else ("", "")


def _parameter(service: MasterService | None) -> str:
    """What makes an entry expect the PROXY protocol: behind postscreen it is postscreen that reads it."""
    behind_postscreen = service is not None and service.kind == "pass"
    return f"{'postscreen' if behind_postscreen else 'smtpd'}_upstream_proxy_protocol"


def _protocol_of(config: PostfixConfig, service: MasterService) -> tuple[str, str]:
    """The parameter by which an entry for the world's mail expects the PROXY protocol, as set, and its place."""
    name = _parameter(service)
    for each in config.postscreens if service.kind == "pass" else (service,):
        value = config.value(name, each)
        if value and not each.is_submission:
            return f"{name} = {value}", config.place(name, each)
    return "", ""


def _names_proxy(postfix: PostfixConfig, service: MasterService | None, dovecot: DovecotConfig) -> bool:
    """Whether the proxy that Dovecot trusts may tell Postfix by XCLIENT. A name or a table may stand for it."""
    for xclient in words(postfix.value(XCLIENT, service)):
        for trusted in words(dovecot.value((), _TRUSTED)) or [xclient]:
            try:
                ours, theirs = (ip_network(each.translate(_NO_BRACKETS), strict=False) for each in (xclient, trusted))
            except ValueError:
                return True
            if ours.overlaps(theirs):
                return True
    return False


_NO_BRACKETS = str.maketrans("", "", "[]")
