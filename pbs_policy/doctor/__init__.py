"""`pbs-policy doctor`: looks at the installation as it is, and names what is wrong, where, and what mends it.

Each module holds the checks of one part. They take what was read (`PostfixConfig`, `DovecotConfig`) or Redis, and
yield a `Finding` for each thing they looked at. What cannot be looked at is a finding as well, never
an exception. Nothing is changed on the host, but for one key for a second (`store.write`) and the trial's logins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from pbs_policy.command_line import command_line
from pbs_policy.doctor import (
    access_tables,
    dovecot,
    dovecot_auth,
    last_login,
    open_relay,
    postfix,
    postfix_lists,
    proxy,
    reports,
    script,
    service,
    store,
    store_keys,
    strangers,
    trial,
    trusted,
    use,
)
from pbs_policy.doctor.entry import SmtpdEntry
from pbs_policy.doctor.finding import Finding, check, good, guarded, not_looked_at, placed, unknown, where, wrong
from pbs_policy.dovecot.doveconf import DovecotConfig, read_dovecot
from pbs_policy.dovecot.last_login import plugin_protocols
from pbs_policy.dovecot.logins import Hook, find_hooks
from pbs_policy.host import ConfigurationFault, Host, NotInstalled, NotLookedAt, is_for_root
from pbs_policy.postfix.configuration import MasterService, PostfixConfig, read_postfix
from pbs_policy.settings import Settings
from pbs_policy.settings.sources import SettingsError, Value
from pbs_policy.store.connect import connect_by
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.table.login_table import LoginTable

_KEEPS_WRITES = {"store.reachable", "store.persistence", "store.replica"}
"""Where one of these is at fault the script cannot write to that Redis either."""

_KEEPS_TRIAL = {"dovecot.user", "dovecot.script", "dovecot.settings_file", "dovecot.settings", "dovecot.files",
                "store.read", "store.write", "service.answers", *_KEEPS_WRITES}  # fmt: skip
"""Where one of these is at fault the trial fails, and says nothing new."""


@dataclass
class Doctor:
    """The installation to look at: the service's settings with their places, the two configurations ("" for the
    system's own), and whether to try a whole login. What was read of it stays None where it could not be read."""

    settings: Settings
    values: Mapping[str, Value]
    postfix_directory: str = ""
    dovecot_file: str = ""
    with_trial: bool = True
    host: Host = field(default_factory=Host)
    postfix: PostfixConfig | None = field(default=None, init=False)
    dovecot: DovecotConfig | None = field(default=None, init=False)
    hooks: list[Hook] = field(default_factory=list, init=False)
    table: LoginTable | None = field(default=None, init=False)
    told: set[str] = field(default_factory=set, init=False)

    def examine(self) -> Iterator[Finding]:
        """Look at everything, part by part, and say each thing as it is found. What follows from a fault that was
        said is not said again: `told` are the checks that have found one so far."""
        for name, part in (
            ("settings.files", self._examine_files),
            ("postfix.configuration", self.examine_postfix),
            ("dovecot.configuration", self.examine_dovecot),
            ("postfix.upstream_proxy", self.examine_both),
            ("store.reachable", self.examine_store),
            ("store.denies", self.examine_table),
            ("store.write", self._examine_script_access),
            ("service.answers", self._examine_service),
            ("service.trial", self._examine_trial),
            ("use.private_addresses", self._examine_use),
        ):
            for finding in guarded(name, part()):
                if finding.level in ("wrong", "unknown"):
                    self.told.add(finding.check)
                yield finding

    @check("settings.files")
    def _examine_files(self) -> Iterator[Finding]:
        settings = self.settings
        for name, load in (("sender_maps", settings.load_sender_maps), ("denies", settings.load_denies)):
            place = where(self.values[name])
            try:
                file = load()
            except SettingsError as error:
                for fault in error.faults:
                    if is_for_root(fault):
                        yield not_looked_at(fault, place)
                    else:
                        yield wrong(fault, place, "edit that line; the service reads it by itself")
            else:
                if file is not None:
                    yield good(f"{name}: {file.file} is sound", place)

    def examine_postfix(self) -> Iterator[Finding]:
        """The checks of Postfix."""
        yield from self._read_postfix()
        if self.postfix is None:
            return
        found = []
        for finding in self._check_postfix(self.postfix):
            found.append(finding)
            yield finding
        if not self.postfix_directory and os.geteuid() == 0:  # of another folder it may be that it is not to run
            yield from placed(postfix.check_running(self.postfix, self.host), self.postfix.main_cf)
        if not any(each.level == "wrong" for each in found):  # else smtpd has nothing else to say
            entries = self._entries(self.postfix, self.postfix.port_25())
            found = [finding for each in entries for finding in postfix.check_smtpd(each)]
            yield from placed(dict.fromkeys(found), self.postfix.main_cf)

    @check("postfix.configuration")
    def _read_postfix(self) -> Iterator[Finding]:
        folder = self.postfix_directory
        try:
            self.postfix = read_postfix(self.host, folder)
        except NotLookedAt as error:
            yield _absent(error, folder, "--postfix-config DIR")
        except ConfigurationFault as error:
            mend = command_line("postconf", *(["-c", folder] if folder else []), "-n")
            yield wrong(f"postconf does not take it: {error}", error.place, mend)

    def _entries(self, config: PostfixConfig, services: list[MasterService | None]) -> list[SmtpdEntry]:
        return [SmtpdEntry(config, each, self.settings.listen, self.host) for each in services]

    def _check_postfix(self, config: PostfixConfig) -> Iterator[Finding]:
        ways_in = self._entries(config, config.ways_in(self.settings.listen))
        found: dict[Finding, None] = {}  # what is said of two entries is said once
        for entry in self._entries(config, config.port_25()):
            found |= dict.fromkeys(postfix.check_relaying(entry))
            found |= dict.fromkeys(postfix_lists.check_lists(entry))
        found |= dict.fromkeys(open_relay.check_open_relay(config, self.host))
        for entry in ways_in:
            if entry.ours():  # else that is the fault: postfix.relay_restrictions
                found |= dict.fromkeys(access_tables.check_access(entry))
        yield from found
        yield from strangers.check_strangers(ways_in)
        yield from trusted.check_xclient(config, self.host)
        yield from trusted.check_listeners(config)

    def examine_dovecot(self) -> Iterator[Finding]:
        """The checks of Dovecot."""
        yield from self._read_dovecot()
        config, settings, host = self.dovecot, self.settings, self.host
        if config is None:
            return
        self.hooks = find_hooks(config)
        plugin = plugin_protocols(config, settings.key_prefix)
        yield from dovecot.check_logins(config, plugin, reports.reported_protocols(config, settings), host)
        yield from dovecot_auth.check_auth(config, plugin, settings, host)
        yield from trusted.check_dovecot(config)
        yield from script.check_script(self.hooks, settings, self.values, host)
        yield from last_login.check_plugin(config, settings)
        yield from reports.check_reports(config, settings, host)
        yield from dovecot.check_anvil(config, settings)

    @check("dovecot.configuration")
    def _read_dovecot(self) -> Iterator[Finding]:
        file = self.dovecot_file
        try:
            self.dovecot = read_dovecot(self.host, file)
        except NotLookedAt as error:
            yield _absent(error, file, "--dovecot-config FILE")
        except ConfigurationFault as error:
            yield wrong(str(error), error.place, command_line("doveconf", "-n", *(["-c", file] if file else [])))
        else:
            for each in self.dovecot.unread:
                yield not_looked_at(f"what stands in {each} is not known: Permission denied", each)

    def examine_both(self) -> Iterator[Finding]:
        """The check of Postfix and Dovecot together. That one could not be read was said."""
        if self.postfix and self.dovecot:
            yield from proxy.check_proxy(self.postfix, self.dovecot)

    def examine_store(self) -> Iterator[Finding]:
        """The checks of Redis."""
        settings, place = self.settings, where(self.values["redis_url"])
        try:
            yield from store_keys.check_places(settings, place)
            redis = connect_by(settings, even_replica=True)
            table = LoginTable(redis, settings.key_prefix, user_domain=settings.user_domain)
            yield from store_keys.check_read(table, settings, place)
        except (StoreUnavailable, SettingsError) as error:
            yield replace(self._not_reached(error, place), check="store.reachable")
            return
        yield from store.check_store(redis, settings, place)
        yield from store_keys.check_keys(redis, settings)
        yield from store_keys.check_denies(table)
        yield from store.check_durable(table)
        self.table = table

    def _not_reached(self, error: Exception, place: str) -> Finding:
        at = f"Redis at {self.settings.redis_url}"
        if is_for_root(str(error)):
            # The service's user may well reach what we may not: its socket, its password.
            return not_looked_at(f"{at}: {error}", place)
        mend = "systemctl status redis-server; redis_url, redis_user, redis_password_file"
        if "MOVED " in str(error):
            mend = "a Cluster has redis_url = redis+cluster://HOST[,HOST...], key_prefix = {pbs}:"
        return wrong(f"{at} is unavailable: {error}", place, mend)

    def examine_table(self) -> Iterator[Finding]:
        """The checks of Postfix and Dovecot that need the login table."""
        if self.table and self.dovecot:
            yield from last_login.check_users(self.dovecot, self.settings, self.table)
        if self.table and self.postfix:
            yield from postfix_lists.check_rewriting(self.postfix, self.settings, self.table)

    @check("store.write")
    def _examine_script_access(self) -> Iterator[Finding]:
        """What the script may do in Redis, once for each user and settings file that it is run with."""
        ways = {(hook.settings_file, hook.user, hook.groups): hook for hook in self.hooks}
        for hook in ways.values():
            try:
                own, values = script.script_settings(hook, self.host)
                if self.told & _KEEPS_WRITES and script.same_redis(own, self.settings):
                    continue
                place = where(values["redis_url"])
                # What these settings name (a password file, a key, a socket) is what that user chose.
                with self.host.acting_as(hook.user, hook.groups):
                    redis = connect_by(own, even_replica=True, probe=store_keys.trial_write(own))
                    findings = [*store_keys.check_write(redis, own, place),
                                *store.check_rights(redis, "script", own, place)]  # fmt: skip
            except (SettingsError, NotLookedAt) as error:
                if not self.told & {"dovecot.user", "dovecot.settings_file", "dovecot.files"}:
                    yield unknown(f"as the script's user: {error}", hook.place)
            else:
                yield from findings

    def _examine_service(self) -> Iterator[Finding]:
        yield from service.check_units(self.host)
        store_told = bool(self.told & {"store.reachable", "store.read"})
        yield from service.check_service(self.settings, self.values, store_told)

    @check("service.trial")
    def _examine_trial(self) -> Iterator[Finding]:
        if not self.with_trial or self.table is None or self.told & _KEEPS_TRIAL:
            return
        ways = [trial.by_script(hook, self.host) for hook in self.hooks]
        if self.dovecot:
            for protocol in reports.reported_protocols(self.dovecot, self.settings):
                ways.append(reports.by_report(self.dovecot, protocol, self.settings, self.table, self.host))
        if not ways:
            yield not_looked_at("no post-login script of ours is run here, and nothing is reported")
        for way in ways:
            yield from trial.check_trial(way, self.settings, self.table)

    def _examine_use(self) -> Iterator[Finding]:
        if self.table:
            inet_protocols = self.postfix.value("inet_protocols") if self.postfix else ""
            yield from use.check_use(self.table.entries(), inet_protocols, self.host)
            yield from service.check_numbers(self.table)


def _absent(error: NotLookedAt, named: str, option: str) -> Finding:
    """A program that is not here has no configuration to look at, unless somebody has `named` one."""
    is_absent = isinstance(error, NotInstalled) and not named
    return not_looked_at(str(error), named, option) if is_absent else unknown(str(error), named, option)


@check("settings")
def settings_faults(error: SettingsError) -> Iterator[Finding]:
    """A finding for each fault of the settings file; nothing else can be looked at then."""
    for fault in error.faults:
        place, _, what = fault.partition(": ")
        yield wrong(what, place, "edit that line; pbs-policy config shows what is read")
