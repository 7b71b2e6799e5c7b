"""Checks of what the post-login script finds when Dovecot runs it: itself, its settings file, what that names.

Everything is judged for the user that the post-login service runs as. An unreadable script refuses every login; an
unreadable settings file loses every record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from pbs_policy import settings as all_settings
from pbs_policy.command_line import command_line, useradd
from pbs_policy.doctor.finding import Finding, check, good, placed, warning, where, wrong
from pbs_policy.dovecot.logins import Hook
from pbs_policy.host import EXECUTE, READ, WRITE, Account, Host
from pbs_policy.settings import Settings
from pbs_policy.settings.sources import DEFAULT_FILE, SettingsError, Value
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.trust import Untrusted

_SHARED = (
    "key_prefix", "ipv6_prefix", "redis_url", "sender_match", "user_domain", "login_domains", "services", "ttl",
    "never_record",
)  # fmt: skip
_LOST = "logins go on, and none is recorded"
_HARMLESS = ("ttl", "never_record")  # the service does not use the one, and applies the other by itself


def check_script(hooks: list[Hook], settings: Settings, values: Mapping[str, Value], host: Host) -> Iterator[Finding]:
    """The script and its settings, once for each way in which it is run. `values` are the service's, with places."""
    ways = {(hook.script, hook.user, hook.settings_file): hook for hook in reversed(hooks)}
    for hook in reversed(ways.values()):
        yield from placed(_check_way(hook, settings, values, host), hook.place)


def _check_way(hook: Hook, settings: Settings, values: Mapping[str, Value], host: Host) -> Iterator[Finding]:
    yield from _check_user(hook, host)
    try:
        account = host.account(hook.user or "root", hook.groups)
    except KeyError:
        return
    yield from _check_files(hook, account, host)
    own: list[tuple[Settings, dict[str, Value]]] = []
    yield from _check_settings_file(hook, account, host, own)
    for theirs in own:
        yield from _compare(*theirs, settings, values)
        yield from _check_named_files(hook, account, *theirs, host)


@check("dovecot.user")
def _check_user(hook: Hook, host: Host) -> Iterator[Finding]:
    try:
        host.account(hook.user or "root")
    except KeyError:
        yield wrong(f"there is no user {hook.user}: Dovecot does not start", hook.place, useradd(hook.user))
        return
    try:
        account = host.account(hook.user or "root", hook.groups)
    except KeyError:
        named = " ".join(filter(None, hook.groups))
        seen = f"not each of the groups of {hook.service} is there ({named}): Dovecot does not start"
        yield wrong(seen, hook.place, f"groups that there are, in group and extra_groups of service {hook.service}")
        return
    if account.uid:
        yield good(f"the script runs as {account.name}", hook.place)


def script_settings(hook: Hook, host: Host) -> tuple[Settings, dict[str, Value]]:
    """The settings that the script reads: from its file alone, as its user. Raises SettingsError, NotLookedAt."""
    with host.acting_as(hook.user, hook.groups):
        if hook.settings_file:
            return all_settings.load(host.locate(hook.settings_file))
        found = host.locate(str(DEFAULT_FILE))
        return all_settings.load(found if found.exists() else None)


@check("dovecot.script")
def _check_files(hook: Hook, account: Account, host: Host) -> Finding:
    folder = PurePosixPath(hook.script).parent
    obstacle = host.obstacle(account, hook.script, READ | EXECUTE)
    if obstacle:
        mend = command_line("install", "-D", "-m", "755", "-t", str(folder), "pbs-postlogin")
        return wrong(f"{obstacle}: every login is refused", hook.place, mend)
    try:
        first = host.read_as(hook.user, hook.script, hook.groups).split(b"\n")[0].decode("utf-8", "replace")
    except Untrusted as error:
        seen = f"others can change what each login runs: {hook.script}: {error}"
        return wrong(seen, hook.place, command_line("ls", "-ld", str(folder), hook.script))
    interpreter = first.removeprefix("#!").split()[0] if first.startswith("#!/") else ""
    if not interpreter or (obstacle := host.obstacle(account, interpreter, EXECUTE)):
        seen = obstacle or f"{hook.script} does not begin with #! and the path of Python"
        return wrong(f"{seen}: every login is refused", hook.place, "apt-get install python3")
    if obstacle := host.obstacle(account, str(folder / "pbs_postlogin.py"), READ):
        return wrong(f"{obstacle}: {_LOST}", hook.place, f"install -m 644 -t {folder} pbs_postlogin.py")
    return good(f"{account.name} may run {hook.script}", hook.place)


@check("dovecot.settings_file")
def _check_settings_file(
    hook: Hook, account: Account, host: Host, own: list[tuple[Settings, dict[str, Value]]]
) -> Finding:
    """What was read is appended to `own`."""
    file = hook.settings_file or str(DEFAULT_FILE)
    obstacle = host.obstacle(account, file, READ)
    is_missing = obstacle.endswith("does not exist")
    if obstacle and (hook.settings_file or not is_missing):
        mend = f"{command_line('chgrp', host.group(account), file)} && {command_line('chmod', '640', file)}"
        mend = f"write {file}, or correct -c in executable" if is_missing else mend
        return wrong(f"{obstacle}: {_LOST}", hook.place, mend)
    try:
        own.append(script_settings(hook, host))
    except SettingsError as error:
        return wrong(f"the script's settings are wrong: {error.faults[0]}", file, f"edit {file}")
    return good(f"{account.name} may read the script's settings", file)


@check("dovecot.files", "the files that the script's settings name are there for it")
def _check_named_files(
    hook: Hook, account: Account, own: Settings, own_values: Mapping[str, Value], host: Host
) -> Iterator[Finding]:
    named = [(own.redis_password_file, READ), (own.redis_url.path, READ | WRITE)]
    named += [(path, READ) for path in (own.redis_tls_ca_file, own.redis_tls_cert_file, own.redis_tls_key_file)]
    named.append((own.sentinel_password_file, READ))
    obstacles = [said for path, need in named if path and (said := host.obstacle(account, path, need))]
    if obstacles:
        place = where(own_values["redis_url"]) or hook.settings_file or str(DEFAULT_FILE)
        mend = f"give the group {host.group(account)} access to it (chgrp, chmod g+r), not everybody"
        yield wrong(f"{obstacles[0]}: {_LOST}", place, mend)


@check("dovecot.settings", "the script and the service have the same settings")
def _compare(
    own: Settings, own_values: Mapping[str, Value], settings: Settings, values: Mapping[str, Value]
) -> Iterator[Finding]:
    """The script's settings against the service's: logins must be written where they are looked for."""
    for name in (name for name in _SHARED if not _agree(name, own, settings)):
        ours, theirs = values[name], own_values[name]
        seen = f"{name} is {theirs.text or 'empty'!r} for the script and {ours.text or 'empty'!r} for the service"
        changes_kind = name == "redis_url" and bool(own.redis_url.path) != bool(settings.redis_url.path)
        say = warning if name in _HARMLESS or changes_kind else wrong
        mend = f"{name} = {ours.text} in the script's file, too".replace("  ", " ")
        yield say(f"{seen} ({ours.place})", where(theirs) or where(ours), mend)


def same_redis(own: Settings, settings: Settings) -> bool:
    """Whether the script writes to the Redis that the service reads."""
    return _agree("redis_url", own, settings)


def _agree(name: str, own: Settings, settings: Settings) -> bool:
    if name == "sender_match":  # the script has something to do for `domain` alone
        return (own.sender_match == "domain") == (settings.sender_match == "domain")
    if name == "redis_url":
        return _place(own.redis_url) == _place(settings.redis_url)
    if name == "never_record":
        return set(own.never_record) == set(settings.never_record)
    same: bool = getattr(own, name) == getattr(settings, name)
    return same


def _place(url: RedisUrl) -> tuple[object, ...]:
    """What must be equal for the two to speak to one Redis; one may use TLS and the other not."""
    places = frozenset(("127.0.0.1" if host in ("localhost", "::1") else host, 0 if url.tls else port)
                       for host, port in url.places)  # fmt: skip
    return places, url.path, url.db, url.master, url.cluster
