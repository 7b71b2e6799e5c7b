"""Checks of Dovecot's own last_login plugin, where it records the logins: its key, its end, its Redis.

2.3 has `plugin { last_login_dict, last_login_key }`, 2.4 a `last_login { dict redis { ... } }`: both are made the
same few values here. The plugin knows neither our settings file nor canonical addresses: all is made equal by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from pbs_policy.doctor.dovecot import plugin_protocols
from pbs_policy.doctor.dovecot_config import DovecotConfig, Path
from pbs_policy.doctor.finding import Finding, good, warning, wrong
from pbs_policy.settings import Settings

_ADDRESS = ("%{rip}", "%r", "%{remote_ip}")
_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hour": 3600, "d": 86_400, "day": 86_400, "w": 604_800,
          "week": 604_800}  # fmt: skip


class Plugin(NamedTuple):
    """What the plugin writes: the whole key with a variable for the address, seconds (None: no end), and where."""

    key: str
    expire: int | None
    redis: str
    key_place: str
    dict_place: str


def check_plugin(config: DovecotConfig, settings: Settings) -> Iterator[Finding]:
    """Nothing where the plugin does not record logins."""
    if not plugin_protocols(config):
        return
    plugin = read_plugin(config)
    key = f"{settings.key_prefix}login:"
    if plugin.key not in [key + address for address in _ADDRESS]:
        written = plugin.key or "last_login/%{user}, its default"
        variable = "%{rip}" if config.value(("plugin",), "last_login_dict") else "%{remote_ip}"
        yield wrong("dovecot.last_login_key", f"last_login writes {written}; the service reads {key}ADDRESS",
                    plugin.key_place, f"the key must come out as {key}{variable}")  # fmt: skip
    else:
        yield good("dovecot.last_login_key", f"last_login writes {plugin.key}", plugin.key_place)
    yield from _check_end(plugin, settings)
    yield from _check_redis(plugin, settings)
    yield from _check_scope(config, settings)


def read_plugin(config: DovecotConfig) -> Plugin:
    """The plugin's settings, of 2.3 or 2.4."""
    old: Path = ("plugin",)
    uri = config.value(old, "last_login_dict")
    if uri:
        parts = dict(part.partition("=")[::2] for part in uri.split(":")[1:])
        expire = int(parts["expire_secs"]) if parts.get("expire_secs", "").isdecimal() else None
        redis = parts.get("path") or f"{parts.get('host', '127.0.0.1')}:{parts.get('port', '6379')}"
        key = parts.get("prefix", "") + config.value(old, "last_login_key")
        return Plugin(key, expire, redis, config.place(old, "last_login_key"), config.place(old, "last_login_dict"))
    block: Path = ("last_login", "dict redis")
    host, port = config.value(block, "redis_host") or "127.0.0.1", config.value(block, "redis_port") or "6379"
    key = config.value(("last_login",), "key") or config.value((), "last_login_key")
    key = config.value(block, "redis_key_prefix") + key if key else ""
    key_name = "redis_key_prefix" if config.value(block, "redis_key_prefix") else "redis_host"
    expire = _seconds(config.value(block, "redis_expire"))
    return Plugin(key, expire, f"{host}:{port}", config.place(block, key_name), config.place(block, "redis_expire"))


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
    everywhere = config.value((), "mail_plugins").split()
    if "last_login" in everywhere or config.value(("mail_plugins",), "last_login") == "yes":
        seen = "last_login is loaded for all of Dovecot: what doveadm and LMTP open counts as a login, too"
        place = config.place((), "mail_plugins")
        if config.value(("mail_plugins",), "last_login"):
            place = config.place(("mail_plugins",), "last_login")
        yield warning("dovecot.last_login_scope", seen, place,
                      "mail_plugins inside protocol pop3 and protocol imap alone")  # fmt: skip
    elif settings.sender_match != "off" or settings.ipv6_prefix != 128:
        name = "sender_match" if settings.sender_match != "off" else "ipv6_prefix"
        seen = f"last_login records no user and no network: with {name} set, the service permits nobody"
        yield wrong("dovecot.last_login_scope", seen, config.file, "use the post-login script (pbs-policy.conf)")
    else:
        yield good("dovecot.last_login_scope", "last_login runs at POP3 and IMAP logins alone")


def _seconds(text: str) -> int | None:
    """Seconds of a time as Dovecot writes it: `30 mins`, `1800s`, `infinite`. None where there is no end."""
    match = re.fullmatch(r"(\d+)\s*([a-z]*)", text.lower())
    if match is None or (match[2] and match[2].rstrip("s") not in _UNITS and match[2] not in _UNITS):
        return None
    unit = match[2] if match[2] in _UNITS else match[2].rstrip("s")
    return int(match[1]) * (_UNITS[unit] if unit else 1)
