"""Checks of Postfix: is the policy service asked, in the right list, in the right place of it, and where it listens?

What each mistake leads to was observed: postfix-examples/README.md. Everything here is about the entry of master.cf
where the world's mail comes in; what concerns all of main.cf is in `postfix_lists`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from pbs_policy.command_line import command_line
from pbs_policy.doctor.finding import AS_ROOT, Finding, good, unknown, warning, wrong
from pbs_policy.duration import parse_duration
from pbs_policy.host import READ, WRITE, Host, NotLookedAt, is_for_root
from pbs_policy.postfix.configuration import MasterService, PostfixConfig
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.placing import ListError, by_hand, check_for, misplaced, right_list
from pbs_policy.postfix.restrictions import (
    CHECK,
    LISTS,
    PERMIT_LOCAL,
    RECIPIENT,
    REFUSING,
    RELAY,
    PolicyCheck,
    Restriction,
    endpoint_of,
    find_refusal,
    is_at,
    is_balanced,
    parse_policy_check,
    parse_restrictions,
)
from pbs_policy.postfix.standalone import is_running, why_smtpd_ends

_LONGEST_WAIT = 10  # seconds that a hanging service may cost a client; with Postfix's defaults it is 201
_LIKE_DUNNO = ("DUNNO", "REJECT", "DEFER_IF_PERMIT", "PREPEND", "HOLD", "INFO", "WARN", "FILTER", "REDIRECT", "BCC",
               "DISCARD")  # fmt: skip
_DEFER = "DEFER_IF_REJECT 4.3.0 relay permission cannot be checked now"


def check_relaying(
    config: PostfixConfig, service: MasterService | None, listeners: tuple[Listener, ...], host: Host
) -> Iterator[Finding]:
    """Whether a relay attempt at this entry of master.cf asks the service, and what happens where it cannot be."""
    relay = config.relay_list(service)
    place = config.place(relay, service)
    yield from _check_words(config, service)
    if not is_balanced(config.value(relay, service)):
        return
    line = recommend(config, service, listeners)
    here = config.restrictions(relay, service)
    ours = config.find_ours(relay, service, listeners)
    if not ours:
        stranger = _likely_ours(here)
        if stranger is None:
            others = [each for each in config.port_25() if each != service]
            finding = _not_asked(config, service, listeners, line)
            if any(config.find_ours(config.relay_list(each), each, listeners) for each in others):
                # It may be meant so: an address for the world's mail, another one for clients.
                finding = replace(finding, level="warning")
            yield finding
            return
        endpoint = parse_policy_check(here[stranger].argument).endpoint
        listen = ", ".join(map(str, listeners))
        yield wrong(
            "postfix.address", f"Postfix asks {endpoint}, and the service listens at {listen}", place,
            f"write {endpoint_of(listeners[0], config.queue_directory)} there, or set listen in pbs-policy.conf",
        )  # fmt: skip
        ours = [stranger]
    else:
        yield good("postfix.address", f"Postfix asks {parse_policy_check(here[ours[0]].argument).endpoint}", place)
        yield good("postfix.relay_restrictions", f"{relay} asks the service", place)
    asked = parse_policy_check(here[ours[0]].argument)
    yield from _check_order(config, service, ours[0], line)
    yield from _check_attributes(config, service, asked, place)
    if asked.endpoint.startswith("unix:"):
        yield from check_socket(config, service, asked.endpoint, host, place)


def _check_words(config: PostfixConfig, service: MasterService | None) -> Iterator[Finding]:
    """What smtpd does not read in any of its lists, a finding for each list."""
    classes = config.classes(service)
    for name in LISTS:
        place = config.place(name, service)
        if not is_balanced(config.value(name, service)):
            seen = f"smtpd does not read it: the braces of {name} do not match"
            yield wrong("postfix.syntax", seen, place, "each { needs a } of its own")
            continue
        for each in config.restrictions(name, service):
            if not each.is_known and each.name not in classes:
                seen = f"{each.name} in {name} is no restriction: smtpd answers 451 where it comes to it"
                mend = f"correct {each.name} in {each.stands_in}, or take it out"
                yield wrong("postfix.syntax", seen, config.place(each.stands_in, service), mend)
                break


def _likely_ours(restrictions: list[Restriction]) -> int | None:
    """Of the policy services that a list asks, the one that was meant to be ours: one that says so, or one between
    permit_auth_destination and the refusal, where a service that refuses mail (a greylist) would never be asked."""
    asked = [at for at, each in enumerate(restrictions) if each.name == CHECK]
    named = [at for at in asked if "pbs" in restrictions[at].argument or "10040" in restrictions[at].argument]
    permits = [at for at, each in enumerate(restrictions) if each.name == PERMIT_LOCAL]
    end = find_refusal(restrictions)
    permitting = [at for at in asked if permits and permits[0] < at and (end is None or at < end)]
    return next(iter(named or permitting), None)


def _not_asked(
    config: PostfixConfig, service: MasterService | None, listeners: tuple[Listener, ...], line: str
) -> Finding:
    relay = config.relay_list(service)
    check, place = "postfix.relay_restrictions", config.place(relay, service)
    if service and relay in service.overrides and config.find_ours(relay, None, listeners):
        seen = f"the entry {service.name} of master.cf sets {relay} itself, without the policy service"
        return wrong(check, seen, place, f"remove -o {relay}=... from the entry {service.name}")
    for name in LISTS:
        if config.find_ours(name, service, listeners):
            seen = f"the policy service is asked in {name}, and {relay} refuses relay attempts without asking it"
            return wrong(check, seen, config.place(name, service), f"{line} (and not in {name})")
    for name in config.classes(service):
        if config.find_ours(name, service, listeners):
            seen = f"the class {name} asks the policy service; no list names it, an access table may"
            return unknown(check, seen, config.place(name, service), line)
    return wrong(check, f"{relay} does not ask the policy service", place, line)


def _check_order(config: PostfixConfig, service: MasterService | None, at: int, line: str) -> Iterator[Finding]:
    relay = config.relay_list(service)
    here, place = config.restrictions(relay, service), config.place(relay, service)
    found = misplaced(here, at, config.restrictions(RECIPIENT, service))
    if found and not found.only_mail_in:
        yield wrong("postfix.order", found.why, place, line)
        return
    yield good("postfix.order", "the policy service is asked before relaying is refused", place)
    if found:
        yield warning("postfix.inbound", found.why, place, line)
    else:
        yield good("postfix.inbound", "mail for your own domains does not ask the policy service", place)


def _check_attributes(
    config: PostfixConfig, service: MasterService | None, asked: PolicyCheck, place: str
) -> Iterator[Finding]:
    if asked.fault:
        mend = f"{{ {asked.endpoint}, timeout=2s, try_limit=2, {{ default_action = {_DEFER} }} }}"
        seen = f"smtpd does not start: {asked.fault}"
        yield wrong("postfix.syntax", seen, place, f"write {asked.mend}" if asked.mend else f"{CHECK} {mend}")
        return
    yield _judge_default_action(config, service, asked, place)
    yield _judge_tries(config, asked, place)
    try:
        wait = _longest_wait(config, asked)
    except ValueError as error:
        seen = f"smtpd does not start: a time of check_policy_service is not understood: {error}"
        yield wrong("postfix.timeout", seen, place, "timeout=2s, try_limit=2, inside the braces")
        return
    if wait > _LONGEST_WAIT:
        seen = f"a service that hangs costs a client {wait} s for each recipient"
        yield warning("postfix.timeout", seen, place, "timeout=2s, try_limit=2, inside the braces")
    else:
        yield good("postfix.timeout", f"a service that hangs costs a client {wait} s", place)


def _judge_default_action(
    config: PostfixConfig, service: MasterService | None, asked: PolicyCheck, place: str
) -> Finding:
    """What smtpd does while the service is down. It takes the text as the result of an access table (access(5)): an
    action, a number for OK, or a list of restrictions and classes."""
    check = "postfix.default_action"
    action = asked.attributes.get("default_action") or config.value("smtpd_policy_service_default_action", service)
    word = action.split()[0].upper() if action else ""
    mend = f"{{ default_action = {_DEFER} }}, inside the braces of check_policy_service"
    if word in ("DEFER_IF_REJECT", "DEFER"):
        return good(check, f"while the service is down: {action}", place)
    does = []
    for each in parse_restrictions(action):
        is_class = each.name in config.classes(service)
        does += config.restrictions(each.name, service) if is_class else [each]
    permits = [each.name for each in does[: find_refusal(does)] if each.name.upper() in ("OK", "RELAY", "PERMIT")]
    if permits or (word.isdecimal() and word == action):
        seen = f"default_action = {action}: an open relay for as long as the service is down"
        return wrong(check, seen, place, mend)
    if any(each.name.startswith(("permit_", "check_")) for each in does):
        seen = f"default_action = {action}: while the service is down that decides who relays"
        return warning(check, seen, place, mend)
    loses = word in _LIKE_DUNNO or word.startswith("5")
    what = "a client that may relay loses its message" if loses else "clients read of a configuration problem"
    return warning(check, f"default_action = {action}: while the service is down {what}", place, mend)


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
    path, queue = endpoint.partition(":")[2], config.queue_directory
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
    try:
        account = host.account(owner)
        group, folder = host.group(account), str(PurePosixPath(outside).parent)
        make = command_line("install", "-d", "-o", "pbs-policy", "-g", group, "-m", "2750", folder)
        mend = f"start the service; its folder: {make}"
        if not stat.S_ISSOCK(host.owned(outside).mode):
            yield wrong("postfix.socket", f"{outside} is not a socket", place, mend)
            return
        obstacle = host.obstacle(account, outside, READ | WRITE)
    except FileNotFoundError:
        yield wrong("postfix.socket", f"there is no socket {outside}", place, mend)
    except KeyError:
        seen = f"Postfix does not start: there is no user {owner} (mail_owner)"
        yield wrong("postfix.socket", seen, config.place("mail_owner"), command_line("useradd", about=owner))
    except (NotLookedAt, OSError) as error:
        yield unknown("postfix.socket", f"{outside}: {error}", place, AS_ROOT)
    else:
        if obstacle:
            yield wrong("postfix.socket", f"smtpd cannot ask the service: {obstacle}", place,
                        f"unix_socket_group = {group} and unix_socket_mode = 0660 in pbs-policy.conf")  # fmt: skip
        else:
            yield good("postfix.socket", f"smtpd may connect to {outside}", place)


def check_running(config: PostfixConfig, host: Host) -> Finding:
    """Whether Postfix runs at all. Only root can see its lock."""
    check = "postfix.running"
    try:
        if is_running(host, config):
            return good(check, "Postfix runs")
    except NotLookedAt as error:
        return unknown(check, str(error), config.main_cf, AS_ROOT)
    seen = "Postfix does not run: nobody's mail is taken"
    return wrong(check, seen, config.main_cf, "postfix start; its log says why")


def check_smtpd(config: PostfixConfig, service: MasterService | None, host: Host) -> Finding:
    """Whether the real smtpd takes the configuration: the last check, for what no other one knows."""
    check = "postfix.smtpd"
    try:
        why = why_smtpd_ends(host, config, service)
    except NotLookedAt as error:
        return unknown(check, str(error), config.main_cf, AS_ROOT)
    if not why:
        return good(check, "smtpd takes this configuration", config.main_cf)
    if is_for_root(why):
        return unknown(check, why, config.main_cf, AS_ROOT)
    named = [name for name in config.lines if name in why.replace(":", " ").split()]
    place = config.place(named[0], service) if named else config.main_cf
    return wrong(check, f"smtpd ends at once, and takes no mail: {why}", place, "correct what it names")


def recommend(config: PostfixConfig, service: MasterService | None, listeners: Sequence[Listener]) -> str:
    """The line with our check in its place: the site's own list where that place is certain. Else what to do by hand;
    and a relay list like that of the example where there is none, or where the old recipient list still decides."""
    name, queue = config.relay_list(service), config.queue_directory
    endpoint = endpoint_of(listeners[0], queue)
    written = config.value(name, service) if service and name in service.overrides else config.written.get(name)
    text = config.value(name, service) if written is None else written
    if name == RECIPIENT and not config.find_ours(name, service, listeners):
        name, text = RELAY, f"permit_mynetworks, permit_sasl_authenticated, {REFUSING[0]}"

    def is_ours(each: Restriction) -> bool:
        asked = parse_policy_check(each.argument).endpoint if each.name == CHECK else ""
        return bool(asked) and any(is_at(asked, listener, queue) for listener in listeners)

    try:
        value = right_list(text, check_for(endpoint), is_ours, config.classes(service))
    except ListError as error:
        return f"{error}. By hand: {by_hand(name, endpoint)}"
    return f"-o {{ {name} = {value} }}" if service and name in service.overrides else f"{name} = {value}"
