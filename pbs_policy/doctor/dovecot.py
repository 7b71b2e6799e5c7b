"""Checks of Dovecot: is every POP3 and IMAP login recorded, by the post-login script, last_login, or a report?

What each mistake leads to was observed on 2.3.19 and 2.4.1: dovecot-hooks/README.md. What the script finds when it
runs (files, settings) is in `script`, the plugin's own settings in `last_login`, reports in `reports`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pbs_policy.doctor.finding import Finding, check, good, unknown, warning, wrong
from pbs_policy.dovecot.auth import passdbs
from pbs_policy.dovecot.doveconf import DovecotConfig
from pbs_policy.dovecot.logins import SCRIPT, Hook, chain, executable, find_hooks, service_behind, sockets
from pbs_policy.host import Host, NotLookedAt
from pbs_policy.settings import Settings

_ANVIL = ("service anvil", "unix_listener anvil")
_HOOKS_FOR_EACH = "a service for each protocol (pbs-policy install-hook shows both)"


def check_logins(config: DovecotConfig, plugin: list[str], reported: list[str], host: Host) -> Iterator[Finding]:
    """Whether the logins of each protocol are recorded, and whether anything is in their way. `plugin` are the
    protocols whose logins last_login records, `reported` those whose logins Dovecot reports."""
    hooks = find_hooks(config)
    for protocol in config.protocols():
        yield from _check_blanks(config, protocol)
        yield from _check_sockets(config, protocol)
    hooked = [hook.protocol for hook in hooks]
    ways = {"the post-login script": hooked, "Dovecot's reports": reported, "the last_login plugin": plugin}
    yield from _check_recorded(config, ways, host)
    for hook in hooks:
        yield from _check_chain(config, hook, [each.service for each in hooks].count(hook.service) > 1)
        yield from _check_root(config, hook)
    yield from _check_both(config, hooked, plugin, reported)
    if not reported:  # a report is made on a proxy, too
        yield from _check_proxy(config)


@check("dovecot.executable")
def _check_blanks(config: DovecotConfig, protocol: str) -> Iterator[Finding]:
    for name in (protocol, *(service_behind(config, socket) for socket in sockets(config, protocol))):
        block = (f"service {name}",)
        value = config.value(block, "executable")
        if "  " in value:
            seen = f"executable of {block[0]} has two blanks in a row: an empty argument, and every login is refused"
            yield wrong(seen, config.place(block, "executable"), f"executable = {' '.join(value.split())}")


@check("dovecot.listener")
def _check_sockets(config: DovecotConfig, protocol: str) -> Iterator[Finding]:
    for socket in sockets(config, protocol):
        service = service_behind(config, socket)
        if not config.has_block((f"service {service}", f"unix_listener {socket}")):
            seen = f"service {protocol} asks {socket} at each login, and no service listens there: every login is"
            named = service if service in config.services() else protocol
            mend = f"unix_listener {socket} {{ }} in service {service}"
            yield wrong(f"{seen} refused", config.place((f"service {named}",), "executable"), mend)


@check("dovecot.recorded")
def _check_recorded(config: DovecotConfig, ways: dict[str, list[str]], host: Host) -> Iterator[Finding]:
    """`ways` are what records logins, with the protocols whose logins it records."""
    served = config.protocols()
    missing = [protocol for protocol in served if not any(protocol in recorded for recorded in ways.values())]
    by_service: dict[str, list[str]] = {}
    for protocol in missing:
        for socket in sockets(config, protocol)[:1]:
            by_service.setdefault(service_behind(config, socket), []).append(protocol)
    for service, protocols in by_service.items():
        yield _judge_own_script(config, service, protocols, host)
    silent = [protocol for protocol in missing if not sockets(config, protocol)]
    for protocol in silent:
        place = config.place((f"service {protocol}",), "executable")
        block = f"service {protocol} {{ executable = {protocol} {protocol}-postlogin }}"
        say = wrong if len(silent) == len(served) else warning
        seen = f"{protocol} logins are not recorded: no post-login script"
        yield say(seen, place, f"{block} (dovecot-hooks/pbs-policy.conf)")
    if not missing:
        by = " and ".join(way for way, protocols in ways.items() if protocols)
        yield good(f"{' and '.join(served)} logins are recorded by {by}")


def _judge_own_script(config: DovecotConfig, service: str, protocols: list[str], host: Host) -> Finding:
    """A script of the site's own may run ours, or write to the login table itself: one that names them does."""
    place = config.place((f"service {service}",), "executable")
    words = executable(config, service).split()
    script = next((word for word in words if word.startswith("/") and not word.endswith("/script-login")), "")
    logins = f"{' and '.join(protocols)} logins"
    mend = f"executable = {chain(words, f'/usr/local/lib/pbs-policy/{SCRIPT}', protocols[0])}"
    if len(protocols) > 1:  # each login is recorded as of the protocol that stands there
        mend = f"{_HOOKS_FOR_EACH}; in that of {protocols[0]}: {mend}"
    mend = f"see that it runs {SCRIPT} last: {mend}"
    try:
        text = host.read(script)
    except NotLookedAt as error:
        return unknown(f"whether {logins} are recorded: a script of your own runs: {error}", place, mend)
    if any(name in text for name in (SCRIPT.encode(), b"pbs:login:")):
        return good(f"{logins} run {script}, which names {SCRIPT} or the login table", place)
    return unknown(f"whether {logins} are recorded: {script} does not name {SCRIPT}", place, mend)


@check("dovecot.chain")
def _check_chain(config: DovecotConfig, hook: Hook, shared: bool) -> Iterator[Finding]:
    """Whether a chain is right. What is proposed keeps every script of the site's."""
    value = config.value((f"service {hook.service}",), "executable")
    mend = f"executable = {hook.right_executable}"
    if value.split()[0].rpartition("/")[2] != "script-login":
        seen = f"executable of service {hook.service} does not begin with script-login: every login is refused"
        yield from _executable(wrong(seen, hook.place, mend))
    elif hook.after:
        seen = f"{hook.after[0]} runs after {SCRIPT} in service {hook.service}: a login that it refuses is recorded"
        yield wrong(f"{seen} by then, and permits", hook.place, mend)
    elif hook.recorded_service != hook.protocol:
        seen = f"{hook.protocol} logins are recorded as of the service {hook.recorded_service or 'unknown'!r}"
        if shared:
            mend = f"{_HOOKS_FOR_EACH}; in that of {hook.protocol}: {mend}"
        yield from _executable(warning(seen, hook.place, mend))
    else:
        if "  " not in value:
            yield from _executable(good(f"{hook.protocol}: {value}", hook.place))
        yield good(f"{SCRIPT} is the last script before the session", hook.place)


@check("dovecot.executable")
def _executable(finding: Finding) -> Finding:
    return finding


@check("dovecot.user")
def _check_root(config: DovecotConfig, hook: Hook) -> Iterator[Finding]:
    if not hook.user or hook.user == "root":
        mend = "user = one who may do what all its scripts do, and not root" if hook.others else "user = pbs-policy"
        place = config.place((f"service {hook.service}",), "user")
        yield wrong(f"service {hook.service} runs the script as root", place, mend)


@check("dovecot.both")
def _check_both(
    config: DovecotConfig, hooked: list[str], plugin: list[str], reported: list[str]
) -> Iterator[Finding]:
    both = [each for each in plugin if each in reported or each in hooked]
    if both:
        is_reported = both[0] in reported
        other = "Dovecot reports" if is_reported else "the script records"
        seen = f"{' and '.join(both)}: last_login writes over what {other}, and loses the user"
        mend = "take last_login out of mail_plugins" + ("" if is_reported else ", or pbs-policy.conf away")
        yield warning(seen, config.place((f"protocol {both[0]}",), "mail_plugins"), mend)


@check("dovecot.proxy", "no passdb of the configuration makes this host a proxy")
def _check_proxy(config: DovecotConfig) -> Iterator[Finding]:
    """A proxied login opens no mailbox here, and runs neither script nor plugin."""
    for line in [passdb.proxies for passdb in passdbs(config) if passdb.proxies][:1]:
        seen = "passdb sets proxy: a proxied login runs no post-login script here, and is not recorded"
        mend = "record logins on the backends; login_trusted_networks there names this proxy"
        yield warning(seen, line.place, mend)


@check("dovecot.sessions")
def check_anvil(config: DovecotConfig, settings: Settings) -> Iterator[Finding]:
    """Who may ask Dovecot who is connected: the recorder, which keeps logins alive, and nobody else. Nothing where no
    recorder is set up, or it is to renew nothing."""
    if not settings.reports_listen or not settings.renew_sessions:
        return
    group, mode = config.value(_ANVIL, "group"), config.value(_ANVIL, "mode")
    place = config.place(_ANVIL, "mode" if mode else "group" if group else "")
    bits = int(mode, 8) if re.fullmatch(r"0?[0-7]{3}", mode) else 0o600
    if bits & 0o002:
        seen = "every user of this host may write to Dovecot's anvil socket, and so have a login kept alive"
        yield wrong(seen, place, "mode = 0660, and a group of the recorder alone")
    elif bits & 0o060 == 0o060 and group:
        yield good(f"the group {group} may ask who is connected, and the recorder renews their logins", place)
    else:
        seen = "the recorder may not ask Dovecot who is connected: users who stay connected may not relay for long"
        yield warning(seen, place, "dovecot-hooks/sessions.conf and a restart of Dovecot, or renew_sessions = 0")
