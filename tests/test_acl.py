"""What an ACL user lacks: the words of each server, and of the one that is installed."""

from __future__ import annotations

import pytest

from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.store.connect import connect
from pbs_policy.store.errors import StoreRefused
from pbs_policy.store.question import Command
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.store.replies import missing_right


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("NOPERM this user has no permissions to run the 'get' command or its subcommand", "+get"),  # Redis 6.2
        ("NOPERM this user has no permissions to run the 'pttl' command", "+pttl"),  # 7.0
        ("NOPERM User svc has no permissions to run the 'config|get' command", "+config|get"),  # 7.2, Valkey
        ("NOPERM this user has no permissions to access one of the keys used as arguments", "~t:*"),
        ("NOPERM No permissions to access a key", "~t:*"),
        ("NOPERM this user has no permissions to access one of the channels used as arguments", "&t:events"),
        ("NOPERM No permissions to access a channel", "&t:events"),
        ("Redis answers: NOPERM User svc has no permissions to run the 'mget' command", "+mget"),
        ("NOPERM in words of another year", ""),
        ("OOM command not allowed when used memory > 'maxmemory'.", ""),
        ("no answer within 0.5 s", ""),
    ],
)
def test_the_missing_right_is_read_from_the_refusal(said: str, right: str) -> None:
    assert missing_right(said, "t:") == right


@pytest.mark.parametrize(
    ("command", "right"),
    [
        ((b"PTTL", b"t:a"), "+pttl"),
        ((b"GET", b"u:a"), "~t:*"),
        ((b"PUBLISH", b"t:events", b"x"), "&t:events"),
        ((b"CONFIG", b"GET", b"bind"), "+config|get"),
    ],
)
def test_the_server_here_refuses_in_words_that_are_understood(
    redis_server: PrivateRedis, command: Command, right: str
) -> None:
    url = RedisUrl.parse(redis_server.url)
    with connect(url, "", "") as administrator, connect(url, "svc", "secret") as limited:
        rules = (b"on", b">secret", b"~t:*", b"resetchannels", b"-@all", b"+get", b"+publish")
        administrator.ask([(b"ACL", b"SETUSER", b"svc", *rules)])
        try:
            with pytest.raises(StoreRefused) as refused:
                limited.ask([command])
        finally:
            administrator.ask([(b"ACL", b"DELUSER", b"svc")])
    assert missing_right(str(refused.value), "t:") == right
