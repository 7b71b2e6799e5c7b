"""redis-py as the command line uses it, without its traps. (The service has its own connection: `redis_line`.)

Importing redis-py takes longer than a whole command without it: import this module where it is used.
"""

from __future__ import annotations

from typing import Any, cast

from redis import ConnectionError as ConnectionLost
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from pbs_policy.redis_url import RedisUrl, TlsFiles

TIMEOUT = 0.5
"""Seconds for a connection and for a reply: an administrator's command says what is wrong instead of hanging."""


def connect(url: RedisUrl, user: str, password: str, tls: TlsFiles | None = None) -> Redis:
    """A client for `LoginTable`. Nothing is sent before the first command.

    redis-py left alone retries a refused connection for 4 s and a mute one for a minute, and one made from a URL
    fails its first command after a restart of Redis. So: one retry of a lost connection, none of a time-out.
    """
    limits: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": TIMEOUT,
        "retry": Retry(NoBackoff(), 1, supported_errors=(ConnectionLost,)),
    }
    access: dict[str, Any] = {"db": url.db, "username": user or None, "password": password or None, **limits}
    if url.master:
        sentinel: Any = Sentinel  # without types in redis-py
        return cast("Redis", sentinel(url.sentinels, sentinel_kwargs=limits).master_for(url.master, **access))
    if url.tls:
        files = tls or TlsFiles()
        access |= {"ssl": True, "ssl_check_hostname": True, "ssl_ca_certs": files.ca or None}
        access |= {"ssl_certfile": files.certificate or None, "ssl_keyfile": files.key or None}
    return Redis(host=url.host, port=url.port or 6379, unix_socket_path=url.path or None, **access)
