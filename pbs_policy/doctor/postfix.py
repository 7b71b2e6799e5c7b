"""Checks of Postfix: is the policy service asked, in the right list, in the right place of it, and where it listens?

What each mistake leads to was observed: postfix-examples/README.md. Everything here is about the entry of master.cf
where the world's mail comes in; what concerns all of main.cf is in `postfix_lists`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath

from pbs_policy.doctor.finding import Finding, good, not_looked_at, warning, wrong
from pbs_policy.doctor.postfix_config import (
    MasterService,
    PolicyCheck,
    PostfixConfig,
    Restriction,
    parse_policy_check,
    words,
)
from pbs_policy.duration import parse_duration
from pbs_policy.host import READ, WRITE, Host, NotLookedAt
from pbs_policy.postfix.listener import Listener

RELAY = "smtpd_relay_restrictions"
LISTS = (RELAY, *(f"smtpd_{when}_restrictions" for when in ("client", "helo", "sender", "recipient", "data",
                                                           "end_of_data", "etrn")))  # fmt: skip
"""Every list of restrictions that smtpd has for clients."""

REFUSALS = frozenset({"reject", "defer", "reject_unauth_destination", "defer_unauth_destination"})
"""What ends a relay attempt when it comes before us. A `defer_if_permit` is no end."""

_LONGEST_WAIT = 10  # seconds that a hanging service may cost a client; with Postfix's defaults it is 201
_ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on
_LOCALHOST = ("localhost", "127.0.0.1", "::1")
_DEFER = "DEFER_IF_REJECT 4.3.0 relay permission cannot be checked now"


def check_relaying(config: PostfixConfig, listeners: tuple[Listener, ...], host: Host) -> Iterator[Finding]:
    """Whether a relay attempt at port 25 asks the service, and what happens where it cannot be asked."""
    service = main_service(config)
    place = config.place(RELAY, service)
    line = _recommended(config, listeners[0])
    here = config.restrictions(RELAY, service)
    ours = find_ours(config, RELAY, service, listeners)
    if not ours:
        stranger = _likely_ours(here)
        if stranger is None:
            yield _not_asked(config, service, listeners, line)
            return
        endpoint = parse_policy_check(here[stranger].argument).endpoint
        listen = ", ".join(map(str, listeners))
        yield wrong(
            "postfix.address", f"Postfix asks {endpoint}, and the service listens at {listen}", place,
            f"write {_endpoint(config, listeners[0])} there, or set listen in pbs-policy.conf",
        )  # fmt: skip
        ours = [stranger]
    else:
        yield good("postfix.address", f"Postfix asks {parse_policy_check(here[ours[0]].argument).endpoint}", place)
        yield good("postfix.relay_restrictions", f"{RELAY} asks the service", place)
    asked = parse_policy_check(here[ours[0]].argument)
    yield from _check_order(config, service, here, ours[0], line)
    yield from _check_attributes(config, asked, place)
    if asked.endpoint.startswith("unix:"):
        yield from check_socket(config, service, asked.endpoint, host, place)


def main_service(config: PostfixConfig) -> MasterService | None:
    """The entry of master.cf where relay attempts come in: port 25 if there is one, else the first smtpd."""
    candidates = [each for each in config.services if not each.is_submission]
    return next((each for each in candidates if each.is_port_25), candidates[0] if candidates else None)


def find_ours(
    config: PostfixConfig, name: str, service: MasterService | None, listeners: tuple[Listener, ...]
) -> list[int]:
    """Where in a list of restrictions the service is asked."""
    queue = config.value("queue_directory")
    return [
        at
        for at, restriction in enumerate(config.restrictions(name, service))
        if restriction.name == "check_policy_service"
        and any(is_at(parse_policy_check(restriction.argument).endpoint, each, queue) for each in listeners)
    ]


def is_at(endpoint: str, listener: Listener, queue_directory: str) -> bool:
    """Whether what Postfix asks at `endpoint` is meant to be this listener.

    A path without a leading slash is below the queue directory. An absolute one may be meant as seen from inside the
    chroot or from outside: that it is ours can be told either way, that it is found there is `check_socket`'s.
    """
    kind, _, rest = endpoint.rpartition(":") if endpoint.count(":") == 1 else endpoint.partition(":")
    if kind in ("unix", "local"):
        inside = str(PurePosixPath(queue_directory, rest.lstrip("/")))
        return listener.path != "" and listener.path in (rest, inside)
    host, _, port = endpoint.removeprefix("inet:").rpartition(":")
    host = host.strip("[]") or "localhost"
    if listener.path or port != str(listener.port):
        return False
    if "localhost" in (host, listener.host):
        return host in (*_LOCALHOST, *_ANY_ADDRESS) and listener.host in (*_LOCALHOST, *_ANY_ADDRESS)
    return listener.host in (host, *_ANY_ADDRESS)


def _likely_ours(restrictions: list[Restriction]) -> int | None:
    """Of the policy services that a list asks, the one that was meant to be ours: one that says so, or one between
    permit_auth_destination and the refusal, where a service that refuses mail (a greylist) would never be asked."""
    names = [each.name for each in restrictions]
    asked = [at for at, name in enumerate(names) if name == "check_policy_service"]
    named = [at for at in asked if "pbs" in restrictions[at].argument or "10040" in restrictions[at].argument]
    permitting = [at for at in asked if "permit_auth_destination" in names[:at] and not REFUSALS & set(names[:at])]
    return next(iter(named or permitting), None)


def _not_asked(
    config: PostfixConfig, service: MasterService | None, listeners: tuple[Listener, ...], line: str
) -> Finding:
    check, place = "postfix.relay_restrictions", config.place(RELAY, service)
    if service and RELAY in service.overrides and find_ours(config, RELAY, None, listeners):
        seen = f"the entry {service.name} of master.cf sets {RELAY} itself, without the policy service"
        return wrong(check, seen, place, f"remove -o {RELAY}=... from the entry {service.name}")
    for name in LISTS:
        if find_ours(config, name, service, listeners):
            seen = f"the policy service is asked in {name}, and {RELAY} refuses relay attempts without asking it"
            return wrong(check, seen, config.place(name, service), f"{line} (and not in {name})")
    for name in words(config.value("smtpd_restriction_classes", service)):
        if find_ours(config, name, service, listeners):
            seen = f"the class {name} asks the policy service; no list names it, an access table may"
            return not_looked_at(check, seen, config.place(name, service), line)
    return wrong(check, f"{RELAY} does not ask the policy service", place, line)


def _check_order(
    config: PostfixConfig, service: MasterService | None, here: list[Restriction], at: int, line: str
) -> Iterator[Finding]:
    place = config.place(RELAY, service)
    before = [each.name for each in here[:at]]
    after = [each.name for each in here[at + 1 :]]
    refusal = next((name for name in before if name in REFUSALS), None)
    if refusal:
        seen = f"{refusal} stands before the policy service, which is then never asked about a relay attempt"
        yield wrong("postfix.order", seen, place, line)
        return
    later = [*after, *(each.name for each in config.restrictions("smtpd_recipient_restrictions", service))]
    if not REFUSALS.intersection(later):
        seen = "nothing after the policy service refuses relaying: smtpd does not start, or is an open relay"
        yield wrong("postfix.order", seen, place, line)
        return
    yield good("postfix.order", "the policy service is asked before relaying is refused", place)
    if "permit_auth_destination" in before:
        yield good("postfix.inbound", "mail for your own domains does not ask the policy service", place)
    else:
        seen = "without permit_auth_destination before it, mail for your own domains asks and waits for the service"
        yield warning("postfix.inbound", seen, place, line)


def _check_attributes(config: PostfixConfig, asked: PolicyCheck, place: str) -> Iterator[Finding]:
    if asked.fault:
        mend = f"{{ {asked.endpoint}, timeout=2s, try_limit=2, {{ default_action = {_DEFER} }} }}"
        yield wrong("postfix.syntax", f"smtpd does not start: {asked.fault}", place, f"check_policy_service {mend}")
        return
    action = asked.attributes.get("default_action") or config.value("smtpd_policy_service_default_action")
    word = action.split()[0].upper() if action else ""
    mend = f"{{ default_action = {_DEFER} }}, inside the braces of check_policy_service"
    if word in ("OK", "PERMIT") or (word.isdecimal() and not word.startswith(("4", "5"))):
        seen = f"default_action = {action}: an open relay for as long as the service is down"
        yield wrong("postfix.default_action", seen, place, mend)
    elif word in ("DEFER_IF_REJECT", "DEFER"):
        yield good("postfix.default_action", f"while the service is down: {action}", place)
    else:
        loses = word in ("DUNNO", "REJECT") or word.startswith("5")
        what = "a client that may relay loses its message" if loses else "clients read of a configuration problem"
        seen = f"default_action = {action}: while the service is down {what}"
        yield warning("postfix.default_action", seen, place, mend)
    yield _judge_tries(config, asked, place)
    try:
        wait = _longest_wait(config, asked)
    except ValueError as error:
        yield not_looked_at(
            "postfix.timeout", f"a time of check_policy_service is not understood: {error}", place, "timeout=2s"
        )
        return
    if wait > _LONGEST_WAIT:
        seen = f"a service that hangs costs a client {wait} s for each recipient"
        yield warning("postfix.timeout", seen, place, "timeout=2s, try_limit=2, inside the braces")
    else:
        yield good("postfix.timeout", f"a service that hangs costs a client {wait} s", place)


def _judge_tries(config: PostfixConfig, asked: PolicyCheck, place: str) -> Finding:
    """With one try smtpd does not connect again before its session ends."""
    if _attribute(config, asked, "try_limit") == "1":
        seen = "one try: after a restart of the service, or when it closes a connection, 450 until the session ends"
        return warning("postfix.tries", seen, place, "try_limit=2, inside the braces")
    return good("postfix.tries", "smtpd connects again when the service was restarted", place)


def _longest_wait(config: PostfixConfig, asked: PolicyCheck) -> int:
    """Seconds: each try has its time-out, with a pause in between."""
    tries = int(_attribute(config, asked, "try_limit") or 2)
    pause = parse_duration(_attribute(config, asked, "retry_delay") or "1s") if tries > 1 else 0
    return tries * parse_duration(_attribute(config, asked, "timeout") or "100s") + (tries - 1) * pause


def _attribute(config: PostfixConfig, asked: PolicyCheck, name: str) -> str:
    return asked.attributes.get(name) or config.value(f"smtpd_policy_service_{name}")


def check_socket(
    config: PostfixConfig, service: MasterService | None, endpoint: str, host: Host, place: str
) -> Iterator[Finding]:
    """Whether smtpd finds the unix socket, chrooted or not, and may connect to it."""
    path, queue = endpoint.partition(":")[2], config.value("queue_directory")
    chrooted = service is not None and service.chrooted
    outside = str(PurePosixPath(queue, path.lstrip("/") if chrooted else path))
    if chrooted and path.startswith("/"):
        under = os.path.relpath(path, queue) if path.startswith(f"{queue}/") else "pbs-policy/policy"
        seen = f"smtpd is chrooted in {queue} and looks for {outside}: an absolute path is not found there"
        yield wrong(
            "postfix.socket", seen, place, f"unix:{under}, and listen = unix:{queue}/{under} in pbs-policy.conf"
        )
        return
    owner = config.value("mail_owner") or "postfix"
    mend = (
        f"start the service; its folder: install -d -o pbs-policy -g {owner} -m 2750 {PurePosixPath(outside).parent}"
    )
    try:
        if not stat.S_ISSOCK(host.owned(outside).mode):
            yield wrong("postfix.socket", f"{outside} is not a socket", place, mend)
            return
        obstacle = host.obstacle(host.account(owner), outside, READ | WRITE)
    except FileNotFoundError:
        yield wrong("postfix.socket", f"there is no socket {outside}", place, mend)
    except KeyError:
        yield not_looked_at(
            "postfix.socket", f"there is no user {owner} (mail_owner) here", place, f"useradd {owner}"
        )
    except (NotLookedAt, OSError) as error:
        yield not_looked_at("postfix.socket", f"{outside}: {error}", place, "run doctor as root")
    else:
        if obstacle:
            yield wrong("postfix.socket", f"smtpd cannot ask the service: {obstacle}", place,
                        f"unix_socket_group = {owner} and unix_socket_mode = 0660 in pbs-policy.conf")  # fmt: skip
        else:
            yield good("postfix.socket", f"smtpd may connect to {outside}", place)


def _endpoint(config: PostfixConfig, listener: Listener) -> str:
    """How main.cf names a listener."""
    queue = config.value("queue_directory")
    if listener.path.startswith(f"{queue}/"):
        return f"unix:{listener.path.removeprefix(f'{queue}/')}"
    if listener.host in _ANY_ADDRESS:
        return f"inet:127.0.0.1:{listener.port}"
    return str(listener)


def _recommended(config: PostfixConfig, listener: Listener) -> str:
    """The line of postfix-examples, for this listener."""
    return (
        f"{RELAY} = permit_mynetworks, permit_sasl_authenticated, permit_auth_destination, check_policy_service"
        f" {{ {_endpoint(config, listener)}, timeout=2s, try_limit=2, {{ default_action = {_DEFER} }} }},"
        " reject_unauth_destination"
    )
