"""Fixtures of the post-login script's tests."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.store.redis_url import RedisUrl
from tests.stores import connect


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., str]:
    """Write a settings file of `name = value` lines, and return its path."""

    def write(**values: str) -> str:
        file = tmp_path / "pbs-policy.conf"
        file.write_text("".join(f"{name} = {text}\n" for name, text in values.items()))
        return str(file)

    return write


@pytest.fixture
def redis(redis_server: PrivateRedis) -> Iterator[Redis]:
    with connect(RedisUrl.parse(redis_server.url), "", "") as client:
        yield client


@pytest.fixture
def working(redis_server: PrivateRedis, configure: Callable[..., str]) -> list[str]:
    """Options with which a login is recorded."""
    return ["-c", configure(redis_url=redis_server.url), "pop3"]


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "log"))
        listening.settimeout(20)
        yield listening
