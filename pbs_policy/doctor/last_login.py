"""Checks of Dovecot's own last_login plugin, where it records the logins: its key, its end, its Redis.

The plugin knows neither our settings file nor canonical addresses: all is made equal by hand.
"""

from __future__ import annotations

from collections.abc import Iterator

from pbs_policy.doctor.finding import Finding, check, good, warning, wrong
from pbs_policy.dovecot.doveconf import DovecotConfig
from pbs_policy.dovecot.last_login import ADDRESS, Plugin, has_plugin, plugin_protocols, read_plugin
from pbs_policy.log import printable
from pbs_policy.settings import Settings
from pbs_policy.table.login_table import LoginTable

_BY_SCRIPT = "use the post-login script (pbs-policy.conf)"


def check_plugin(config: DovecotConfig, settings: Settings) -> Iterator[Finding]:
    """Nothing where the plugin does not record logins, or writes a table of the site's own."""
    plugin = read_plugin(config)
    if plugin is not None and plugin_protocols(config, settings.key_prefix):
        yield from _check_key(plugin, config, settings)
        yield from _check_expiry(plugin, settings)
        yield from _check_redis(plugin, settings)
        yield from _check_scope(config, settings)


@check("dovecot.last_login_key")
def _check_key(plugin: Plugin, config: DovecotConfig, settings: Settings) -> Finding:
    key = f"{settings.key_prefix}login:"
    if plugin.key in [key + address for address in ADDRESS]:
        return good(f"last_login writes {plugin.key}", plugin.key_place)
    variable = "%{rip}" if config.value(("plugin",), "last_login_dict") else "%{remote_ip}"
    seen = f"last_login writes {plugin.key}; the service reads {key}ADDRESS"
    return wrong(seen, plugin.key_place, f"the key must come out as {key}{variable}")


@check("dovecot.last_login_redis")
def _check_redis(plugin: Plugin, settings: Settings) -> Finding:
    at = settings.redis_url
    host, port = at.server or ("", 0)
    theirs = plugin.redis.replace("localhost:", "127.0.0.1:")
    ours = at.path or f"{host}:{port}".replace("localhost:", "127.0.0.1:")
    seen = f"last_login writes to {plugin.redis}, the service reads from {at}"
    if at.db or at.tls or not (at.path or at.server) or settings.redis_user:
        seen = "last_login knows no database number, TLS, Sentinel, Cluster, second server, or user of Redis, and "
        mend = "use the post-login script, or database 0 and the default user"
        return wrong(f"{seen}the settings name one", plugin.dict_place, mend)
    if theirs == ours:
        return good(seen, plugin.dict_place)
    if bool(at.path) != theirs.startswith("/"):
        return warning(f"{seen}: is that one Redis?", plugin.dict_place, "redis_url as last_login has it")
    return wrong(seen, plugin.dict_place, f"path={at.path}" if at.path else f"host {host}, port {port}")


@check("dovecot.last_login_expire")
def _check_expiry(plugin: Plugin, settings: Settings) -> Finding:
    mend = f"expire_secs={settings.ttl} (2.3), redis_expire = {settings.ttl} s (2.4)"
    if not plugin.expire:
        seen = "last_login writes keys without an end: the service honours none of them"
        return wrong(seen, plugin.dict_place, mend)
    if plugin.expire != settings.ttl:
        seen = f"a login by last_login permits for {plugin.expire} s, and ttl is {settings.ttl} s"
        return warning(seen, plugin.dict_place, mend)
    return good(f"a login permits for {plugin.expire} s, as ttl says", plugin.dict_place)


@check("dovecot.last_login_scope", "last_login runs at POP3 and IMAP logins alone")
def _check_scope(config: DovecotConfig, settings: Settings) -> Iterator[Finding]:
    if has_plugin(config, ()):
        seen = "last_login is loaded for all of Dovecot: what doveadm and LMTP open counts as a login, too"
        path, name = (("mail_plugins",), "last_login")
        place = config.place(path, name) if config.value(path, name) else config.place((), "mail_plugins")
        yield warning(seen, place, "mail_plugins inside protocol pop3 and protocol imap alone")
    elif settings.services or settings.ipv6_prefix != 128:
        name = "services" if settings.services else "ipv6_prefix"
        seen = f"last_login records no service and no network: with {name} set, the service permits nobody"
        yield wrong(seen, config.file, _BY_SCRIPT)


@check("dovecot.last_login_users")
def check_users(config: DovecotConfig, settings: Settings, table: LoginTable) -> Iterator[Finding]:
    """Whether anything judges by the user, whom last_login does not record."""
    if not plugin_protocols(config, settings.key_prefix):
        return
    rules = settings.rules_on_users()
    refused = "and last_login records no user: the service refuses the logins that it records"
    denied = next((each.target for each in table.denies() if each.kind == "user"), "")
    if rules:
        yield wrong(f"{' and '.join(rules)}: a rule on users, {refused}", config.file, _BY_SCRIPT)
    elif denied:
        mend = f"{_BY_SCRIPT}, or pbs-policy undeny each user who is denied"
        yield wrong(f"{printable(denied)} is denied, {refused}", config.file, mend)
    else:
        yield good("no setting and no deny judges by the user, whom last_login does not record")
