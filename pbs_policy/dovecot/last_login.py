"""Dovecot's own last_login plugin as it is configured: 2.3's `plugin { last_login_dict, last_login_key }` and 2.4's
`last_login { dict redis { ... } }` are made the same few values."""

from __future__ import annotations

import re
from typing import NamedTuple

from pbs_policy.dovecot.doveconf import DovecotConfig, Path, variables

ADDRESS = ("%{rip}", "%r", "%{remote_ip}")
"""How the client's address is written: in 2.3, in 2.3 for short, in 2.4."""

_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hour": 3600, "d": 86_400, "day": 86_400, "w": 604_800,
          "week": 604_800}  # fmt: skip


class Plugin(NamedTuple):
    """What the plugin writes: the whole key with its variables, seconds (None: no expiry), to which Redis ("" for
    another kind of table), and where that is written."""

    key: str
    expire: int | None
    redis: str
    key_place: str
    dict_place: str

    def is_ours(self, key_prefix: str) -> bool:
        """Whether it is meant for the login table. A site may use the plugin for a table of its own: of its users."""
        names = variables(self.key)
        of_addresses = bool(names & {"rip", "remote_ip"}) and not names & {"user", "username", "domain"}
        return self.redis != "" and (of_addresses or self.key.startswith(key_prefix))


def plugin_protocols(config: DovecotConfig, key_prefix: str) -> list[str]:
    """The protocols whose logins the plugin writes to the login table."""
    plugin = read_plugin(config)
    if plugin is None or not plugin.is_ours(key_prefix):
        return []
    return [
        protocol
        for protocol in config.protocols()
        if any(has_plugin(config, blocks) for blocks in ((), (f"protocol {protocol}",)))
    ]


def has_plugin(config: DovecotConfig, blocks: Path) -> bool:
    """Whether the plugin is loaded in such a block, () for all of Dovecot."""
    words = config.value(blocks, "mail_plugins").split()  # 2.3; 2.4 has a block of yes and no
    return "last_login" in words or config.value((*blocks, "mail_plugins"), "last_login") == "yes"


def read_plugin(config: DovecotConfig) -> Plugin | None:
    """The plugin's settings, of 2.3 or 2.4; None where it has no table to write to."""
    old: Path = ("plugin",)
    uri = config.value(old, "last_login_dict")
    if uri:
        if uri.startswith("proxy:"):
            uri = config.value(("dict",), uri.rpartition(":")[2]) or uri
        parts = dict(part.partition("=")[::2] for part in uri.split(":")[1:])
        expire = int(parts["expire_secs"]) if parts.get("expire_secs", "").isdecimal() else None
        redis = parts.get("path") or f"{parts.get('host', '127.0.0.1')}:{parts.get('port', '6379')}"
        key = parts.get("prefix", "") + config.value(old, "last_login_key")
        redis = redis if uri.startswith("redis:") else ""
        return Plugin(key, expire, redis, config.place(old, "last_login_key"), config.place(old, "last_login_dict"))
    block: Path = ("last_login", "dict redis")
    if not config.has_block(block):
        return Plugin("", None, "", config.file, config.place(block[:1])) if config.has_block(block[:1]) else None
    host, port = config.value(block, "redis_host") or "127.0.0.1", config.value(block, "redis_port") or "6379"
    key = config.value(("last_login",), "key") or config.value((), "last_login_key")
    key = config.value(block, "redis_key_prefix") + key if key else ""
    key_name = "redis_key_prefix" if config.value(block, "redis_key_prefix") else "redis_host"
    expire = parse_seconds(config.value(block, "redis_expire"))
    return Plugin(key, expire, f"{host}:{port}", config.place(block, key_name), config.place(block, "redis_expire"))


def parse_seconds(text: str) -> int | None:
    """Seconds of a time as Dovecot writes it: `30 mins`, `1800s`, `infinite`. None where there is no expiry."""
    match = re.fullmatch(r"(\d+)\s*([a-z]*)", text.lower())
    if match is None or (match[2] and match[2].rstrip("s") not in _UNITS and match[2] not in _UNITS):
        return None
    unit = match[2] if match[2] in _UNITS else match[2].rstrip("s")
    return int(match[1]) * (_UNITS[unit] if unit else 1)
