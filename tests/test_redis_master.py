"""Who is asked which server is the master, in which order, and what is made of the answers: without any I/O."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest

from pbs_policy.store.redis_master import MasterUnknown, Step, is_elsewhere, is_replica, log_in, search
from pbs_policy.store.redis_url import NOBODY, Login, Place, RedisUrl

A, B, C = ("a.example.com", 1), ("b.example.com", 2), ("c.example.com", 3)
PLACES = "a.example.com:1,b.example.com:2,c.example.com:3"
MASTER, REPLICA = [b"server", b"redis", b"role", b"master"], [b"role", b"replica", b"modules", []]


def find(
    url: str, outcomes: dict[Place, Any], login: Login = NOBODY, sentinel: Login = NOBODY
) -> tuple[Any, list[Step]]:
    """Whom `url` leads to where the places answer so, and what was asked; a place without an answer is not there."""
    parsed = RedisUrl.parse(url)
    steps = search(parsed, parsed.places, login, sentinel, (b"GET", b"{pbs}:probe"))
    asked = [next(steps)]
    try:
        while True:
            asked.append(steps.send(outcomes.get(asked[-1].place, OSError("no route"))))
    except StopIteration as found:
        return found.value, asked
    except MasterUnknown as unknown:
        return unknown, asked


@pytest.mark.parametrize(
    ("outcomes", "found", "asked"),
    [
        ({A: [b"192.0.2.1", b"6379"], B: [b"192.0.2.2", b"6379"]}, ("192.0.2.1", 6379), [A]),
        ({B: [b"2001:db8::1", b"6380"]}, ("2001:db8::1", 6380), [A, B]),
        ({A: None, C: [b"192.0.2.1", b"6379"]}, ("192.0.2.1", 6379), [A, B, C]),
    ],
)
def test_the_first_sentinel_that_knows_the_master_is_believed(
    outcomes: dict[Place, Any], found: Place, asked: list[Place]
) -> None:
    place, steps = find(f"redis+sentinel://{PLACES}/mail", outcomes)
    assert place == found
    assert [step.place for step in steps] == asked
    assert {step.question for step in steps} == {(b"SENTINEL", b"get-master-addr-by-name", b"mail")}


@pytest.mark.parametrize(
    ("outcomes", "found", "asked"),
    [
        ({A: None}, A, [A]),
        ({A: hiredis.ReplyError("MOVED 1 192.0.2.9:7000")}, ("192.0.2.9", 7000), [A]),
        ({A: hiredis.ReplyError("GET: MOVED 1 2001:db8::1:7000")}, ("2001:db8::1", 7000), [A]),
        ({A: hiredis.ReplyError("MOVED 1 :7000")}, ("a.example.com", 7000), [A]),  # a host that it does not know
        ({A: hiredis.ReplyError("CLUSTERDOWN x"), B: b"value"}, B, [A, B]),
        ({C: None}, C, [A, B, C]),
    ],
)
def test_any_node_of_a_cluster_leads_to_the_master_of_the_slot(
    outcomes: dict[Place, Any], found: Place, asked: list[Place]
) -> None:
    place, steps = find(f"redis+cluster://{PLACES}", outcomes)
    assert place == found
    assert [step.place for step in steps] == asked
    assert {step.question for step in steps} == {(b"GET", b"{pbs}:probe")}


@pytest.mark.parametrize(
    ("outcomes", "found", "asked"),
    [
        ({A: MASTER, B: MASTER}, A, [A]),
        ({A: REPLICA, B: REPLICA, C: MASTER}, C, [A, B, C]),
        ({A: TimeoutError(), C: MASTER}, C, [A, B, C]),
    ],
)
def test_of_several_servers_the_first_master_is_meant(
    outcomes: dict[Place, Any], found: Place, asked: list[Place]
) -> None:
    place, steps = find(f"redis://{PLACES}", outcomes)
    assert place == found
    assert [step.place for step in steps] == asked
    assert {step.question for step in steps} == {(b"HELLO", b"2")}


@pytest.mark.parametrize(
    ("url", "outcomes", "said"),
    [
        ("redis+sentinel://a.example.com:1/mail", {A: None}, "Sentinel a.example.com:1: knows no master mail"),
        ("redis+sentinel://a.example.com:1/mail", {}, "Sentinel a.example.com:1: no route"),
        ("redis+sentinel://a.example.com:1/mail", {A: TimeoutError()}, "Sentinel a.example.com:1: no answer"),
        (f"redis://{PLACES}", {A: REPLICA, B: TimeoutError(), C: TimeoutError()},
         "a.example.com:1: it is a replica, which may be behind"),
        (f"redis://{PLACES}", {C: REPLICA}, "c.example.com:3: it is a replica, which may be behind"),
        ("redis+cluster://a.example.com:1", {A: hiredis.ReplyError("NOPERM x")}, "a.example.com:1: NOPERM x"),
        (f"redis+cluster://{PLACES}", {B: hiredis.ReplyError("GET: CLUSTERDOWN The cluster is down")},
         "b.example.com:2: GET: CLUSTERDOWN The cluster is down"),
    ],
)  # fmt: skip
def test_where_nobody_knows_the_master_it_is_said_why(url: str, outcomes: dict[Place, Any], said: str) -> None:
    unknown, _ = find(url, outcomes)
    assert isinstance(unknown, MasterUnknown)
    assert str(unknown) == said
    assert unknown.replicas == tuple(place for place, outcome in outcomes.items() if outcome is REPLICA)


def test_each_place_has_its_share_of_the_time_and_the_master_one_of_its_own() -> None:
    _, steps = find(f"redis+sentinel://{PLACES}/mail", {})
    left, shares = 1.0, []
    for step in steps:
        shares.append(step.share * left)
        left -= shares[-1]
    assert shares == pytest.approx([1 / 4, 1 / 4, 1 / 4])


def test_sentinels_and_redis_are_logged_in_to_each_with_its_own_password() -> None:
    redis, sentinel = Login("pbs", "of redis"), Login("", "of sentinel")
    _, steps = find("redis+sentinel://a.example.com:1/mail/3", {A: None}, redis, sentinel)
    assert steps[0].login == [(b"AUTH", b"of sentinel")]
    for url in ("redis+cluster://a.example.com:1", "redis://a.example.com:1,b.example.com:2"):
        _, steps = find(url, {A: MASTER}, redis, sentinel)
        assert steps[0].login == [(b"AUTH", b"pbs", b"of redis")]
    assert log_in(redis, 3) == [(b"AUTH", b"pbs", b"of redis"), (b"SELECT", b"3")]
    assert log_in(Login("pbs", "")) == []
    assert "of redis" not in repr(redis)


@pytest.mark.parametrize(
    ("hello", "whether"), [(MASTER, False), (REPLICA, True), ([b"role", b"slave"], True), ([b"mode", b"x"], False)]
)
def test_a_replica_is_known_by_what_it_says(hello: list[Any], whether: bool) -> None:
    assert is_replica(hello) is whether


def test_errors_that_send_elsewhere_are_told_from_others() -> None:
    for error in ("MOVED 1 a:1", "ASK 1 a:1", "CLUSTERDOWN x", "READONLY x", "MASTERDOWN x"):
        assert is_elsewhere(error)
    for error in ("NOPERM x", "MOVEDX", "ERR MOVED ", "LOADING x", ""):
        assert not is_elsewhere(error)
