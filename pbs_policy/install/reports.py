"""The drop-in that has Dovecot report its logins to `pbs-policy record`, and where that must not be: another server
has the reports, or a success that Dovecot reports proves no password."""

from __future__ import annotations

import re

from pbs_policy.dovecot.auth import EMPTY, ONE_FOR_ALL, PROXY, Unchecked, passdbs, unchecked
from pbs_policy.dovecot.last_login import plugin_protocols, read_plugin
from pbs_policy.dovecot.logins import SCRIPT, find_hooks
from pbs_policy.dovecot.reports import read_reports, report_url
from pbs_policy.host import Host, NotLookedAt
from pbs_policy.install.dovecot import Hooking, fill_in, read_config
from pbs_policy.install.files import InstallError
from pbs_policy.install.plan import Wanted
from pbs_policy.log import printable
from pbs_policy.settings import Settings
from pbs_policy.shipped import shipped

_OURS = "http://127.0.0.1:10041/"
_GROUP = "group = pbs-policy\n"
_SESSIONS = "99-pbs-policy-sessions.conf"
BESIDE = "pbs-policy-secret.conf.ext"  # the drop-in includes it


def plan_reports(settings: Settings, hooking: Hooking) -> list[Wanted]:
    """The drop-in that has Dovecot report its logins, and what it includes. Raises InstallError where that would be
    wrong, SettingsError for a secret that cannot be read."""
    placement, plan = hooking.placement, hooking.plan
    secret, drop_in = secret_line(settings), reports_drop_in(hooking.config.version, settings)
    plan.notes += _refuse_unproven(hooking, settings)
    plan.checks.append(lambda: _check(hooking, settings))
    folder, wanted = f"{placement.dovecot}/conf.d", []
    if secret:
        wanted.append(Wanted(f"{folder}/{BESIDE}", secret.encode(), 0o600))
    else:
        plan.notes.append("reports_secret_file is not set: every user of this host can report a login, and so permit")
    if settings.renew_sessions and hooking.tree.has_group(placement.user):
        text = fill_in(shipped("dovecot-hooks/sessions.conf").read_text(), {_GROUP: f"group = {placement.user}\n"})
        note = "the recorder may ask who is connected once Dovecot is restarted: a reload is not enough for it"
        wanted.append(Wanted(f"{folder}/{_SESSIONS}", text.encode(), note=note))
    elif settings.renew_sessions:  # Dovecot does not start with a group that there is not
        lack = f"there is no group {placement.user}, so the recorder may not ask who is connected"
        plan.notes.append(f"{lack}, and renews no login of users who stay connected (renew_sessions)")
    return [*wanted, Wanted(placement.drop_in, drop_in.encode())]  # last, since it includes the first


def _check(hooking: Hooking, settings: Settings) -> None:
    reports = read_reports(read_config(hooking.file))
    hooking.expect("auth_policy_server_url", reports.url if reports else "", report_url(*settings.reports_places[0]))


def reports_drop_in(version: tuple[int, int], settings: Settings) -> str:
    """The text for Dovecot of this version. Raises InstallError for settings that keep the recorder from starting."""
    if not settings.reports_listen or not settings.reports_check_passwords:
        raise InstallError(
            "pbs-policy record does not start with these settings: expected reports_listen = inet:127.0.0.1:10041, "
            "and reports_check_passwords = yes if this Dovecot checks every password itself"
        )
    example = shipped(f"dovecot-hooks/report-{'2.3' if version < (2, 4) else '2.4'}.conf").read_text()
    return fill_in(example, {_OURS: report_url(*settings.reports_places[0])})


def secret_line(settings: Settings) -> str:
    """The text of the file with the secret, "" where there is none. Raises SettingsError, InstallError."""
    header = settings.reports_secret()
    if not header:
        return ""
    if not re.fullmatch(r"[A-Za-z0-9-]+: *[A-Za-z0-9._~+/=-][A-Za-z0-9 ._~+/=-]*|[A-Za-z0-9._~+/=-]+", header):
        raise InstallError(
            f"{settings.reports_secret_file}: expected a first line of `Authorization: Bearer ` and letters, digits "
            "and . _ ~ + / = -, since it stands in Dovecot's configuration as it is"
        )
    return f"auth_policy_server_api_header = {header}\n"


def _refuse_unproven(hooking: Hooking, settings: Settings) -> list[str]:
    """Raise InstallError where reports must not be recorded, or do not reach us. Returns what has to be confirmed."""
    config = hooking.config
    reports = read_reports(config)
    if reports and not hooking.is_replaced(reports.place):
        raise InstallError(
            f"{reports.place}: auth_policy_server_url is {printable(reports.server)}, and Dovecot reports to one "
            "server alone. Use the script (without --reports), which runs beside it; or take that line out"
        )
    plugin = read_plugin(config)
    if plugin and plugin_protocols(config, settings.key_prefix) and not hooking.is_replaced(plugin.dict_place):
        raise InstallError(
            f"{plugin.dict_place}: the last_login plugin records logins without their user, over what is reported. "
            "Take it out of mail_plugins first"
        )
    notes = [f"{hook.place}: {hook.protocol} logins run {SCRIPT}, too, and are recorded twice: that is harmless"
             for hook in find_hooks(config) if not hooking.is_replaced(hook.place)]  # fmt: skip
    try:
        found = list(unchecked(passdbs(config), Host()))
    except NotLookedAt as error:
        return [*notes, f"whether a password database answers nopassword or proxy is not known: {error}"]
    for each in found:
        _refuse(each, settings)
    return notes + [_question(each, settings) for each in found if not each.always]


def _refuse(found: Unchecked, settings: Settings) -> None:
    if found.always and found.field in ("nopassword", EMPTY):
        raise InstallError(
            f"{found}: Dovecot reports a success whatever the password was, and whoever asks could relay. Take it "
            "out; on a proxy, install on the backends, which check passwords"
        )
    if found.always and found.field in PROXY and not settings.record_proxied_logins:
        raise InstallError(
            f"{found}: its logins go on to another host, and are not recorded by reports. Install on the backends; "
            "or, if this proxy checks each password itself, set record_proxied_logins = yes"
        )


def _question(found: Unchecked, settings: Settings) -> str:
    if found.field == ONE_FOR_ALL:
        return f"{found}: whoever knows it logs in as anybody, and may relay"
    if found.field == "nopassword":
        return f"{found}: such a login is reported as a success whatever the password was. See that nobody has it"
    if found.field in PROXY:
        if settings.record_proxied_logins:
            return f"{found}: such a login is recorded. See that this host checks its password"
        return f"{found}: such a login is not recorded"
    return f"{found}: such a login is refused, and not recorded where Dovecot tells of it"
