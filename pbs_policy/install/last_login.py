"""The drop-in for Dovecot's last_login plugin, filled in from the settings that it has to agree with."""

from __future__ import annotations

import re
from ipaddress import ip_address

from pbs_policy.install.files import InstallError
from pbs_policy.settings import Settings
from pbs_policy.shipped import shipped


def last_login_drop_in(version: tuple[int, int], settings: Settings) -> str:
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


def fill_in(example: str, places: dict[str, str]) -> str:
    """The example with our places instead of its own. Raises ValueError where it does not have one of them."""
    for theirs, ours in places.items():
        if theirs not in example:
            raise ValueError(f"the example no longer says {theirs!r}")
        example = example.replace(theirs, ours)
    return example


def _faults(settings: Settings, host: str, *, ipv6: bool) -> list[str]:
    url, faults = settings.redis_url, []
    if url.tls or url.db or url.server is None:
        faults.append(f"redis_url = {url}: expected redis://ADDRESS:PORT/0")
    elif not _is_address(host, ipv6=ipv6):
        faults.append(f"redis_url = {url}: expected an {'IP' if ipv6 else 'IPv4'} address, no name")
    if settings.redis_password_file:
        faults.append("redis_password_file is set, and dovecot.conf would have the password in it")
    if settings.sender_match != "off":
        faults.append(f"sender_match = {settings.sender_match}: it records no user")
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
