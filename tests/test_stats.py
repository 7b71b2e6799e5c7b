"""`pbs-policy stats`: what a service counts is what is read and shown, on fakeredis and on a real Redis."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from pbs_policy.decision.rules import DEFER, DUNNO, OK
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.service import stats as module
from pbs_policy.service.stats import (
    KEPT,
    MINUTES,
    SERVICE_KEPT,
    ServiceState,
    Stats,
    no_counts,
    process_name,
    read_minutes,
    read_services,
)
from pbs_policy.store.question import Command
from pbs_policy.table.keys import Keys
from tests.commands import Pbs, Result, put_behind
from tests.service import Service
from tests.stores import Clock, carry_out, client_on

KEYS = Keys("pbs:")
NOON = 1_700_049_600  # 2023-11-15 12:00:00 UTC
THIS_MINUTE = b"pbs:stats:202311151200"
FACTS = {"connections": 3, "redis_connections": 2}


class Process:
    """A process of the service: it decides, and writes its numbers."""

    def __init__(self, redis: Redis, clock: Clock, name: str = "mx1:7") -> None:
        self.redis = redis
        self.stats = Stats(KEYS, name, "1.2", clock)
        self.counts = no_counts()

    def decide(self, action: str, reason: str, times: int = 1) -> None:
        for _ in range(times):
            self.counts[action][reason] += 1

    def commands(self, **flags: bool) -> list[Command]:
        return self.stats.commands(self.counts, FACTS, **flags)

    def write(self, **flags: bool) -> None:
        commands = self.commands(**flags)
        self.stats.written(commands, carry_out(self.redis, commands))


@pytest.fixture
def clock() -> Clock:
    return Clock(NOON)


@pytest.fixture
def process(redis: Redis, clock: Clock) -> Process:
    return Process(redis, clock)


def counted(redis: Redis, clock: Clock) -> dict[int, dict[str, int]]:
    """What was decided, by how many minutes ago."""
    minutes = read_minutes(client_on(redis), KEYS, clock.time)
    now = int(clock.time // 60)
    return {now - minute.begins // 60: dict(minute.counts) for minute in minutes if minute.counts}


def running(redis: Redis, clock: Clock) -> list[ServiceState]:
    return read_services(client_on(redis), KEYS, read_minutes(client_on(redis), KEYS, clock.time))


def test_what_is_counted_is_summed_by_minute_over_all_processes(process: Process, redis: Redis, clock: Clock) -> None:
    other = Process(redis, clock, "mx2:7")
    process.decide(OK, "login", 2)
    process.decide(DUNNO, "no_login", 40)
    other.decide(DUNNO, "no_login", 2)
    process.write()
    other.write()
    process.decide(OK, "login")
    process.write()
    clock.time += 60
    process.decide(DEFER, "unavailable")
    process.write()
    assert counted(redis, clock) == {
        1: {"OK login": 3, "DUNNO no_login": 42},
        0: {"DEFER_IF_REJECT unavailable": 1},
    }


def test_a_day_is_read_oldest_minute_first_and_no_more(process: Process, redis: Redis, clock: Clock) -> None:
    process.decide(OK, "login")
    process.write()
    clock.time += (MINUTES - 1) * 60
    minutes = read_minutes(client_on(redis), KEYS, clock.time)
    assert len(minutes) == MINUTES
    assert minutes[0] == (NOON, Counter({"OK login": 1}), Counter({"mx1:7": 1}))
    clock.time += 60
    assert not any(minute.counts for minute in read_minutes(client_on(redis), KEYS, clock.time))


def test_every_key_has_an_end(process: Process, redis: Redis) -> None:
    process.decide(OK, "login")
    process.write()
    assert KEPT - 5 <= redis.ttl(THIS_MINUTE.decode()) <= KEPT
    assert SERVICE_KEPT - 5 <= redis.ttl("pbs:service:mx1:7") <= SERVICE_KEPT


def test_the_end_of_a_minute_is_set_right_behind_its_first_number(process: Process) -> None:
    process.decide(OK, "login")
    process.decide(DUNNO, "cap")
    names = [command[0] for command in process.commands()]
    assert names == [b"HSET", b"EXPIRE", b"HINCRBY", b"EXPIRE", b"HINCRBY", b"HINCRBY"]


def test_a_process_describes_itself(process: Process, redis: Redis, clock: Clock) -> None:
    process.write()
    assert [(each.host, each.counts) for each in running(redis, clock)] == [("mx1", Counter())]
    process.decide(OK, "permit", 5)
    process.write()
    clock.time += 61
    process.decide(OK, "permit")
    process.write()
    (service,) = running(redis, clock)
    assert service == ("mx1", 7, "1.2", NOON, 3, 2, Counter({"OK permit": 6}))


def test_a_process_that_ends_is_gone_at_once_and_its_numbers_stay(
    process: Process, redis: Redis, clock: Clock
) -> None:
    process.decide(OK, "login")
    process.write(is_last=True)
    assert running(redis, clock) == []
    assert counted(redis, clock) == {0: {"OK login": 1}}


def test_what_was_not_written_is_written_later_under_its_own_minute(
    process: Process, redis: Redis, clock: Clock
) -> None:
    process.decide(DEFER, "unavailable", 3)
    commands = process.commands()
    process.stats.written(commands, [None] * len(commands))
    clock.time += 60
    process.decide(DUNNO, "no_login")
    process.write()
    assert counted(redis, clock) == {1: {"DEFER_IF_REJECT unavailable": 3}, 0: {"DUNNO no_login": 1}}
    assert redis.ttl(THIS_MINUTE.decode()) > 0


def test_one_command_that_was_refused_is_put_back_alone(process: Process, redis: Redis, clock: Clock) -> None:
    process.decide(OK, "login", 2)
    process.decide(DUNNO, "no_login", 5)
    commands = process.commands()
    refused = next(number for number, command in enumerate(commands) if command[2] == b"OK login")
    replies = carry_out(redis, [command for number, command in enumerate(commands) if number != refused])
    process.stats.written(commands, [*replies[:refused], None, *replies[refused:]])
    assert counted(redis, clock) == {0: {"DUNNO no_login": 5}}
    process.write()
    assert counted(redis, clock) == {0: {"OK login": 2, "DUNNO no_login": 5}}


def test_while_nothing_can_be_written_a_day_is_kept_and_no_more(
    process: Process, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MINUTES", 5)
    for _ in range(20):
        process.decide(DEFER, "unavailable")
        commands = process.commands()
        process.stats.written(commands, [None] * len(commands))
        clock.time += 60
    written = [command for command in process.commands() if command[:1] == (b"HINCRBY",)]
    assert len({command[1] for command in written}) == 5


def test_many_minutes_are_written_some_at_a_time_the_newest_first(process: Process, clock: Clock) -> None:
    for _ in range(25):
        process.decide(OK, "login")
        commands = process.commands()
        process.stats.written(commands, [None] * len(commands))
        clock.time += 60
    keys = [{each[1] for each in process.commands() if each[0] == b"HINCRBY"} for _ in range(4)]
    assert [len(each) for each in keys] == [10, 10, 8, 1]  # this minute each time
    assert max(keys[1] - keys[0]) < min(keys[0])


def test_what_is_written_names_no_address_and_no_user(process: Process, redis: Redis) -> None:
    process.decide(OK, "login")
    process.write()
    assert redis.hgetall(THIS_MINUTE.decode()) == {b"OK login": b"1", b"service mx1:7": b"1"}
    assert redis.hgetall("pbs:service:mx1:7") == {
        b"started": b"1700049600", b"version": b"1.2", b"connections": b"3", b"redis_connections": b"2",
        b"OK login": b"1",
    }  # fmt: skip


@given(st.dictionaries(st.binary(max_size=30), st.binary(max_size=30)))
def test_whatever_stands_in_a_hash_is_read_without_an_error(fields: dict[bytes, bytes]) -> None:
    assert isinstance(module._parse_service("mx1:x", fields).counts, Counter)


@pytest.fixture
def pbs(redis: Redis, bare: Pbs, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Pbs:
    from pbs_policy.table import login_table as table

    class Table(table.LoginTable):
        def __init__(self, *arguments: Any, **flags: Any) -> None:
            super().__init__(*arguments, **flags, now=clock)

    put_behind(redis, monkeypatch)
    monkeypatch.setattr(table, "LoginTable", Table)
    return bare


@pytest.fixture
def some_numbers(redis: Redis, clock: Clock) -> None:
    """Two processes, one of them from yesterday and stopped; the decisions of a morning."""
    old, new = Process(redis, clock, "mx2:5"), None
    clock.time = NOON - 10 * 3600
    old.decide(DUNNO, "no_login", 1_500)
    old.write(is_last=True)
    clock.time = NOON - 1800
    new = Process(redis, clock, "mx1:7")
    for minute in range(30):
        new.decide(OK, "login", minute)
        new.decide(DUNNO, "no_login", 10)
        new.write()
        clock.time += 60
    new.decide(DUNNO, "cap")
    new.write()


TEXT = """\
HOST  PID  VERSION  RUNS FOR  CLIENTS  RECONNECTS  DECISIONS
mx1   7    1.2      30m             3           1        736

ACTION  REASON    SINCE START  LAST HOUR  LAST DAY
OK      login             435        435       435
DUNNO   no_login          300        300     1,800
DUNNO   cap                 1          1         1
all                       736        736     2,236

decisions a minute, last hour, most 39:
  |                                                  ....:::##
  |                                         ...:::############
  |                               ...:::######################
  |                             ##############################.

decisions in half an hour, last day, most 1,500:
  |                           #
  |                           #
  |                           #                   #
  |                           #                  .#
"""


def test_stats_shows_who_runs_and_what_was_decided_with_blocks_where_the_terminal_has_them(
    pbs: Pbs, some_numbers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbs_policy.cli.stats.has_blocks", lambda _: False)
    assert pbs("stats") == Result(0, TEXT, "")
    monkeypatch.setattr("pbs_policy.cli.stats.has_blocks", lambda _: True)
    assert "\u2588" in pbs("stats").out


def test_stats_as_json_has_every_minute(pbs: Pbs, some_numbers: None) -> None:
    result = pbs("stats", "--json")
    numbers = json.loads(result.out)
    assert numbers["services"] == [
        {
            "host": "mx1", "pid": 7, "version": "1.2", "since": "2023-11-15T11:30:00Z", "connections": 3,
            "redis_connections": 2, "counts": {"OK login": 435, "DUNNO no_login": 300, "DUNNO cap": 1},
        }
    ]  # fmt: skip
    assert numbers["since_start"] == {"OK login": 435, "DUNNO no_login": 300, "DUNNO cap": 1}
    assert numbers["last_day"]["DUNNO no_login"] == 1_800
    assert len(numbers["minutes"]) == 32
    assert numbers["minutes"][-1] == {"since": "2023-11-15T12:00:00Z", "counts": {"DUNNO cap": 1}}


def test_where_nothing_runs_and_nothing_was_decided_it_says_so(pbs: Pbs) -> None:
    assert pbs("stats") == Result(
        0,
        "no service has written its numbers in the last 15 s: none runs, or Redis does not allow it\n"
        "nothing was decided in the last day\n",
        "",
    )
    assert json.loads(pbs("stats", "--json").out) == {
        "services": [], "since_start": {}, "last_hour": {}, "last_day": {}, "minutes": [],
    }  # fmt: skip


def test_a_key_of_another_type_is_an_error_of_redis(pbs: Pbs, redis: Redis) -> None:
    redis.set(THIS_MINUTE.decode(), "x")
    result = pbs("stats")
    assert (result.status, result.out) == (os.EX_UNAVAILABLE, "")
    assert "WRONGTYPE" in result.err


def written(client: Redis) -> Counter[str]:
    """What all processes have decided by now."""
    return sum((minute.counts for minute in read_minutes(client_on(client), KEYS, time.time())), Counter())


def test_a_running_service_writes_what_it_decides(
    start_service: Callable[..., Service], redis_server: PrivateRedis
) -> None:
    with Redis(port=redis_server.port) as client:
        client.set("pbs:login:192.0.2.7", b"%d pop3 alice@example.com" % time.time(), ex=60)
        service = start_service(redis_url=redis_server.url)
        for address in ("192.0.2.7", "192.0.2.8", "192.0.2.8", "127.0.0.1"):
            service.ask(address)
        wanted = {"OK login": 1, "DUNNO no_login": 2, "DUNNO loopback": 1}
        key = f"pbs:service:{process_name(service.pid)}"
        assert wait_until(lambda: client.hget(key, "OK login") == b"1")
        assert written(client) == wanted
        (state,) = read_services(client_on(client), KEYS, read_minutes(client_on(client), KEYS, time.time()))
        assert (state.pid, state.counts, state.redis_connections) == (service.pid, wanted, 1)
        assert abs(state.started - time.time()) < 60
        service.ask("192.0.2.9")
        service.stop()
        assert written(client)["DUNNO no_login"] == 3
        assert read_services(client_on(client), KEYS, read_minutes(client_on(client), KEYS, time.time())) == []


def test_under_observe_only_what_would_have_been_permitted_is_counted_as_dunno_login(
    start_service: Callable[..., Service], redis_server: PrivateRedis
) -> None:
    with Redis(port=redis_server.port) as client:
        client.set("pbs:login:192.0.2.7", b"%d pop3 alice@example.com" % time.time(), ex=60)
        service = start_service(redis_url=redis_server.url, observe_only="yes")
        service.ask("192.0.2.7")
        service.stop()
        assert written(client) == {"DUNNO login": 1}
