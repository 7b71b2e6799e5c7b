"""The whole trial: a login is recorded as Dovecot has it recorded, the service permits it, the login goes, the
service does not.

The client is a random address of a documentation network (RFC 5737, RFC 3849), from which no packet ever comes, and
the user is a random name of example.invalid, or of one of the login_domains: nobody real is permitted by it. The
service is told that somebody only asks, so neither caps nor report count it. The script reads its own settings file
with one line added, a `ttl` of a few seconds, so that even a trial that is killed leaves nothing for longer.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NamedTuple

from pbs_policy.address import ClientAddress
from pbs_policy.decision import check as decision
from pbs_policy.decision.rules import DUNNO, OK
from pbs_policy.demo.daemons import wait_until
from pbs_policy.doctor.finding import Finding, check, good, not_looked_at, wrong
from pbs_policy.dovecot.logins import Hook
from pbs_policy.host import Account, Host, NotLookedAt
from pbs_policy.log import printable
from pbs_policy.postfix.protocol import as_request
from pbs_policy.postfix.query import ask_once, only_looking, serialise_request
from pbs_policy.settings import Settings
from pbs_policy.settings.sources import DEFAULT_FILE, SettingsError
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.table.login_table import LoginTable
from pbs_policy.trust import Untrusted, create_for, temporary_folder

TTL = 10
"""Seconds: the script waits 0.5 s and the service 0.5 s, on a machine that may be busy."""

_SCRIPT_SECONDS = 5.0  # ten times what the script allows itself
_DRAWS = 5
_SESSION = ("/bin/sh", "-c", "exit 0")


class Trial(NamedTuple):
    """One client of the trial, as Dovecot has its address, and its user."""

    raw: str
    client: ClientAddress
    user: str


@dataclass(frozen=True)
class Way:
    """How Dovecot has the logins of a protocol recorded: `record` does the same for one, and returns what went wrong,
    or ""; it permits for `ttl` seconds. `service` is as which it is recorded, `by` says who does it; `place` is where
    that is configured, `mend` what puts an error right, `agree` what does where the service does not follow."""

    protocol: str
    service: str
    by: str
    place: str
    mend: str
    agree: str
    record: Callable[[Trial], str]
    ttl: int


def by_script(hook: Hook, host: Host) -> Way:
    """The post-login script, run as Dovecot runs it."""
    return Way(
        hook.protocol, hook.recorded_service, "the script has recorded a login", hook.place,
        f"what Dovecot runs: {hook.script}",
        "systemctl reload pbs-policy: it may go by settings from before a change of its file",
        lambda trial: _run_script(trial, hook, host), TTL,
    )  # fmt: skip


@check("service.trial")
def check_trial(way: Way, settings: Settings, table: LoginTable) -> Iterator[Finding]:
    """Try one client of IPv4 and one of IPv6."""
    if settings.services and way.service not in settings.services:
        why = f"trial of {way.protocol}: `services` leaves {way.service or 'its logins'} out"
        yield not_looked_at(why, way.place)
        return
    for version, draw in ((4, _random_v4), (6, _random_v6)):
        name = f"trial of {way.protocol}, IPv{version}"
        try:
            raw, client = _unused(draw, settings, table)
        except (NotLookedAt, StoreUnavailable) as error:
            yield not_looked_at(f"{name}: {error}", way.place)
            continue
        domain = min(settings.login_domains, default="example.invalid")
        trial = Trial(raw, client, f"doctor-{secrets.token_hex(8)}@{domain}")
        try:
            yield from _try(trial, name, way, settings, table)
        except (NotLookedAt, StoreUnavailable, SettingsError) as error:
            yield not_looked_at(f"{name}: {error}", way.place)
        finally:
            with suppress(StoreUnavailable):
                _forget(trial, table)


def _forget(trial: Trial, table: LoginTable) -> None:
    """Take away the login, and what the caps have counted of it."""
    table.revoke_address(trial.client.text)
    counted = [f"address:{trial.client.text}", f"user:{trial.user}"]
    table.redis.ask([(b"DEL", *(key for what in counted for key in table.keys.counted(what.encode())))])


def _unused(draw: Callable[[], str], settings: Settings, table: LoginTable) -> tuple[str, ClientAddress]:
    """An address that nothing in the table is about. Raises NotLookedAt where there is none to be found."""
    for _ in range(_DRAWS):
        raw = draw()
        client = settings.addresses.parse(raw)
        if client.excluded:
            raise NotLookedAt(f"{client.text} is in never_record")
        found, _ends = table.read(table.keys.relay(client.text))
        if not any(found):
            return raw, client
    raise NotLookedAt(f"{_DRAWS} addresses of documentation networks were in use")


def _try(trial: Trial, name: str, way: Way, settings: Settings, table: LoginTable) -> Iterator[Finding]:
    began = time.monotonic()
    said = way.record(trial)
    if said:
        yield wrong(f"{name}: {said}", way.place, way.mend)
        return
    action, seen = _ask(trial, settings, table)
    if action != OK:
        if time.monotonic() - began > way.ttl - 1:
            raise NotLookedAt("this machine was too slow for it")
        seen = f"{name}: {way.by}, and the service answers {seen}"
        yield wrong(seen, way.place, way.agree)
        return
    try:
        table.revoke_address(trial.client.text)
        end = "when it was deleted"
    except StoreUnavailable:  # a user who may only read: the key ends by itself
        if way.ttl > TTL:
            seen = f"{name}: permitted after a login, which nobody may delete here: it ends by itself"
            yield good(seen, way.place)
            return
        end = "when it had ended"
        key = table.keys.login(trial.client.text)
        wait_until(lambda: table.read([key])[0] == [None], seconds=TTL + 2)
    action, seen = _ask(trial, settings, table)
    if action != DUNNO:
        yield wrong(f"{name}: the login is gone, and the service answers {seen}", way.place,
                    "restart the service, and look for a permit (pbs-policy list)")  # fmt: skip
        return
    yield good(f"{name}: permitted after a login, refused {end}", way.place)


def _ask(trial: Trial, settings: Settings, table: LoginTable) -> tuple[str, str]:
    """What the service answers, as an action and as what to show. Under observe_only it answers DUNNO always: then
    the same decision is taken here."""
    attributes = {
        "client_address": trial.client.text.partition("/")[0],
        "sender": trial.user,
        "recipient": "postmaster@example.net",
        "encryption_protocol": "TLSv1.3" if settings.require_tls else "",
    }
    request = only_looking(serialise_request(attributes))
    try:
        action = ask_once(settings.listen[0], request).action
    except OSError as error:
        raise NotLookedAt(f"the service does not answer: {printable(str(error))}") from None
    if not settings.observe_only:
        return action, printable(action)
    maps, denies = settings.load_sender_maps(), settings.load_denies()
    enquiry = decision.Enquiry(table, settings.rules, trial.client, as_request(request[:-1]), maps, denies)
    would_be = decision.check(enquiry).would_be
    return would_be, f"{printable(action)}, and without observe_only {would_be}"


def _run_script(trial: Trial, hook: Hook, host: Host) -> str:
    """Run the script as Dovecot does, as its user where we are root. Returns what went wrong, or ""."""
    account = host.find_account(hook.user, hook.groups)
    try:
        own = _short_lived_settings(hook, host)
        with temporary_folder(account.primary_gid) as folder:
            file = folder / "settings.conf"
            create_for(account.uid, file, own)
            done = _done(trial, hook, account, file)
    except subprocess.TimeoutExpired:
        return f"the script did not end within {_SCRIPT_SECONDS:.0f} s"
    except Untrusted as error:
        raise NotLookedAt(f"not without danger: {error}") from None
    except OSError as error:
        return f"the script cannot be run: {error.strerror}"
    said = printable(done.stderr.decode("utf-8", "replace").strip())
    if done.returncode:
        return f"the script ended with status {done.returncode}, and the login would be refused: {said}"
    return f"the script says: {said}" if said else ""


def _done(trial: Trial, hook: Hook, account: Account, file: Path) -> subprocess.CompletedProcess[bytes]:
    switch = os.geteuid() == 0 and account.uid != 0  # only root can be somebody else
    words = [word for word in hook.words if word not in ("-c", hook.settings_file)]
    return subprocess.run(
        [hook.script, "-c", str(file), *words, *_SESSION],
        env={"IP": trial.raw, "USER": trial.user},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_SCRIPT_SECONDS,
        check=False,
        start_new_session=True,  # without root's terminal, into which it could type
        user=account.uid if switch else None,
        group=account.primary_gid if switch else None,
        extra_groups=sorted(account.gids) if switch else None,
    )


def _short_lived_settings(hook: Hook, host: Host) -> bytes:
    """The script's settings, read as its user, with a ttl of a few seconds behind them: for the script the last line
    counts."""
    path = hook.settings_file or str(DEFAULT_FILE)
    text = host.read_as(hook.user, path, hook.groups) if hook.settings_file or host.locate(path).exists() else b""
    return text + f"\nttl = {TTL}s\n".encode()


def _random_v4() -> str:
    return str(IPv4Address("192.0.2.0") + 1 + secrets.randbelow(254))


def _random_v6() -> str:
    return str(IPv6Address("2001:db8::") + secrets.randbits(96))
