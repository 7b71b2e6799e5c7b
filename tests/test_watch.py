"""`pbs-policy watch`: what it knows, how that looks on terminals of several sizes, where it comes from, and how the
terminal is left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from pbs_policy.bars import fit, has_blocks, plot, width_of
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.table.records import Permit, Record, serialise_permit
from pbs_policy.watch import source as source_module
from pbs_policy.watch.live import Feed
from pbs_policy.watch.screen import render
from pbs_policy.watch.source import Source
from pbs_policy.watch.state import ADDRESSES_KEPT, EVENTS_KEPT, FORGOTTEN, Event, Relay, State, Table
from pbs_policy.watch.terminal import keys
from tests.service import CLI, Service
from tests.stores import pause, resume, table_on, write_login

AT = 1_700_049_600.0  # 2023-11-15 12:00:00 UTC
NOW = 1_000.0  # by the watcher's clock


def head(host: str = "mx1", pid: int = 7, batch: int = 1, **more: Any) -> dict[str, Any]:
    """What a process says of itself."""
    facts = {"version": "1.2", "started": int(AT) - 3700, "connections": 12, "redis_connections": 1}
    return {"host": host, "pid": pid, "batch": batch, "dropped": 0, "counts": {}, **facts, **more}


def decision(client_address: str = "192.0.2.7", **more: Any) -> dict[str, Any]:
    return {
        "time": AT, "host": "mx1", "action": "OK", "reason": "login", "client_address": client_address,
        "user": "alice@example.com", "service": "pop3", "sender": "alice@example.com", "recipient": "bob@example.net",
        **more,
    }  # fmt: skip


STRANGER = decision("198.51.100.9", action="DUNNO", reason="no_login", user="", service="", sender="x@example.org")


def message(*objects: dict[str, Any]) -> bytes:
    return "\n".join(map(json.dumps, objects)).encode()


def relay(target: str, user: str, left: float | None, kind: str = "login", since: int = int(AT)) -> Relay:
    service = "pop3" if kind == "login" else "manual"
    return Relay(kind, target, user, service, since, None if left is None else NOW + left)


def table(*relays: Relay, among: frozenset[str] | None = None, denies: int | None = 0) -> Table:
    return Table({(each.kind, each.target, each.user): each for each in relays}, among, denies)


@pytest.fixture
def state() -> State:
    """A watcher that has heard two services, and read three permissions."""
    state = State("pbs:", NOW - 60)
    state.tick(NOW - 1, AT - 1)
    state.see(
        table(
            relay("192.0.2.7", "alice@example.com", 1750),
            relay("192.0.2.8", "bob@example.com", 20),
            relay("2001:db8::/64", "scanner@example.com", 7_000_000, "permit"),
        )
    )
    state.set_redis(0.00042, "", AT)
    for host in ("mx1", "mx2"):
        state.hear(message(head(host)), NOW - 1, AT - 1)
    state.hear(
        message(head(batch=2, counts={"OK login": 12, "DUNNO no_login": 1_200}), decision(), STRANGER), NOW, AT
    )
    state.hear(message(head("mx2", batch=2, counts={"DUNNO no_login": 300})), NOW, AT)
    state.tick(NOW, AT)
    return state


def screen(state: State, width: int, height: int, *, blocks: bool = True, later: float = 0.0) -> str:
    lines = render(state, width, height, NOW + later, AT + later, blocks=blocks)
    assert len(lines) <= height
    assert all(width_of(line.text) <= width for line in lines)
    return "".join(line.text + "\n" for line in lines)


WIDE = """\
pbs-policy watch pbs:  12:00:00 UTC  Redis 0.4 ms
OK 12/s  DUNNO 1,500/s  DEFER 0/s  #

HOST  PID  VERSION  RUNS FOR  CLIENTS  RECONNECTS  DECISIONS/S
mx1   7    1.2      1h 1m     12       0           1,212
mx2   7    1.2      1h 1m     12       0           300

MAY RELAY: 3, by left
192.0.2.8      bob@example.com      pop3    20s
192.0.2.7      alice@example.com    pop3    29m 10s
2001:db8::/64  scanner@example.com  manual  81d 26m

EVENTS
11:59:59 mx1 service 7 is heard, version 1.2, since 2023-11-15 10:58:20 UTC
11:59:59 mx2 service 7 is heard, version 1.2, since 2023-11-15 10:58:20 UTC
12:00:00 mx1 OK     login      192.0.2.7       alice@example.com pop3  <alice@example.com> to <bob@example.net>
12:00:00 mx1 DUNNO  no_login   198.51.100.9     <x@example.org> to <bob@example.net>






q quits  p pauses  / filters  s sorts
"""


def test_a_wide_screen_shows_everything(state: State) -> None:
    assert screen(state, 120, 24, blocks=False) == WIDE


def test_a_narrow_low_screen_shows_how_things_stand_and_the_last_events(state: State) -> None:
    assert screen(state, 40, 8, blocks=False) == (
        "pbs-policy watch pbs:  12:00:00 UTC  R..\n"
        "OK 12/s  DUNNO 1,500/s  DEFER 0/s\n"
        "\n"
        "EVENTS\n"
        "11:59:59 mx2 service 7 is heard, versi..\n"
        "12:00:00 mx1 OK     login 192.0.2.7   ..\n"
        "12:00:00 mx1 DUNNO  no_login 198.51.10..\n"
        "q quits  p pauses  / filters  s sorts\n"
    )


@given(
    width=st.integers(1, 200),
    height=st.integers(1, 60),
    user=st.text(max_size=30),
    later=st.floats(0, 100),
    pressed=st.text("qps/ x", max_size=6),
)
def test_no_line_is_wider_and_no_screen_higher_than_the_terminal(
    width: int, height: int, user: str, later: float, pressed: str
) -> None:
    state = State("pbs:", NOW, user)
    state.hear(message(head(user or "h"), decision(user=user)), NOW, AT)
    state.see(table(relay("192.0.2.7", user, 5), relay("192.0.2.8", user, None)))
    for key in pressed:
        state.press(key)
    state.tick(NOW + 1, AT)
    screen(state, width, height, later=later)


def test_many_who_may_relay_are_counted(state: State) -> None:
    state.see(table(*(relay(f"192.0.2.{number}", "u", number + 1) for number in range(50)), denies=2))
    text = screen(state, 80, 24)
    assert "MAY RELAY: 50, by left; 2 denies outrank them\n192.0.2.0  u  pop3  1s\n" in text
    assert re.search(r"and (\d+) more\n\nEVENTS", text)
    shown = text.count("  pop3  ")
    assert f"and {50 - shown} more\n" in text


def test_who_may_relay_no_longer_is_not_shown(state: State) -> None:
    assert "bob@example.com" not in screen(state, 80, 24, later=21)


def test_a_silent_service_is_called_silent_and_then_forgotten(state: State) -> None:
    assert "silent" not in screen(state, 80, 24, later=2)
    assert "silent for 5s" in screen(state, 80, 24, later=5)
    state.tick(NOW + FORGOTTEN + 1, AT + FORGOTTEN + 1)
    assert "no service is heard" in screen(state, 100, 24)
    assert state.events[-1].line() == "2023-11-15T12:00:31Z mx2 service 7 is not heard any more"


def test_a_large_table_is_said_to_be_shown_in_part(state: State) -> None:
    state.see(table(relay("192.0.2.7", "u", 5), among=frozenset({"192.0.2.7"}), denies=None))
    assert "MAY RELAY: 1, by left; of the addresses below alone, the table is large" in screen(state, 80, 24)


def test_an_unavailable_redis_is_shown_with_its_trouble(state: State) -> None:
    state.set_redis(None, "Connection refused\x1b[2J", AT)
    first = screen(state, 80, 24).splitlines()[0]
    assert first == "pbs-policy watch pbs:  12:00:00 UTC  Redis unavailable: Connection refused?[2J"
    state.set_redis(0.001, "", AT)
    assert [event.reason for event in state.events][-2:] == [
        "Redis is unavailable: Connection refused?[2J", "Redis answers again",
    ]  # fmt: skip


def test_an_event_is_a_line_in_the_names_of_the_log() -> None:
    event = Event(AT, "mx1", "DUNNO", "sender_mismatch", "192.0.2.7", 'a "b"', "pop3", "", "bob@example.net")
    assert event.line() == (
        "2023-11-15T12:00:00Z mx1 action=DUNNO client_address=192.0.2.7 reason=sender_mismatch "
        'user="a \\"b\\"" service=pop3 recipient=bob@example.net'
    )
    login = Event(AT, "", "login", "", "192.0.2.7", "alice@example.com", "imap")
    assert login.line() == "2023-11-15T12:00:00Z - login client_address=192.0.2.7 user=alice@example.com service=imap"


def test_a_message_that_comes_twice_counts_once(state: State) -> None:
    before = list(state.events)
    state.hear(message(head(batch=2), decision()), NOW, AT)
    assert list(state.events) == before
    state.hear(message(head(batch=3), decision()), NOW, AT)
    assert len(state.events) == len(before) + 1
    restarted = head(batch=3, started=int(AT))
    state.hear(message(restarted, decision()), NOW, AT)
    assert len(state.events) == len(before) + 2


def test_what_the_service_dropped_is_said(state: State) -> None:
    state.hear(message(head(batch=3, dropped=1234)), NOW, AT)
    assert state.events[-1].reason == "1234 decisions are not shown: too many at once"
    assert "not shown 1,234" in screen(state, 80, 24)


@given(st.one_of(st.binary(max_size=200), st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(
        st.sampled_from(["host", "pid", "batch", "counts", "time", "action", "started", "dropped", "OK x"]), each
    ),
).map(lambda each: json.dumps(each).encode())))  # fmt: skip
def test_whatever_is_published_is_taken_without_an_error(data: bytes) -> None:
    state = State("pbs:", NOW)
    for sent in (data, message(head()) + b"\n" + data, data + b"\n" + data):
        state.hear(sent, NOW, AT)
    state.tick(NOW + 1, AT)
    screen(state, 80, 24)


def test_a_peers_text_is_made_printable(state: State) -> None:
    state.hear(message(head(batch=3), decision(user="a\x1b[31m\u202e", sender="\n")), NOW, AT)
    event = state.events[-1]
    assert (event.user, event.sender) == ("a?[31m?", "?")


def test_what_is_kept_is_bounded(state: State) -> None:
    for batch in range(3, 8):
        some = (decision(f"10.0.{batch}.{number}") for number in range(EVENTS_KEPT))
        state.hear(message(head(batch=batch), *some), NOW, AT)
    assert len(state.events) == EVENTS_KEPT
    assert len(state.addresses) == ADDRESSES_KEPT
    assert list(state.addresses)[-1] == f"10.0.7.{EVENTS_KEPT - 1}"


def test_a_login_that_is_new_in_the_table_has_just_happened(state: State) -> None:
    state.events.clear()
    state.see(table(relay("192.0.2.7", "alice@example.com", 1750), relay("192.0.2.9", "carol@example.com", 1800)))
    assert [(event.action, event.user) for event in state.events] == [("login", "carol@example.com")]
    state.see(table(relay("192.0.2.7", "alice@example.com", 1800, since=int(AT) + 1)))
    assert [(event.action, event.user) for event in state.events][1:] == [("login", "alice@example.com")]
    state.see(table(relay("192.0.2.8", "x", 9, "permit")))
    assert state.events[-1].action == "permit"


def test_an_address_that_was_not_read_before_has_not_just_logged_in(state: State) -> None:
    state.see(table(relay("192.0.2.7", "alice@example.com", 9), among=frozenset({"192.0.2.7"}), denies=None))
    state.events.clear()
    both = frozenset({"192.0.2.7", "192.0.2.9"})
    state.see(table(relay("192.0.2.9", "carol@example.com", 9), among=both, denies=None))
    assert not state.events
    state.see(table(relay("192.0.2.7", "bob@example.com", 9), among=both, denies=None))
    assert [event.user for event in state.events] == ["bob@example.com"]


def test_while_paused_the_events_stand_still_and_are_taken_in(state: State) -> None:
    state.press("p")
    paused = state.shown_events(100)
    state.hear(message(head(batch=3), decision("203.0.113.1")), NOW, AT)
    assert state.shown_events(100) == paused
    assert "PAUSED" in screen(state, 80, 24)
    state.press(" ")
    assert state.shown_events(100)[-1].client_address == "203.0.113.1"


def test_the_filter_is_typed_and_holds_for_events_and_entries(state: State) -> None:
    for key in ("/", "A", "L", "x", "backspace", "i"):
        assert state.press(key)
    assert "only events and entries with: ALi_" in screen(state, 80, 24)
    assert state.pattern == ""
    state.press("enter")
    assert [event.client_address for event in state.shown_events(9)] == ["192.0.2.7"]
    assert [each.user for each in state.shown_relays()] == ["alice@example.com"]
    assert 'only "ALi"' in screen(state, 80, 24)
    state.press("escape")
    assert len(state.shown_events(9)) == 4


def test_a_filter_that_is_left_stays_as_it_was(state: State) -> None:
    for key in ("/", "q", "enter", "/", "x", "escape"):
        assert state.press(key)
    assert state.pattern == "q"
    assert not state.press("q")


def test_s_sorts_who_may_relay(state: State) -> None:
    orders = []
    for _ in range(4):
        orders.append([each.target for each in state.shown_relays()])
        state.press("s")
    assert orders[0] == ["192.0.2.8", "192.0.2.7", "2001:db8::/64"]
    assert orders[1] == ["192.0.2.7", "192.0.2.8", "2001:db8::/64"]
    assert orders[2] == orders[1]
    assert orders[3] == orders[0]


@pytest.mark.parametrize(
    ("sent", "pressed"),
    [
        ("q", ["q"]), ("\r", ["enter"]), ("\x7f", ["backspace"]), ("\x1b", ["escape"]), ("\x1b[A", []),
        ("\x1bOP", []), ("\x1b[15;2~x", ["x"]), ("\x1bq", []), ("a\x1b[Bb", ["a", "b"]), ("\u00e9", ["\u00e9"]),
    ],
)  # fmt: skip
def test_keys_without_a_character_mean_nothing(sent: str, pressed: list[str]) -> None:
    assert list(keys(sent)) == pressed


def test_a_plot_is_as_high_as_its_largest_number() -> None:
    assert plot([0, 1, 2, 4, 8], 2, blocks=True) == ["    \u2588", " \u2582\u2584\u2588\u2588"]
    assert plot([0, 1, 300], 1, blocks=False) == [" .#"]
    assert plot([0, 0], 2, blocks=False) == ["  ", "  "]
    assert plot([], 1, blocks=True) == [""]


def test_blocks_are_drawn_where_the_encoding_has_them() -> None:
    assert [has_blocks(name) for name in ("utf-8", "ascii", "latin-1", None, "no-such")] == [True, *[False] * 4]


@given(st.text(), st.integers(0, 50))
def test_a_fitted_text_is_exactly_as_wide_as_asked(text: str, width: int) -> None:
    assert width_of(fit(text, width)) == width


def test_wide_letters_take_two_columns() -> None:
    assert fit("\u65e5\u672c\u8a9e@example.com", 9) == "\u65e5\u672c\u8a9e@.."
    assert fit("\u65e5\u672c", 3) == "\u65e5 "


# Where it comes from.


class Follower:
    """A source, its feed and its state, on a Redis of either world."""

    def __init__(self, redis: Redis, *, addresses: tuple[str, ...] = ()) -> None:
        self.table = table_on(redis, "pbs:")
        self.source = Source(self.table, lambda: NOW)
        self.addresses = addresses

    def look(self) -> Table:
        return self.source.look(self.addresses)[0]

    def log_in(self, address: str, user: str, ttl: int = 1800, login_at: int = int(AT)) -> None:
        write_login(self.table, address, Record(login_at, "pop3", user), ttl, with_domain=True)


@pytest.fixture
def follower(redis: Redis) -> Iterator[Follower]:
    follower = Follower(redis)
    yield follower
    follower.source.close()


def users(seen: Table) -> list[tuple[str, str, str]]:
    return sorted((each.kind, each.target, each.user) for each in seen.relays.values())


def test_a_look_says_that_somebody_watches_for_a_few_seconds(follower: Follower, redis: Redis) -> None:
    follower.look()
    assert 0 < redis.ttl("pbs:watching") <= 5


def test_each_user_behind_an_address_is_found_once(follower: Follower, redis: Redis) -> None:
    follower.log_in("192.0.2.7", "Alice@example.com")
    follower.log_in("192.0.2.7", "bob@example.com")
    redis.set("pbs:login:192.0.2.8", b"1700000000", ex=60)  # last_login's, without a user
    permit = serialise_permit(Permit(int(AT), "scanner", senders=("@example.com",)))
    redis.set("pbs:permit:2001:db8::/64", permit, ex=60)
    redis.set("pbs:deny:192.0.2.9", b"", ex=60)
    redis.set("pbs:login:192.0.2.10", b"no record", ex=60)
    redis.set("other:login:192.0.2.11", b"1700000000", ex=60)
    seen = follower.look()
    assert users(seen) == [
        ("login", "192.0.2.7", "Alice@example.com"),
        ("login", "192.0.2.7", "bob@example.com"),
        ("login", "192.0.2.8", ""),
        ("permit", "2001:db8::/64", "scanner"),
    ]
    assert (seen.among, seen.denies) == (None, 1)
    ends = [each.ends for each in seen.relays.values() if each.user == "bob@example.com"]
    assert ends[0] is not None
    assert NOW + 1790 < ends[0] <= NOW + 1800


def test_of_the_keys_of_one_user_the_one_that_lasts_longest_counts(follower: Follower, redis: Redis) -> None:
    for number in range(20):
        follower.log_in(f"192.0.2.{number}", "alice@example.com")
        redis.expire(f"pbs:login:192.0.2.{number}", 10)
    assert all(each.ends and each.ends > NOW + 1000 for each in follower.look().relays.values())


def test_the_end_is_that_of_now(follower: Follower, redis: Redis) -> None:
    def left() -> float:
        (each,) = follower.look().relays.values()
        assert each.ends is not None
        return each.ends - NOW

    follower.log_in("192.0.2.7", "alice@example.com", 100)
    assert 90 < left() <= 100
    follower.log_in("192.0.2.7", "alice@example.com", 500, login_at=int(AT) + 1)
    assert 490 < left() <= 500
    for key in redis.keys("pbs:login:*"):
        redis.expire(key, 300)
    assert 290 < left() <= 300


def test_a_key_without_an_end_is_shown_as_such(follower: Follower, redis: Redis) -> None:
    redis.set("pbs:login:192.0.2.7", b"1700000000 pop3 alice@example.com")
    assert [each.ends for each in follower.look().relays.values()] == [None]


def test_in_a_large_table_only_the_addresses_of_decisions_are_read(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "MOST_KEYS", 2)
    monkeypatch.setattr(source_module, "BATCH", 1)
    follower = Follower(redis, addresses=("192.0.2.7", "192.0.2.200"))
    for number in range(100):
        follower.log_in(f"192.0.2.{number}", "alice@example.com")
    for _ in range(3):
        seen = follower.look()
        assert users(seen) == [("login", "192.0.2.7", "alice@example.com")]
        assert (seen.among, seen.denies) == (frozenset({"192.0.2.7", "192.0.2.200"}), None)


def test_what_is_published_is_heard(follower: Follower, redis: Redis) -> None:
    follower.source.listen()
    for number in range(3):
        redis.publish("pbs:events", f"{number}")
    heard: list[bytes] = []

    def has_heard() -> bool:
        heard.extend(follower.source.listen())
        return len(heard) >= 3

    assert wait_until(has_heard)
    assert heard == [b"0", b"1", b"2"]


@pytest.mark.parametrize("is_mute", [False, True])
def test_after_an_outage_of_redis_it_goes_on_and_subscribes_anew(
    own_redis: Callable[..., PrivateRedis], is_mute: bool
) -> None:
    server = own_redis()
    with Redis(port=server.port, socket_timeout=0.2) as client:
        state = State("pbs:", time.monotonic())
        source = Follower(client).source
        feed = Feed(source, state)
        feed.begin()

        def steps(condition: Callable[[], bool]) -> bool:
            feed.step()
            return condition()

        def subscriptions() -> list[str]:
            connections: Any = client.client_list(_type="pubsub")
            return [each["id"] for each in connections]

        before = subscriptions()
        if is_mute:  # the connection for messages is not lost: it only says nothing
            pause(server)
        else:
            server.stop()
        assert wait_until(lambda: steps(lambda: bool(state.trouble)))
        assert state.answer_time is None
        if is_mute:
            resume(server)
        else:
            server.start()
        assert wait_until(lambda: steps(lambda: not state.trouble))
        assert wait_until(lambda: len(subscriptions()) == 1)
        assert subscriptions() != before or not is_mute
        client.publish("pbs:events", message(head(), decision()))
        assert wait_until(lambda: steps(lambda: bool(state.services)))
        source.close()


def test_a_source_of_an_unavailable_redis_says_so(own_redis: Callable[..., PrivateRedis]) -> None:
    server = own_redis()
    with Redis(port=server.port, socket_timeout=0.5) as client:
        follower = Follower(client)
        server.stop()
        with pytest.raises(StoreUnavailable):
            follower.look()
        with pytest.raises(StoreUnavailable):
            follower.source.listen()


# The command, where standard output is a pipe, and in a terminal.


@pytest.fixture
def service(start_service: Callable[..., Service], redis_server: PrivateRedis) -> Service:
    return start_service(redis_url=redis_server.url)


def log_in(server: PrivateRedis, address: str, user: str) -> None:
    with Redis(port=server.port) as client:
        write_login(table_on(client, "pbs:"), address, Record(int(time.time()), "pop3", user), 1800)


def test_in_a_pipe_each_event_is_a_line(service: Service, redis_server: PrivateRedis, tmp_path: Path) -> None:
    output = tmp_path / "lines"
    command = [*CLI, "-c", str(service.settings_file), "watch", "--filter", "2.7"]
    with output.open("wb") as file:
        watcher = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        with Redis(port=redis_server.port) as client:
            assert wait_until(lambda: client.exists("pbs:watching") == 1)
        log_in(redis_server, "192.0.2.7", "alice@example.com")
        assert wait_until(lambda: "login client_address=192.0.2.7 user=alice@example.com" in output.read_text())

        def is_shown() -> bool:
            service.ask("192.0.2.8")
            assert service.ask("192.0.2.7") == "OK"
            return " action=OK client_address=192.0.2.7 reason=login user=alice@example.com" in output.read_text()

        assert wait_until(is_shown)
        assert "192.0.2.8" not in output.read_text()
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(60) == 130
    finally:
        watcher.kill()
        watcher.wait()


class Tmux:
    """A terminal of the test's own, with a shell in it that tells nothing of the machine."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._command = ["tmux", "-S", str(directory / "tmux"), "-f", "/dev/null"]
        settings = [word for pair in environment.items() for word in ("-e", "=".join(pair))]
        shell = ["env", "PS1=ready$ ", "bash", "--norc", "--noprofile"]
        self._run("new-session", "-d", "-x", "90", "-y", "24", *settings, *shell)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def press(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def type(self, line: str) -> None:
        self._run("send-keys", "-l", line)
        self.press("Enter")

    def resize(self, width: int, height: int) -> None:
        self._run("resize-window", "-x", str(width), "-y", str(height))

    def text(self, *options: str) -> str:
        return self._run("capture-pane", "-p", *options)

    def shows(self, text: str) -> bool:
        return wait_until(lambda: text in self.text())

    def is_sane(self) -> bool:
        """Whether the terminal is as a shell wants it: lines, echo, a cursor, the first screen."""
        self.type("clear; stty -a | tr ' ;' '\\n' | grep -cx -e icanon -e echo -e isig")
        state = "#{alternate_on} #{cursor_flag}"
        return self.shows("3\nready$") and self._run("display-message", "-p", state).split() == ["0", "1"]

    def close(self) -> None:
        subprocess.run([*self._command, "kill-server"], capture_output=True, timeout=60, check=False)


@pytest.fixture
def start_tmux(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Tmux]]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed: apt-get install tmux")
    import tempfile

    with tempfile.TemporaryDirectory(prefix="pbs-") as directory:
        started: list[Tmux] = []

        def start(**environment: str) -> Tmux:
            own = {"LC_ALL": "C.UTF-8", "NO_COLOR": "", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
            started.append(Tmux(Path(directory), own | environment))
            return started[-1]

        yield start
        for each in started:
            each.close()


@pytest.fixture
def tmux(start_tmux: Callable[..., Tmux]) -> Tmux:
    return start_tmux()


def watch(tmux: Tmux, service: Service) -> None:
    tmux.type(f"clear; {sys.executable} -m pbs_policy -c {service.settings_file} watch; echo status=$?.")
    assert tmux.shows(str(service.pid))  # it is heard


def test_in_a_terminal_it_shows_what_happens_and_obeys_keys(
    tmux: Tmux, service: Service, redis_server: PrivateRedis
) -> None:
    watch(tmux, service)
    log_in(redis_server, "192.0.2.7", "alice@example.com")
    assert tmux.shows("192.0.2.7  alice@example.com  pop3  29m")
    service.ask("192.0.2.7")
    service.ask("198.51.100.9")
    assert tmux.shows("<alice@example.com> to <bob@example.net>")
    assert tmux.shows("no_login   198.51.100.9")
    tmux.press("/")
    tmux.type("198.51")
    assert tmux.shows('only "198.51"')
    assert "alice@example.com pop3" not in tmux.text()
    tmux.press("Escape")
    assert tmux.shows("OK     login      192.0.2.7")
    tmux.press("s")
    assert tmux.shows("MAY RELAY: 1, by address")
    tmux.press("p")
    assert tmux.shows("PAUSED")
    tmux.press("q")
    assert tmux.shows("status=0.")
    assert "EVENTS" not in tmux.text()
    assert tmux.is_sane()


def test_a_resized_terminal_is_filled_anew(tmux: Tmux, service: Service) -> None:
    watch(tmux, service)
    tmux.resize(40, 10)
    assert wait_until(lambda: tmux.text().splitlines()[9:] == ["q quits  p pauses  / filters  s sorts"])
    tmux.resize(100, 30)
    assert wait_until(lambda: tmux.text().splitlines()[29:] == ["q quits  p pauses  / filters  s sorts"])
    assert "RECONNECTS" in tmux.text()


def watcher_pid(service: Service) -> int:
    """The watcher of this service in the terminal, by its command line."""
    wanted = ["-c", str(service.settings_file), "watch"]
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if words[-4:-1] == wanted and "python" in words[0]:
                return int(entry.name)
    raise AssertionError("no watcher runs")


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_a_signal_ends_it_and_the_terminal_is_given_back(tmux: Tmux, service: Service, which: signal.Signals) -> None:
    watch(tmux, service)
    os.kill(watcher_pid(service), which)
    assert tmux.shows(f"status={128 + which}.")
    assert tmux.is_sane()


def test_while_it_is_stopped_the_terminal_is_the_shells(tmux: Tmux, service: Service) -> None:
    watch(tmux, service)
    tmux.press("C-z")
    assert tmux.shows("Stopped")
    assert tmux.is_sane()
    tmux.type("fg")
    assert tmux.shows("EVENTS")
    tmux.press("q")
    assert wait_until(lambda: "EVENTS" not in tmux.text())
    assert tmux.is_sane()


def test_an_exception_gives_the_terminal_back(tmux: Tmux, tmp_path: Path) -> None:
    program = tmp_path / "fail.py"
    program.write_text(
        "from pbs_policy.watch.terminal import Terminal\n"
        "from pbs_policy.watch.screen import ScreenLine\n"
        "with Terminal() as terminal:\n"
        "    terminal.draw([ScreenLine('drawn')])\n"
        "    raise ValueError('failed in between')\n"
    )
    tmux.type(f"{sys.executable} {program}; echo status=$?.")
    assert tmux.shows("status=1.")
    assert "ValueError: failed in between" in tmux.text()
    assert tmux.is_sane()


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_left_out_where_no_color_says_so(
    start_tmux: Callable[..., Tmux], service: Service, redis_server: PrivateRedis, no_color: str
) -> None:
    tmux = start_tmux(NO_COLOR=no_color)
    watch(tmux, service)
    log_in(redis_server, "192.0.2.7", "alice@example.com")
    service.ask("192.0.2.7")
    assert tmux.shows("OK     login")
    assert bool(re.search(r"\x1b\[3[0-7]m", tmux.text("-e"))) is not bool(no_color)
    tmux.press("q")
    assert tmux.shows("status=0.")


def test_a_dumb_terminal_gets_lines(start_tmux: Callable[..., Tmux], service: Service) -> None:
    tmux = start_tmux()
    tmux.type(f"clear; TERM=dumb {sys.executable} -m pbs_policy -c {service.settings_file} watch")
    assert tmux.shows(f"service {service.pid} is heard")
    assert "EVENTS" not in tmux.text()
    tmux.press("C-c")
    assert tmux.is_sane()


def test_a_terminal_that_is_closed_ends_it(tmux: Tmux, service: Service) -> None:
    watch(tmux, service)
    pid = watcher_pid(service)
    tmux.close()
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists())
