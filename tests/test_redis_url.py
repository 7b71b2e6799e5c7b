"""Where Redis is: what may be written as redis_url, and what is refused before the first connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbs_policy.redis_url import RedisUrl


@pytest.mark.parametrize(
    ("text", "url", "shown"),
    [
        ("redis://127.0.0.1", RedisUrl(host="127.0.0.1", port=6379), "redis://127.0.0.1:6379/0"),
        ("redis://127.0.0.1/", RedisUrl(host="127.0.0.1", port=6379), "redis://127.0.0.1:6379/0"),
        ("redis://127.0.0.1:6380/2", RedisUrl(host="127.0.0.1", port=6380, db=2), "redis://127.0.0.1:6380/2"),
        ("redis://redis.example.com/15", RedisUrl(host="redis.example.com", port=6379, db=15),
         "redis://redis.example.com:6379/15"),
        ("redis://[2001:db8::7]:6380", RedisUrl(host="2001:db8::7", port=6380), "redis://[2001:db8::7]:6380/0"),
        ("unix:///run/redis/redis.sock", RedisUrl(path="/run/redis/redis.sock"), "unix:///run/redis/redis.sock"),
        ("unix:///run/r.sock?db=3", RedisUrl(path="/run/r.sock", db=3), "unix:///run/r.sock?db=3"),
    ],
)  # fmt: skip
def test_a_url_names_a_server_or_a_socket_and_a_database(text: str, url: RedisUrl, shown: str) -> None:
    assert RedisUrl.parse(text) == url
    assert str(url) == shown
    assert RedisUrl.parse(shown) == url


@pytest.mark.parametrize(
    "text",
    [
        "", "127.0.0.1", "localhost:6379", "redis:/127.0.0.1", "redis://", "redis:///0", "redis://host/abc",
        "redis://host:0",
        "redis://host:65536", "redis://host:port", "redis://host:6379/0?timeout=1", "redis://host:6379/0/1",
        "redis://::1",
        "redis://[::1", "redis+sentinel://host", "valkey://host", "REDIS://host", "redis://ho st",
        " redis://host",
        "redis://host ", "redis://host\n", "unix://run/redis.sock", "unix:/run/redis.sock", "unix:///run/r.sock?db=x",
        "unix:///run/r.sock?db=", "unix:///run/r.sock?timeout=1", "http://host",
    ],
)  # fmt: skip
def test_any_other_text_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected redis|a port is from 1 to 65535$"):
        RedisUrl.parse(text)


@pytest.mark.parametrize(
    ("text", "url", "shown"),
    [
        ("rediss://redis.example.com", RedisUrl(host="redis.example.com", port=6379, tls=True),
         "rediss://redis.example.com:6379/0"),
        ("redis+sentinel://a.example.com,b.example.com:26380,[2001:db8::7]/mail.1/2",
         RedisUrl(master="mail.1", db=2,
                  sentinels=(("a.example.com", 26379), ("b.example.com", 26380), ("2001:db8::7", 26379))),
         "redis+sentinel://a.example.com:26379,b.example.com:26380,[2001:db8::7]:26379/mail.1/2"),
    ],
)  # fmt: skip
def test_a_url_names_a_server_behind_tls_or_sentinels(text: str, url: RedisUrl, shown: str) -> None:
    assert RedisUrl.parse(text) == url
    assert str(url) == shown
    assert RedisUrl.parse(shown) == url


@pytest.mark.parametrize(
    "text",
    [
        "redis://a,b", "rediss://a,b/0", "redis+sentinel://a", "redis+sentinel://a/", "redis+sentinel:///mail",
        "redis+sentinel://a,/mail", "redis+sentinel://,a/mail", "redis+sentinel://a/1mail",
        "redis+sentinel://a/ma il",
        "redis+sentinel://a:0/mail", "redis+sentinel://a:65536/mail", "redis+sentinel://a/mail/x",
        "redis+sentinels://a/mail",
    ],
)  # fmt: skip
def test_a_url_of_sentinels_names_them_and_a_master(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected redis|a port is from 1 to 65535$"):
        RedisUrl.parse(text)


@pytest.mark.parametrize("text", ["redis://host:\u0666\u0663\u0667\u0669", "redis://host/\u0663"])
def test_digits_are_ascii(text: str) -> None:
    """int() reads others as well; a name server and the post-login script do not."""
    with pytest.raises(ValueError, match=r"^expected redis"):
        RedisUrl.parse(text)


@pytest.mark.parametrize("text", ["redis://:secret@host/0", "redis://pbs:secret@host:6379", "redis://pbs@host"])
def test_a_password_in_the_url_is_refused_because_urls_end_up_in_logs(text: str) -> None:
    with pytest.raises(ValueError, match=r"use redis_user and redis_password_file$") as refused:
        RedisUrl.parse(text)
    assert "secret" not in str(refused.value)


@given(
    st.one_of(st.text(max_size=30).map("redis://".__add__), st.text(max_size=30).map("unix:///".__add__), st.text())
)
def test_any_text_is_a_url_that_is_shown_as_it_is_meant_or_refused(text: str) -> None:
    try:
        url = RedisUrl.parse(text)
    except ValueError:
        return
    assert RedisUrl.parse(str(url)) == url
    assert [bool(url.path), bool(url.host), bool(url.master)].count(True) == 1
