"""`pbs-policy doctor`: looks at the installation as it is, and names what is wrong, where, and what mends it.

Each module holds the checks of one part. They take what was read (`PostfixConfig`, `DovecotConfig`, `StoreFacts`) and
yield a `Finding` for each thing they looked at. What cannot be looked at is a finding as well, never
an exception. Nothing is changed on the host, but for one key for a second (`store.write`) and the trial's logins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pbs_policy.command_line import command_line
from pbs_policy.doctor import (
    access_tables,
    denies,
    dovecot,
    dovecot_auth,
    last_login,
    numbers,
    open_relay,
    postfix,
    postfix_lists,
    proxy,
    reports,
    rewriting,
    script,
    service,
    sessions,
    store,
    store_places,
    store_replicas,
    strangers,
    trial,
    trusted,
    units,
    use,
)
from pbs_policy.doctor.finding import AS_ROOT, Finding, good, not_looked_at, unknown, where, wrong
from pbs_policy.doctor.store_facts import gather
from pbs_policy.dovecot.doveconf import DovecotConfig, DovecotFault, read_dovecot
from pbs_policy.dovecot.last_login import plugin_protocols
from pbs_policy.dovecot.logins import Hook, find_hooks
from pbs_policy.host import Host, NotInstalled, NotLookedAt, is_for_root
from pbs_policy.postfix.configuration import PostfixConfig, PostfixFault, read_postfix
from pbs_policy.settings import Settings
from pbs_policy.settings.sources import SettingsError, Value
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.table.login_table import LoginTable

if TYPE_CHECKING:
    from pbs_policy.store.connect import RedisClient

_KEEPS_WRITES = {"store.reachable", "store.persistence", "store.replica"}
"""Where one of these is at fault the script cannot write to that Redis either."""

_KEEPS_TRIAL = {"dovecot.user", "dovecot.script", "dovecot.settings_file", "dovecot.settings", "dovecot.files",
                "store.read", "store.write", "service.answers", *_KEEPS_WRITES}  # fmt: skip
"""Where one of these is at fault the trial fails, and says nothing new."""

Connect = Callable[[Settings], "RedisClient"]


def connect(settings: Settings) -> RedisClient:
    """The Redis that `settings` name, as their user. Raises SettingsError for an unreadable password file."""
    from pbs_policy.store.connect import connect_by

    return connect_by(settings, even_replica=True)


def connect_as_script(settings: Settings) -> RedisClient:
    """The same for a user who may only write."""
    from pbs_policy.store.connect import connect_by

    return connect_by(settings, even_replica=True, probe=store.trial_write(settings))


@dataclass
class Doctor:
    """The installation to look at: the service's settings with their places, the two configurations ("" for the
    system's own), and whether to try a whole login."""

    settings: Settings
    values: Mapping[str, Value]
    postfix_directory: str = ""
    dovecot_file: str = ""
    with_trial: bool = True
    host: Host = field(default_factory=Host)
    connect: Connect = connect
    connect_script: Connect = connect_as_script

    def examine(self) -> Iterator[Finding]:
        """Look at everything, part by part, and say each thing as it is found. What follows from a fault that was
        said is not said again."""
        told: set[str] = set()
        for finding in self._examine(told):
            if finding.level in ("wrong", "unknown"):
                told.add(finding.check)
            yield finding

    def _examine(self, told: set[str]) -> Iterator[Finding]:
        """`told` are the checks that have found a fault so far."""
        postfix_seen: list[PostfixConfig] = []
        dovecot_seen: list[DovecotConfig] = []
        hooks: list[Hook] = []
        tables: list[LoginTable] = []
        yield from _guarded("settings.files", self._examine_files())
        yield from _guarded("postfix.configuration", self.examine_postfix(postfix_seen))
        yield from _guarded("dovecot.configuration", self.examine_dovecot(hooks, dovecot_seen))
        yield from _guarded(proxy.CHECK, self.examine_both(postfix_seen, dovecot_seen))
        yield from _guarded("store.reachable", self.examine_store(tables))
        for table in tables:
            yield from _guarded("dovecot.last_login_users", self.examine_last_login(dovecot_seen, table))
            yield from _guarded(rewriting.CHECK, self._examine_rewriting(table, postfix_seen))
        yield from _guarded("store.write", self._examine_script_access(hooks, told))
        yield from _guarded(units.CHECK, units.check_units(self.host))
        store_told = bool(told & {"store.reachable", "store.read"})
        yield from _guarded("service.answers", service.check_service(self.settings, self.values, store_told))
        for table in tables:
            if not told & _KEEPS_TRIAL:
                yield from _guarded("service.trial", self._examine_trial(hooks, dovecot_seen, table))
            yield from _guarded("use.private_addresses", self._examine_use(table, postfix_seen))
            yield from _guarded("service.version", numbers.check_numbers(table))

    def _examine_files(self) -> Iterator[Finding]:
        settings = self.settings
        for name, load in (("sender_maps", settings.load_sender_maps), ("denies", settings.load_denies)):
            place = where(self.values[name])
            try:
                file = load()
            except SettingsError as error:
                for fault in error.faults:
                    if is_for_root(fault):
                        yield not_looked_at("settings.files", fault, place)
                    else:
                        yield wrong("settings.files", fault, place, "edit that line; the service reads it by itself")
            else:
                if file is not None:
                    yield good("settings.files", f"{name}: {file.file} is sound", place)

    def examine_postfix(self, seen: list[PostfixConfig]) -> Iterator[Finding]:
        """The checks of Postfix. What was read is appended to `seen`."""
        try:
            config = read_postfix(self.host, self.postfix_directory)
        except NotLookedAt as error:
            absent = not self.postfix_directory and isinstance(error, NotInstalled)
            say = not_looked_at if absent else unknown
            yield say("postfix.configuration", str(error), self.postfix_directory, "--postfix-config DIR")
            return
        except PostfixFault as error:
            folder = ["-c", self.postfix_directory] if self.postfix_directory else []
            why = f"postconf does not take it: {error}"
            yield wrong("postfix.configuration", why, error.place, command_line("postconf", *folder, "-n"))
            return
        seen.append(config)
        found = []
        for finding in self._check_postfix(config):
            found.append(finding)
            yield finding
        if not self.postfix_directory and os.geteuid() == 0:  # of another folder it may be that it is not to run
            yield postfix.check_running(config, self.host)
        if not any(each.level == "wrong" for each in found):  # else smtpd has nothing else to say
            yield from dict.fromkeys(postfix.check_smtpd(config, each, self.host) for each in config.port_25())

    def _check_postfix(self, config: PostfixConfig) -> Iterator[Finding]:
        listeners, host = self.settings.listen, self.host
        found: dict[Finding, None] = {}  # what is said of two entries is said once
        for entry in config.port_25():
            found |= dict.fromkeys(postfix.check_relaying(config, entry, listeners, host))
            found |= dict.fromkeys(postfix_lists.check_lists(config, entry, listeners))
        found |= dict.fromkeys(open_relay.check_open_relay(config, host))
        for way in config.ways_in(listeners):
            found |= dict.fromkeys(access_tables.check_access(config, way, listeners, host))
        yield from found
        yield from strangers.check_strangers(config, listeners)
        yield from trusted.check_xclient(config, host)
        yield from trusted.check_listeners(config)

    def examine_dovecot(self, hooks: list[Hook], seen: list[DovecotConfig]) -> Iterator[Finding]:
        """The checks of Dovecot. How it runs the script is appended to `hooks`, what was read to `seen`."""
        try:
            config = self._read_dovecot()
        except NotLookedAt as error:
            absent = not self.dovecot_file and isinstance(error, NotInstalled)
            say = not_looked_at if absent else unknown
            yield say("dovecot.configuration", str(error), self.dovecot_file, "--dovecot-config FILE")
            return
        except DovecotFault as error:
            its_file = ["-c", self.dovecot_file] if self.dovecot_file else []
            yield wrong("dovecot.configuration", str(error), error.place, command_line("doveconf", "-n", *its_file))
            return
        seen.append(config)
        for file in config.unread:
            why = f"what stands in {file} is not known: Permission denied"
            yield not_looked_at("dovecot.configuration", why, file)
        hooks += find_hooks(config)
        plugin = plugin_protocols(config, self.settings.key_prefix)
        reported = reports.reported_protocols(config, self.settings)
        yield from dovecot.check_logins(config, plugin, reported, self.host)
        yield from dovecot_auth.check_auth(config, plugin, self.settings, self.host)
        yield from trusted.check_dovecot(config)
        yield from script.check_script(hooks, self.settings, self.values, self.host)
        yield from last_login.check_plugin(config, self.settings)
        yield from reports.check_reports(config, self.settings, self.host)
        yield from sessions.check_anvil(config, self.settings)

    def examine_both(self, postfix_seen: list[PostfixConfig], dovecot_seen: list[DovecotConfig]) -> Iterator[Finding]:
        """The check of Postfix and Dovecot together, on what the other two have read."""
        yield from proxy.check_proxy(next(iter(postfix_seen), None), next(iter(dovecot_seen), None))

    def examine_last_login(self, seen: list[DovecotConfig], table: LoginTable) -> Iterator[Finding]:
        """The check of last_login that needs the login table."""
        for config in seen:
            try:
                yield from last_login.check_users(config, self.settings, table)
            except (StoreUnavailable, SettingsError) as error:
                yield not_looked_at("dovecot.last_login_users", str(error))

    def _read_dovecot(self) -> DovecotConfig:
        return read_dovecot(self.host, self.dovecot_file)

    def examine_store(self, tables: list[LoginTable]) -> Iterator[Finding]:
        """The checks of Redis. The login table is appended to `tables` where it can be read."""
        place = where(self.values["redis_url"])
        try:
            yield from store_places.check_places(self.settings, place)
            redis = self.connect(self.settings)
            table = LoginTable(redis, self.settings.key_prefix, user_domain=self.settings.user_domain)
            yield from store.check_read(table, self.settings, place)
            facts = gather(redis)
            yield from store.check_store(facts, place)
            yield from store_replicas.check_replicas(facts, self.settings, place)
            yield from store.check_rights(facts, "service", self.settings, place)
            yield from store.check_ends(redis, self.settings)
            yield from denies.check_denies(table)
            yield from store.check_durable(facts, table)
            tables.append(table)
        except (StoreUnavailable, SettingsError) as error:
            seen = f"Redis at {self.settings.redis_url} is unavailable: {error}"
            if is_for_root(seen):
                # The service's user may well reach what we may not: its socket, its password.
                yield not_looked_at("store.reachable", f"Redis at {self.settings.redis_url}: {error}", place)
            else:
                mend = "systemctl status redis-server; redis_url, redis_user, redis_password_file"
                if "MOVED " in seen:
                    mend = "a Cluster has redis_url = redis+cluster://HOST[,HOST...], key_prefix = {pbs}:"
                yield wrong("store.reachable", seen, place, mend)

    def _examine_script_access(self, hooks: list[Hook], told: set[str]) -> Iterator[Finding]:
        """What the script may do in Redis, once for each user and settings file that it is run with."""
        ways = {(hook.settings_file, hook.user): hook for hook in hooks}
        for hook in ways.values():
            try:
                own, values = script.script_settings(hook, self.host)
                if told & _KEEPS_WRITES and script.same_redis(own, self.settings):
                    continue
                # What these settings name (a password file, a key, a socket) is what that user chose.
                with self.host.acting_as(hook.user):
                    findings = list(self._check_script_access(own, where(values["redis_url"])))
            except (SettingsError, NotLookedAt) as error:
                if not told & {"dovecot.user", "dovecot.settings_file", "dovecot.files"}:
                    yield unknown("store.write", f"as the script's user: {error}", hook.place, AS_ROOT)
            else:
                yield from findings

    def _check_script_access(self, own: Settings, place: str) -> Iterator[Finding]:
        redis = self.connect_script(own)
        yield from store.check_write(redis, own, place)
        try:
            yield from store.check_rights(gather(redis), "script", own, place)
        except StoreUnavailable as error:
            yield not_looked_at("store.rights", str(error), place)

    def _examine_trial(self, hooks: list[Hook], seen: list[DovecotConfig], table: LoginTable) -> Iterator[Finding]:
        if not self.with_trial:
            return
        ways = [trial.by_script(hook, self.host) for hook in hooks]
        for config in seen:
            for protocol in reports.reported_protocols(config, self.settings):
                ways.append(reports.by_report(config, protocol, self.settings, table, self.host))
        if not ways:
            yield not_looked_at("service.trial", "no post-login script of ours is run here, and nothing is reported")
        for way in ways:
            yield from trial.check_trial(way, self.settings, table)

    def _examine_rewriting(self, table: LoginTable, seen: Iterable[PostfixConfig]) -> Iterator[Finding]:
        for config in seen:
            try:
                yield rewriting.check_rewriting(config, table.denies(), self.settings.load_denies())
            except (StoreUnavailable, SettingsError) as error:
                yield not_looked_at(rewriting.CHECK, f"whether a user is denied: {error}")

    def _examine_use(self, table: LoginTable, seen: Iterable[PostfixConfig]) -> Iterator[Finding]:
        inet_protocols = next((each.value("inet_protocols") for each in seen), "")
        try:
            yield from use.check_use(table.entries(), inet_protocols, self.host)
        except StoreUnavailable as error:
            yield not_looked_at("use.private_addresses", str(error))


def _guarded(check: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Whatever goes wrong in one part, the others are looked at."""
    try:
        yield from findings
    except Exception as error:  # noqa: BLE001 - an installation may be broken in ways that nobody has thought of
        yield unknown(check, f"a fault of this program: {error!r}", "", "please report it")


def settings_faults(error: SettingsError) -> Iterator[Finding]:
    """A finding for each fault of the settings file; nothing else can be looked at then."""
    for fault in error.faults:
        place, _, what = fault.partition(": ")
        yield wrong("settings", what, place, "edit that line; pbs-policy config shows what is read")
