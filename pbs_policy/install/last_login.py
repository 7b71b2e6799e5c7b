"""The drop-in for Dovecot's last_login plugin, filled in from the settings that it has to agree with; and where the
plugin would record what must not be recorded, or take the place of something else."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

from pbs_policy.command_line import command_line
from pbs_policy.dovecot.auth import lets_everybody_in, mechanism, one_for_all, passdbs
from pbs_policy.dovecot.last_login import plugin_protocols, read_plugin
from pbs_policy.dovecot.logins import SCRIPT, find_hooks
from pbs_policy.install.dovecot import Hooking, fill_in, read_config
from pbs_policy.install.files import InstallError
from pbs_policy.install.plan import Wanted
from pbs_policy.log import printable
from pbs_policy.settings import Settings
from pbs_policy.settings.sources import SettingsError
from pbs_policy.shipped import shipped
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.table.login_table import LoginTable

if TYPE_CHECKING:
    from pbs_policy.store.connect import RedisClient


def plan_last_login(settings: Settings, hooking: Hooking) -> list[Wanted]:
    """The drop-in that has Dovecot's last_login plugin write the login table. Raises InstallError for settings that
    the plugin cannot follow, and where it would record what it must not."""
    drop_in = _drop_in_text(hooking.config.version, settings)
    _refuse_in_the_way(hooking, settings)
    hooking.confirm(one_for_all(passdbs(hooking.config)))
    denied, unknown = _denied_user(settings)
    if denied:
        undeny = command_line("pbs-policy", "undeny", about=denied)
        hooking.plan.obstacles.append(
            f"{printable(denied)} is denied, and last_login records no user: the service would refuse all its "
            f"logins. Use the script (without --last-login), or first: {undeny}"
        )
    if unknown:
        hooking.plan.notes.append(f"whether users are denied, whom last_login does not know, is unknown: {unknown}")
    hooking.plan.checks.append(lambda: _check(hooking, settings.key_prefix))
    return [Wanted(hooking.placement.drop_in, drop_in.encode())]


def _check(hooking: Hooking, key_prefix: str) -> None:
    config = read_config(hooking.file)
    for service in ("pop3", "imap"):
        if service not in plugin_protocols(config, key_prefix):
            plugins = config.value((f"protocol {service}",), "mail_plugins")
            hooking.expect(f"protocol/{service}/mail_plugins", plugins, "... last_login")


def _drop_in_text(version: tuple[int, int], settings: Settings) -> str:
    """The text for Dovecot of this version. Raises InstallError for settings that the plugin cannot follow."""
    example = shipped(f"dovecot-hooks/last-login-{'2.3' if version < (2, 4) else '2.4'}.conf")
    host, port = settings.redis_url.server or ("", 0)
    host = "127.0.0.1" if host == "localhost" else host
    faults = _faults(settings, host, ipv6=version >= (2, 4))
    if faults:
        raise InstallError(
            f"the last_login plugin does not go with these settings: {'; '.join(faults)}. Use the script (without "
            f"--last-login), or begin with {example} by hand"
        )
    prefix = settings.key_prefix
    if version < (2, 4):
        places = {
            ":host=127.0.0.1:port=6379:": f":host={host}:port={port}:",
            ":expire_secs=1800:": f":expire_secs={settings.ttl}:",
            "last_login_key = pbs:login:": f"last_login_key = {prefix}login:",
        }
    else:
        places = {
            "redis_host = 127.0.0.1\n": f"redis_host = {host}\n",
            "redis_port = 6379\n": f"redis_port = {port}\n",
            "redis_key_prefix = pbs:login:\n": f"redis_key_prefix = {prefix}login:\n",
            "redis_expire = 30 mins\n": f"redis_expire = {settings.ttl} secs\n",
        }
    return fill_in(example.read_text(), places)


def _refuse_in_the_way(hooking: Hooking, settings: Settings) -> None:
    """Raise InstallError where the site uses the plugin for itself, or the script records already, or anybody could
    have a login recorded."""
    config = hooking.config
    plugin = read_plugin(config)
    if plugin and not plugin.is_ours(settings.key_prefix):
        raise InstallError(
            f"{plugin.dict_place}: the last_login plugin keeps a table of your own ({printable(plugin.key)}), which "
            "the drop-in would replace. Use the script (without --last-login), which runs beside it"
        )
    for hook in find_hooks(config):
        if not hooking.is_replaced(hook.place):
            raise InstallError(
                f"{hook.place}: service {printable(hook.service)} runs {SCRIPT}, and last_login would write over "
                "what it records. Keep the script, or take it out of executable first"
            )
    anonymous, found = mechanism(config, "anonymous"), lets_everybody_in(config, passdbs(config))
    if anonymous:
        raise InstallError(
            f"{anonymous.place}: auth_mechanisms has anonymous, and last_login would record those logins, too: "
            "whoever asks could relay. Take it out, or use the script (without --last-login), which leaves them out"
        )
    if found:
        raise InstallError(f"{found}: whoever asks could relay. Take it out")


def _denied_user(settings: Settings) -> tuple[str, str]:
    """One user who is denied in Redis, or ""; and why that is not known, or ""."""
    try:
        table = LoginTable(connect(settings), settings.key_prefix, user_domain=settings.user_domain)
        return next((each.target for each in table.denies() if each.kind == "user"), ""), ""
    except (StoreUnavailable, SettingsError) as error:
        return "", str(error)


def connect(settings: Settings) -> RedisClient:
    """The Redis that `settings` name. Raises SettingsError for an unreadable password file."""
    from pbs_policy.store.connect import connect_by

    return connect_by(settings, even_replica=True)


def _faults(settings: Settings, host: str, *, ipv6: bool) -> list[str]:
    url, faults = settings.redis_url, []
    if url.tls or url.db or url.server is None:
        faults.append(f"redis_url = {url}: expected redis://ADDRESS:PORT/0")
    elif not _is_address(host, ipv6=ipv6):
        faults.append(f"redis_url = {url}: expected an {'IP' if ipv6 else 'IPv4'} address, no name")
    if settings.redis_password_file:
        faults.append("redis_password_file is set, and dovecot.conf would have the password in it")
    faults += [f"{name} is set, and it records no user" for name in settings.rules_on_users()]
    if settings.services:
        faults.append("services is set: it records no service")
    if settings.ipv6_prefix != 128:
        faults.append(f"ipv6_prefix = {settings.ipv6_prefix}: it records whole addresses")
    if not re.fullmatch(r"[\w:.-]+", settings.key_prefix, re.ASCII):
        faults.append(f"key_prefix = {settings.key_prefix}: expected letters, digits and : . _ -")
    return faults


def _is_address(host: str, *, ipv6: bool) -> bool:
    try:
        return ip_address(host).version == 4 or ipv6
    except ValueError:
        return False
