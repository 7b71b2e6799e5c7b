"""Where Redis is: what may be written as redis_url, and what is refused before the first connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbs_policy.store.redis_url import RedisUrl, in_one_slot


@pytest.mark.parametrize(
    ("text", "url", "shown"),
    [
        ("redis://127.0.0.1", RedisUrl((("127.0.0.1", 6379),)), "redis://127.0.0.1:6379/0"),
        ("redis://127.0.0.1/", RedisUrl((("127.0.0.1", 6379),)), "redis://127.0.0.1:6379/0"),
        ("redis://127.0.0.1:6380/2", RedisUrl((("127.0.0.1", 6380),), db=2), "redis://127.0.0.1:6380/2"),
        ("redis://redis.example.com/15", RedisUrl((("redis.example.com", 6379),), db=15),
         "redis://redis.example.com:6379/15"),
        ("redis://[2001:db8::7]:6380", RedisUrl((("2001:db8::7", 6380),)), "redis://[2001:db8::7]:6380/0"),
        ("unix:///run/redis/redis.sock", RedisUrl(path="/run/redis/redis.sock"), "unix:///run/redis/redis.sock"),
        ("unix:///run/r.sock?db=3", RedisUrl(path="/run/r.sock", db=3), "unix:///run/r.sock?db=3"),
        ("rediss://redis.example.com", RedisUrl((("redis.example.com", 6379),), tls=True),
         "rediss://redis.example.com:6379/0"),
        ("redis+sentinel://a.example.com,b.example.com:26380,[2001:db8::7]/mail.1/2",
         RedisUrl((("a.example.com", 26379), ("b.example.com", 26380),
                   ("2001:db8::7", 26379)), db=2, master="mail.1"),
         "redis+sentinel://a.example.com:26379,b.example.com:26380,[2001:db8::7]:26379/mail.1/2"),
    ],
)  # fmt: skip
def test_a_url_names_a_server_a_socket_or_sentinels_and_a_database(text: str, url: RedisUrl, shown: str) -> None:
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
        "redis://[::1", "redis+sentinel://host", "valkeyss://host", "REDIS://host", "redis://ho st",
        " redis://host",
        "redis://host ", "redis://host\n", "unix://run/redis.sock", "unix:/run/redis.sock", "unix:///run/r.sock?db=x",
        "unix:///run/r.sock?db=", "unix:///run/r.sock?timeout=1", "http://host",
        "redis://host:\u0666\u0663\u0667\u0669", "redis://host/\u0663",  # digits for int() alone
        "redis://a,", "rediss://a,,b/0", "redis://a/0,b", "redis+cluster://a/0", "redis+cluster://",
        "redis+cluster://a,", "redis+sentinel://a", "redis+sentinel://a/", "redis+sentinel:///mail",
        "redis+sentinel://a,/mail", "redis+sentinel://,a/mail", "redis+sentinel://a/1mail",
        "redis+sentinel://a/ma il",
        "redis+sentinel://a:0/mail", "redis+sentinel://a:65536/mail", "redis+sentinel://a/mail/x",
        "redis+sentinels://a/mail",
    ],
)  # fmt: skip
def test_any_other_text_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected redis|a port is from 1 to 65535$"):
        RedisUrl.parse(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rediss+sentinel://a.example.com/mail", "rediss+sentinel://a.example.com:26379/mail/0"),
        ("redis+cluster://a.example.com,b.example.com:7001",
         "redis+cluster://a.example.com:6379,b.example.com:7001"),
        ("rediss+cluster://a.example.com/", "rediss+cluster://a.example.com:6379"),
        ("valkey://a.example.com", "redis://a.example.com:6379/0"),
        ("valkeys://a.example.com/1", "rediss://a.example.com:6379/1"),
        ("valkey+sentinel://a.example.com/mail", "redis+sentinel://a.example.com:26379/mail/0"),
        ("valkeys+cluster://a.example.com", "rediss+cluster://a.example.com:6379"),
    ],
)  # fmt: skip
def test_sentinels_a_cluster_and_valkeys_spelling_are_urls_as_well(text: str, shown: str) -> None:
    url = RedisUrl.parse(text)
    assert str(url) == shown
    assert RedisUrl.parse(shown) == url
    assert url.cluster == ("+cluster" in text)
    assert url.tls == shown.startswith("rediss")


def test_a_list_of_servers_without_sentinel_or_cluster_is_refused_with_what_to_do_instead() -> None:
    for text in ("redis://a.example.com,b.example.com:6380,[2001:db8::7]/2", "rediss://a,b"):
        with pytest.raises(ValueError, match=r"redis\+sentinel://\.\.\. or redis\+cluster://"):
            RedisUrl.parse(text)


def test_only_one_server_is_asked_without_being_looked_for() -> None:
    assert RedisUrl.parse("redis://a.example.com").server == ("a.example.com", 6379)
    for text in ("redis+sentinel://a/mail", "redis+cluster://a", "unix:///run/redis.sock"):
        assert RedisUrl.parse(text).server is None


@pytest.mark.parametrize(
    ("prefix", "whether"),
    [("{pbs}:", True), ("a{b}c", True), ("{{x}:", True), ("pbs:", False), ("{}pbs:", False), ("{pbs:", False),
     ("}{pbs:", False), ("{}{pbs}:", False)],
)  # fmt: skip
def test_a_hash_tag_is_what_the_first_braces_hold(prefix: str, whether: bool) -> None:
    assert in_one_slot(prefix) is whether


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
    assert bool(url.path) != bool(url.places)
    assert not (url.master and url.cluster)
