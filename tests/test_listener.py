"""Where the service listens: what may be written, and how it is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbs_policy.postfix.listener import Listener

PATH_107 = "/" + "x" * 106


@pytest.mark.parametrize(
    ("text", "listener"),
    [
        ("inet:127.0.0.1:10040", Listener(host="127.0.0.1", port=10040)),
        ("inet:localhost:0", Listener(host="localhost", port=0)),
        ("inet:[::1]:65535", Listener(host="::1", port=65535)),
        ("inet:mail.example.com:25", Listener(host="mail.example.com", port=25)),
        ("unix:/run/pbs-policy/policy.sock", Listener(path="/run/pbs-policy/policy.sock")),
        (f"unix:{PATH_107}", Listener(path=PATH_107)),
    ],
)
def test_a_listener_is_written_as_postfix_writes_it(text: str, listener: Listener) -> None:
    assert Listener.parse(text) == listener
    assert str(listener) == text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", ": expected inet:HOST:PORT or unix:/PATH"),
        ("10040", "10040: expected inet:HOST:PORT or unix:/PATH"),
        ("127.0.0.1:10040", "127.0.0.1:10040: expected inet:HOST:PORT or unix:/PATH"),
        ("inet:10040", "inet:10040: expected inet:HOST:PORT or unix:/PATH"),
        ("inet::10040", "inet::10040: expected inet:HOST:PORT or unix:/PATH"),
        ("inet:::1:10040", "inet:::1:10040: expected inet:HOST:PORT or unix:/PATH"),
        ("inet:[::1]10040", "inet:[::1]10040: expected inet:HOST:PORT or unix:/PATH"),
        ("inet:[localhost]:25", "inet:[localhost]:25: expected inet:HOST:PORT or unix:/PATH"),
        ("inet:localhost:smtp", "inet:localhost:smtp: expected inet:HOST:PORT or unix:/PATH"),
        ("inet:localhost:\u0662\u0665", "inet:localhost:\u0662\u0665: expected inet:HOST:PORT or unix:/PATH"),
        ("inet:localhost:65536", "inet:localhost:65536: a port is at most 65535"),
        ("unix:run/policy.sock", "unix:run/policy.sock: expected inet:HOST:PORT or unix:/PATH"),
        ("unix:", "unix:: expected inet:HOST:PORT or unix:/PATH"),
        (f"unix:{PATH_107}x", f"unix:{PATH_107}x: the path of a unix socket has at most 107 bytes"),
    ],
)
def test_any_other_text_is_refused_with_what_was_expected(text: str, fault: str) -> None:
    with pytest.raises(ValueError) as refused:
        Listener.parse(text)
    assert str(refused.value) == fault


def test_a_paths_length_counts_in_bytes() -> None:
    with pytest.raises(ValueError, match="at most 107 bytes"):
        Listener.parse("unix:/" + "\u00e9" * 54)


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("inet:127.0.0.1:1", True),
        ("inet:127.9.9.9:1", True),
        ("inet:localhost:1", True),
        ("inet:[::1]:1", True),
        ("unix:/run/policy.sock", True),
        ("inet:0.0.0.0:1", False),
        ("inet:[::]:1", False),
        ("inet:192.0.2.1:1", False),
        ("inet:mail.example.com:1", False),
        ("inet:127.example.com:1", False),
    ],
)
def test_what_other_machines_can_reach_is_known(text: str, local: bool) -> None:
    """The service says it loudly: whoever reaches it can ask who may relay."""
    assert Listener.parse(text).is_local is local


@given(st.one_of(st.text(max_size=30), st.from_regex(r"inet:\[?[0-9a-f:.]{1,9}\]?:[0-9]{1,6}", fullmatch=True)))
def test_any_text_is_a_listener_that_is_shown_as_it_is_written_or_refused(text: str) -> None:
    try:
        listener = Listener.parse(text)
    except ValueError:
        return
    assert Listener.parse(str(listener)) == listener
