"""Checks of Dovecot's own last_login plugin, where it records the logins: its key, its end, its Redis.

The plugin knows neither our settings file nor canonical addresses: all is made equal by hand.
"""

from __future__ import annotations

from collections.abc import Iterator

from pbs_policy.doctor.finding import Finding, good, warning, wrong
from pbs_policy.dovecot.doveconf import DovecotConfig
from pbs_policy.dovecot.last_login import ADDRESS, Plugin, has_plugin, plugin_protocols, read_plugin
from pbs_policy.log import printable
from pbs_policy.settings import Settings
from pbs_policy.table.login_table import LoginTable


def check_plugin(config: DovecotConfig, settings: Settings) -> Iterator[Finding]:
    """Nothing where the plugin does not record logins, or writes a table of the site's own."""
    plugin = read_plugin(config)
    if plugin is None or not plugin_protocols(config, settings.key_prefix):
        return
    key = f"{settings.key_prefix}login:"
    if plugin.key not in [key + address for address in ADDRESS]:
        variable = "%{rip}" if config.value(("plugin",), "last_login_dict") else "%{remote_ip}"
        yield wrong("dovecot.last_login_key", f"last_login writes {plugin.key}; the service reads {key}ADDRESS",
                    plugin.key_place, f"the key must come out as {key}{variable}")  # fmt: skip
    else:
        yield good("dovecot.last_login_key", f"last_login writes {plugin.key}", plugin.key_place)
    yield from _check_end(plugin, settings)
    yield from _check_redis(plugin, settings)
    yield from _check_scope(config, settings)


def _check_redis(plugin: Plugin, settings: Settings) -> Iterator[Finding]:
    check, at = "dovecot.last_login_redis", settings.redis_url
    host, port = at.server or ("", 0)
    theirs = plugin.redis.replace("localhost:", "127.0.0.1:")
    ours = at.path or f"{host}:{port}".replace("localhost:", "127.0.0.1:")
    seen = f"last_login writes to {plugin.redis}, the service reads from {at}"
    if at.db or at.tls or not (at.path or at.server) or settings.redis_user:
        seen = "last_login knows no database number, TLS, Sentinel, Cluster, second server, or user of Redis, and "
        seen += "the settings name one"
        mend = "use the post-login script, or database 0 and the default user"
        yield wrong(check, seen, plugin.dict_place, mend)
    elif theirs != ours and bool(at.path) != theirs.startswith("/"):
        yield warning(check, f"{seen}: is that one Redis?", plugin.dict_place, "redis_url as last_login has it")
    elif theirs != ours:
        mend = f"path={at.path}" if at.path else f"host {host}, port {port}"
        yield wrong(check, seen, plugin.dict_place, mend)
    else:
        yield good(check, seen, plugin.dict_place)


def _check_end(plugin: Plugin, settings: Settings) -> Iterator[Finding]:
    mend = f"expire_secs={settings.ttl} (2.3), redis_expire = {settings.ttl} s (2.4)"
    if not plugin.expire:
        seen = "last_login writes keys without an end: the service honours none of them"
        yield wrong("dovecot.last_login_expire", seen, plugin.dict_place, mend)
    elif plugin.expire != settings.ttl:
        seen = f"a login by last_login permits for {plugin.expire} s, and ttl is {settings.ttl} s"
        yield warning("dovecot.last_login_expire", seen, plugin.dict_place, mend)
    else:
        yield good(
            "dovecot.last_login_expire", f"a login permits for {plugin.expire} s, as ttl says", plugin.dict_place
        )


def _check_scope(config: DovecotConfig, settings: Settings) -> Iterator[Finding]:
    if has_plugin(config, ()):
        seen = "last_login is loaded for all of Dovecot: what doveadm and LMTP open counts as a login, too"
        place = config.place((), "mail_plugins")
        if config.value(("mail_plugins",), "last_login"):
            place = config.place(("mail_plugins",), "last_login")
        yield warning("dovecot.last_login_scope", seen, place,
                      "mail_plugins inside protocol pop3 and protocol imap alone")  # fmt: skip
    elif settings.services or settings.ipv6_prefix != 128:
        name = "services" if settings.services else "ipv6_prefix"
        seen = f"last_login records no service and no network: with {name} set, the service permits nobody"
        yield wrong("dovecot.last_login_scope", seen, config.file, "use the post-login script (pbs-policy.conf)")
    else:
        yield good("dovecot.last_login_scope", "last_login runs at POP3 and IMAP logins alone")


def check_users(config: DovecotConfig, settings: Settings, table: LoginTable) -> Iterator[Finding]:
    """Whether anything judges by the user, whom last_login does not record."""
    if not plugin_protocols(config, settings.key_prefix):
        return
    check, rules = "dovecot.last_login_users", settings.rules_on_users()
    refused = "and last_login records no user: the service refuses the logins that it records"
    mend = "use the post-login script (pbs-policy.conf)"
    denied = next((each.target for each in table.denies() if each.kind == "user"), "")
    if rules:
        yield wrong(check, f"{' and '.join(rules)}: a rule on users, {refused}", config.file, mend)
    elif denied:
        mend += ", or pbs-policy undeny each user who is denied"
        yield wrong(check, f"{printable(denied)} is denied, {refused}", config.file, mend)
    else:
        yield good(check, "no setting and no deny judges by the user, whom last_login does not record")
