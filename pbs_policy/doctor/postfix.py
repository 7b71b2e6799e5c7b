"""Checks of Postfix: is the policy service asked, in the right list, in the right place of it, and where it listens?

What each mistake leads to was observed: postfix-examples/README.md. Everything here is about the entry of master.cf
where the world's mail comes in; what concerns all of main.cf is in `postfix_lists`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from pbs_policy.command_line import command_line
from pbs_policy.doctor.entry import SmtpdEntry
from pbs_policy.doctor.finding import Finding, check, good, unknown, warning, wrong
from pbs_policy.duration import parse_duration
from pbs_policy.host import READ, WRITE, Host, NotLookedAt, is_for_root
from pbs_policy.postfix.configuration import PostfixConfig
from pbs_policy.postfix.placing import ListError, Misplaced, by_hand, check_for, misplaced, right_list
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


def check_relaying(entry: SmtpdEntry) -> Iterator[Finding]:
    """Whether a relay attempt at this entry of master.cf asks the service, and what happens where it cannot be."""
    yield from _check_words(entry)
    if not is_balanced(entry.value(entry.relay)):
        return
    restrictions, ours = entry.restrictions(), entry.ours()
    at = ours[0] if ours else _likely_ours(restrictions)
    if at is None:
        yield from _check_asked(entry, is_asked=False)
        return
    asked = parse_policy_check(restrictions[at].argument)
    yield from _check_address(entry, asked, is_ours=bool(ours))
    if ours:
        yield from _check_asked(entry, is_asked=True)
    found = misplaced(restrictions, at, entry.restrictions(RECIPIENT))
    yield from _check_order(entry, found)
    if not found or found.only_mail_in:
        yield from _check_inbound(entry, found)
    if asked.fault:
        yield from _check_braces(entry, asked)
    else:
        yield from _check_default_action(entry, asked)
        yield from _check_tries(entry, asked)
        yield from _check_timeout(entry, asked)
    if asked.endpoint.startswith("unix:"):
        yield from check_socket(entry, asked.endpoint)


@check("postfix.syntax")
def _check_words(entry: SmtpdEntry) -> Iterator[Finding]:
    """What smtpd does not read in any of its lists, a finding for each list."""
    classes = entry.config.classes(entry.service)
    for name in LISTS:
        if not is_balanced(entry.value(name)):
            seen = f"smtpd does not read it: the braces of {name} do not match"
            yield wrong(seen, entry.place(name), "each { needs a } of its own")
            continue
        for each in entry.restrictions(name):
            if not each.is_known and each.name not in classes:
                seen = f"{each.name} in {name} is no restriction: smtpd answers 451 where it comes to it"
                mend = f"correct {each.name} in {each.stands_in}, or take it out"
                yield wrong(seen, entry.place(each.stands_in), mend)
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


@check("postfix.address")
def _check_address(entry: SmtpdEntry, asked: PolicyCheck, is_ours: bool) -> Finding:
    if is_ours:
        return good(f"Postfix asks {asked.endpoint}", entry.place())
    right = endpoint_of(entry.listeners[0], entry.config.queue_directory)
    seen = f"Postfix asks {asked.endpoint}, and the service listens at {', '.join(map(str, entry.listeners))}"
    return wrong(seen, entry.place(), f"write {right} there, or set listen in pbs-policy.conf")


@check("postfix.relay_restrictions")
def _check_asked(entry: SmtpdEntry, is_asked: bool) -> Finding:
    if is_asked:
        return good(f"{entry.relay} asks the service", entry.place())
    finding = _not_asked(entry)
    others = (entry._replace(service=each) for each in entry.config.port_25() if each != entry.service)
    # Where another one asks, it may be meant so: an address for the world's mail, another one for clients.
    return replace(finding, level="warning") if any(each.ours() for each in others) else finding


def _not_asked(entry: SmtpdEntry) -> Finding:
    relay, line = entry.relay, recommend(entry)
    if entry.service and entry.sets(relay) and entry._replace(service=None).ours(relay):
        name = entry.service.name
        seen = f"the entry {name} of master.cf sets {relay} itself, without the policy service"
        return wrong(seen, entry.place(), f"remove -o {relay}=... from the entry {name}")
    for name in LISTS:
        if entry.ours(name):
            seen = f"the policy service is asked in {name}, and {relay} refuses relay attempts without asking it"
            return wrong(seen, entry.place(name), f"{line} (and not in {name})")
    for name in entry.config.classes(entry.service):
        if entry.ours(name):
            seen = f"the class {name} asks the policy service; no list names it, an access table may"
            return unknown(seen, entry.place(name), line)
    return wrong(f"{relay} does not ask the policy service", entry.place(), line)


@check("postfix.order", "the policy service is asked before relaying is refused")
def _check_order(entry: SmtpdEntry, found: Misplaced | None) -> Iterator[Finding]:
    if found and not found.only_mail_in:
        yield wrong(found.why, entry.place(), recommend(entry))


@check("postfix.inbound", "mail for your own domains does not ask the policy service")
def _check_inbound(entry: SmtpdEntry, found: Misplaced | None) -> Iterator[Finding]:
    if found:
        yield warning(found.why, entry.place(), recommend(entry))


@check("postfix.syntax")
def _check_braces(entry: SmtpdEntry, asked: PolicyCheck) -> Finding:
    mend = f"{CHECK} {{ {asked.endpoint}, timeout=2s, try_limit=2, {{ default_action = {_DEFER} }} }}"
    mend = f"write {asked.mend}" if asked.mend else mend
    return wrong(f"smtpd does not start: {asked.fault}", entry.place(), mend)


@check("postfix.default_action")
def _check_default_action(entry: SmtpdEntry, asked: PolicyCheck) -> Finding:
    """What smtpd does while the service is down. It takes the text as the result of an access table (access(5)): an
    action, a number for OK, or a list of restrictions and classes."""
    place = entry.place()
    action = asked.attributes.get("default_action") or entry.value("smtpd_policy_service_default_action")
    word = action.split()[0].upper() if action else ""
    mend = f"{{ default_action = {_DEFER} }}, inside the braces of check_policy_service"
    if word in ("DEFER_IF_REJECT", "DEFER"):
        return good(f"while the service is down: {action}", place)
    does = []
    for each in parse_restrictions(action):
        is_class = each.name in entry.config.classes(entry.service)
        does += entry.restrictions(each.name) if is_class else [each]
    permits = [each.name for each in does[: find_refusal(does)] if each.name.upper() in ("OK", "RELAY", "PERMIT")]
    if permits or (word.isdecimal() and word == action):
        return wrong(f"default_action = {action}: an open relay for as long as the service is down", place, mend)
    if any(each.name.startswith(("permit_", "check_")) for each in does):
        return warning(f"default_action = {action}: while the service is down that decides who relays", place, mend)
    loses = word in _LIKE_DUNNO or word.startswith("5")
    what = "a client that may relay loses its message" if loses else "clients read of a configuration problem"
    return warning(f"default_action = {action}: while the service is down {what}", place, mend)


@check("postfix.tries", "smtpd connects again when the service was restarted")
def _check_tries(entry: SmtpdEntry, asked: PolicyCheck) -> Iterator[Finding]:
    """With one try smtpd does not connect again before its session ends."""
    if _attribute(entry.config, asked, "try_limit") == "1":
        seen = "one try: after a restart of the service, or when it closes a connection, 450 until the session ends"
        yield warning(seen, entry.place(), "try_limit=2, inside the braces")


@check("postfix.timeout")
def _check_timeout(entry: SmtpdEntry, asked: PolicyCheck) -> Finding:
    mend = "timeout=2s, try_limit=2, inside the braces"
    try:
        wait = _longest_wait(entry.config, asked)
    except ValueError as error:
        seen = f"smtpd does not start: a time of check_policy_service is not understood: {error}"
        return wrong(seen, entry.place(), mend)
    if wait > _LONGEST_WAIT:
        return warning(f"a service that hangs costs a client {wait} s for each recipient", entry.place(), mend)
    return good(f"a service that hangs costs a client {wait} s", entry.place())


def _longest_wait(config: PostfixConfig, asked: PolicyCheck) -> int:
    """Seconds: each try has its time-out, with a pause in between."""
    tries = int(_attribute(config, asked, "try_limit") or 2)
    pause = parse_duration(_attribute(config, asked, "retry_delay") or "1s") if tries > 1 else 0
    return tries * parse_duration(_attribute(config, asked, "timeout") or "100s") + (tries - 1) * pause


def _attribute(config: PostfixConfig, asked: PolicyCheck, name: str) -> str:
    return asked.attributes.get(name) or config.value(f"smtpd_policy_service_{name}")


@check("postfix.socket")
def check_socket(entry: SmtpdEntry, endpoint: str) -> Finding:
    """Whether smtpd finds the unix socket, chrooted or not, and may connect to it."""
    config, host, place = entry.config, entry.host, entry.place()
    path, queue = endpoint.partition(":")[2], config.queue_directory
    chrooted = entry.service is not None and entry.service.chrooted
    outside = str(PurePosixPath(queue, path.lstrip("/") if chrooted else path))
    if chrooted and path.startswith("/"):
        under = os.path.relpath(path, queue) if path.startswith(f"{queue}/") else "pbs-policy/policy"
        seen = f"smtpd is chrooted in {queue} and looks for {outside}: an absolute path is not found there"
        return wrong(seen, place, f"unix:{under}, and listen = unix:{queue}/{under} in pbs-policy.conf")
    owner = config.value("mail_owner") or "postfix"
    try:
        account = host.account(owner)
        group, folder = host.group(account), str(PurePosixPath(outside).parent)
        make = command_line("install", "-d", "-o", "pbs-policy", "-g", group, "-m", "2750", folder)
        mend = f"start the service; its folder: {make}"
        if not stat.S_ISSOCK(host.owned(outside).mode):
            return wrong(f"{outside} is not a socket", place, mend)
        obstacle = host.obstacle(account, outside, READ | WRITE)
    except FileNotFoundError:
        return wrong(f"there is no socket {outside}", place, mend)
    except KeyError:
        seen = f"Postfix does not start: there is no user {owner} (mail_owner)"
        return wrong(seen, config.place("mail_owner"), command_line("useradd", about=owner))
    except (NotLookedAt, OSError) as error:
        return unknown(f"{outside}: {error}", place)
    if obstacle:
        mend = f"unix_socket_group = {group} and unix_socket_mode = 0660 in pbs-policy.conf"
        return wrong(f"smtpd cannot ask the service: {obstacle}", place, mend)
    return good(f"smtpd may connect to {outside}", place)


@check("postfix.running", "Postfix runs")
def check_running(config: PostfixConfig, host: Host) -> Iterator[Finding]:
    """Whether Postfix runs at all. Only root can see its lock."""
    if not is_running(host, config):
        yield wrong("Postfix does not run: nobody's mail is taken", config.main_cf, "postfix start; its log says why")


@check("postfix.smtpd", "smtpd takes this configuration")
def check_smtpd(entry: SmtpdEntry) -> Iterator[Finding]:
    """Whether the real smtpd takes the configuration: the last check, for what no other one knows."""
    config = entry.config
    why = why_smtpd_ends(entry.host, config, entry.service)
    if is_for_root(why):
        yield unknown(why, config.main_cf)
    elif why:
        named = [name for name in config.lines if name in why.replace(":", " ").split()]
        place = entry.place(named[0]) if named else config.main_cf
        yield wrong(f"smtpd ends at once, and takes no mail: {why}", place, "correct what it names")


def recommend(entry: SmtpdEntry) -> str:
    """The line with our check in its place: the site's own list where that place is certain. Else what to do by hand;
    and a relay list like that of the example where there is none, or where the old recipient list still decides."""
    config, name, queue = entry.config, entry.relay, entry.config.queue_directory
    endpoint = endpoint_of(entry.listeners[0], queue)
    written = entry.value(name) if entry.sets(name) else config.written.get(name)
    text = entry.value(name) if written is None else written
    if name == RECIPIENT and not entry.ours():
        name, text = RELAY, f"permit_mynetworks, permit_sasl_authenticated, {REFUSING[0]}"

    def is_ours(each: Restriction) -> bool:
        asked = parse_policy_check(each.argument).endpoint if each.name == CHECK else ""
        return bool(asked) and any(is_at(asked, listener, queue) for listener in entry.listeners)

    try:
        value = right_list(text, check_for(endpoint), is_ours, config.classes(entry.service))
    except ListError as error:
        return f"{error}. By hand: {by_hand(name, endpoint)}"
    return f"-o {{ {name} = {value} }}" if entry.sets(name) else f"{name} = {value}"
