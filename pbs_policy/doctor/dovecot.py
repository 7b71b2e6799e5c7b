"""Checks of Dovecot: is every POP3 and IMAP login recorded, by the post-login script, last_login, or a report?

What each mistake leads to was observed on 2.3.19 and 2.4.1: dovecot-hooks/README.md. What the script finds when it
runs (files, settings) is in `script`, the plugin's own settings in `last_login`, reports in `reports`.
"""

from __future__ import annotations

from collections.abc import Iterator

from pbs_policy.doctor.finding import Finding, good, unknown, warning, wrong
from pbs_policy.dovecot.auth import passdbs
from pbs_policy.dovecot.doveconf import DovecotConfig
from pbs_policy.dovecot.logins import SCRIPT, Hook, chain, executable, find_hooks, service_behind, sockets
from pbs_policy.host import Host, NotLookedAt


def check_logins(config: DovecotConfig, plugin: list[str], reported: list[str], host: Host) -> Iterator[Finding]:
    """Whether the logins of each protocol are recorded, and whether anything is in their way. `plugin` are the
    protocols whose logins last_login records, `reported` those whose logins Dovecot reports."""
    hooks = find_hooks(config)
    served = config.protocols()
    for protocol in served:
        yield from _check_executable(config, protocol)
    yield from _check_recorded(config, served, hooks, plugin, reported, host)
    for hook in hooks:
        yield from _check_hook(config, hook, [each.service for each in hooks].count(hook.service) > 1)
    both = [each for each in plugin if each in reported or each in [hook.protocol for hook in hooks]]
    if both:
        other = "Dovecot reports" if both[0] in reported else "the script records"
        seen = f"{' and '.join(both)}: last_login writes over what {other}, and loses the user"
        place = config.place((f"protocol {both[0]}",), "mail_plugins")
        mend = "take last_login out of mail_plugins" + ("" if both[0] in reported else ", or pbs-policy.conf away")
        yield warning("dovecot.both", seen, place, mend)
    if not reported:  # a report is made on a proxy, too
        yield from _check_proxy(config)


def _check_executable(config: DovecotConfig, protocol: str) -> Iterator[Finding]:
    block = (f"service {protocol}",)
    services = [service_behind(config, socket) for socket in sockets(config, protocol)]
    for each in (block, *((f"service {service}",) for service in services)):
        value = config.value(each, "executable")
        if "  " in value:
            seen = f"executable of {each[0]} has two blanks in a row: an empty argument, and every login is refused"
            mend = f"executable = {' '.join(value.split())}"
            yield wrong("dovecot.executable", seen, config.place(each, "executable"), mend)
    for socket in sockets(config, protocol):
        service = service_behind(config, socket)
        if not config.has_block((f"service {service}", f"unix_listener {socket}")):
            seen = f"{block[0]} asks {socket} at each login, and no service listens there: every login is refused"
            place = config.place((f"service {service}",) if service in config.services() else block, "executable")
            yield wrong("dovecot.listener", seen, place, f"unix_listener {socket} {{ }} in service {service}")


def _check_recorded(
    config: DovecotConfig, served: list[str], hooks: list[Hook], plugin: list[str], reported: list[str], host: Host
) -> Iterator[Finding]:
    hooked = [hook.protocol for hook in hooks]
    missing = [protocol for protocol in served if protocol not in (*hooked, *plugin, *reported)]
    strangers = [protocol for protocol in missing if sockets(config, protocol)]
    silent = [protocol for protocol in missing if protocol not in strangers]
    behind = [service_behind(config, sockets(config, protocol)[0]) for protocol in strangers]
    for service in dict.fromkeys(behind):
        protocols = [protocol for protocol, each in zip(strangers, behind, strict=True) if each == service]
        yield _judge_own_script(config, service, protocols, host)
    for protocol in silent:
        block = (f"service {protocol}",)
        place = config.place(block, "executable")
        mend = (
            f"service {protocol} {{ executable = {protocol} {protocol}-postlogin }} (dovecot-hooks/pbs-policy.conf)"
        )
        say = wrong if len(silent) == len(served) else warning
        yield say("dovecot.recorded", f"{protocol} logins are not recorded: no post-login script", place, mend)
    if not missing:
        ways = {"the post-login script": hooked, "Dovecot's reports": reported, "the last_login plugin": plugin}
        by = " and ".join(way for way, protocols in ways.items() if protocols)
        yield good("dovecot.recorded", f"{' and '.join(served)} logins are recorded by {by}")


def _judge_own_script(config: DovecotConfig, service: str, protocols: list[str], host: Host) -> Finding:
    """A script of the site's own may run ours, or write to the login table itself: one that names them does."""
    check, place = "dovecot.recorded", config.place((f"service {service}",), "executable")
    words = executable(config, service).split()
    script = next((word for word in words if word.startswith("/") and not word.endswith("/script-login")), "")
    logins = f"{' and '.join(protocols)} logins"
    mend = f"executable = {chain(words, f'/usr/local/lib/pbs-policy/{SCRIPT}', protocols[0])}"
    if len(protocols) > 1:  # each login is recorded as of the protocol that stands there
        mend = f"a service for each protocol (pbs-policy install-hook shows both); in that of {protocols[0]}: {mend}"
    mend = f"see that it runs {SCRIPT} last: {mend}"
    try:
        text = host.read(script)
    except NotLookedAt as error:
        return unknown(check, f"whether {logins} are recorded: a script of your own runs: {error}", place, mend)
    if any(name in text for name in (SCRIPT.encode(), b"pbs:login:")):
        return good(check, f"{logins} run {script}, which names {SCRIPT} or the login table", place)
    return unknown(check, f"whether {logins} are recorded: {script} does not name {SCRIPT}", place, mend)


def _check_hook(config: DovecotConfig, hook: Hook, shared: bool) -> Iterator[Finding]:
    """Whether a chain is right. What is proposed keeps every script of the site's."""
    block = (f"service {hook.service}",)
    value = config.value(block, "executable")
    mend = f"executable = {hook.right_executable}"
    if value.split()[0].rpartition("/")[2] != "script-login":
        seen = f"executable of service {hook.service} does not begin with script-login: every login is refused"
        yield wrong("dovecot.executable", seen, hook.place, mend)
    elif hook.after:
        seen = f"{hook.after[0]} runs after {SCRIPT} in service {hook.service}: a login that it refuses is recorded"
        yield wrong("dovecot.chain", f"{seen} by then, and permits", hook.place, mend)
    elif hook.recorded_service != hook.protocol:
        called = hook.recorded_service or "unknown"
        seen = f"{hook.protocol} logins are recorded as of the service {called!r}"
        if shared:
            mend = f"in that of {hook.protocol}: {mend}"
            mend = f"a service for each protocol (pbs-policy install-hook shows both); {mend}"
        yield warning("dovecot.executable", seen, hook.place, mend)
    else:
        if "  " not in value:
            yield good("dovecot.executable", f"{hook.protocol}: {value}", hook.place)
        yield good("dovecot.chain", f"{SCRIPT} is the last script before the session", hook.place)
    if not hook.user or hook.user == "root":
        place = config.place(block, "user")
        mend = "user = one who may do what all its scripts do, and not root" if hook.others else "user = pbs-policy"
        yield wrong("dovecot.user", f"service {hook.service} runs the script as root", place, mend)


def _check_proxy(config: DovecotConfig) -> Iterator[Finding]:
    """A proxied login opens no mailbox here, and runs neither script nor plugin."""
    for passdb in passdbs(config):
        line = passdb.proxies
        if line:
            seen = "passdb sets proxy: a proxied login runs no post-login script here, and is not recorded"
            yield warning("dovecot.proxy", seen, line.place,
                          "record logins on the backends; login_trusted_networks there names this proxy")  # fmt: skip
            return
    yield good("dovecot.proxy", "no passdb of the configuration makes this host a proxy")
