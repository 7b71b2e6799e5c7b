"""The sums for the report: what the service notes is what is read, on fakeredis and on a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import fakeredis
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.store.question import Command
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table import usage as module
from pbs_policy.table.usage import MOST_PAIRS, OTHERS, PAIRS_AT_ONCE, PAIRS_IN_MEMORY, Usage, Use, read_uses
from tests.stores import Clock, carry_out, client_on, connect

DAY = 86_400
KEPT = 30 * DAY
MIDNIGHT = 1_700_006_400  # 2023-11-15 00:00:00 UTC
NOON = MIDNIGHT + DAY // 2
TODAY = b"t:use:20231115"


@pytest.fixture
def clock() -> Clock:
    return Clock(NOON)


@pytest.fixture
def usage(clock: Clock) -> Usage:
    return Usage("t:", KEPT, clock)


@pytest.fixture
def bounds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the bounds of the module small."""

    def change(**bounds: int) -> None:
        for name, number in bounds.items():
            monkeypatch.setattr(module, name, number)

    return change


def write(usage: Usage, redis: Redis) -> None:
    """Write all that was noted."""
    while commands := usage.commands():
        usage.written(carry_out(redis, commands))


def uses(redis: Redis, since: float = MIDNIGHT, until: float = MIDNIGHT + DAY - 1) -> list[Use]:
    return sorted(read_uses(client_on(redis), "t:", since, until))


def ends(redis: Redis) -> list[int]:
    """The seconds left of every key; -1 for one without an end."""
    keys: Any = redis.keys()
    return [redis.ttl(key) for key in keys]


def waiting(usage: Usage) -> int:
    """How many pairs wait in memory."""
    return sum(len(day.sums) for day in usage._days.values())


def test_what_is_noted_is_summed_for_each_user_at_each_address(usage: Usage, clock: Clock, redis: Redis) -> None:
    usage.note("192.0.2.7", "alice@example.com", False)
    usage.note("192.0.2.7", "bob@example.com", True)
    usage.note("2001:db8::/64", "alice@example.com", False)
    clock.time += 60.9
    usage.note("192.0.2.7", "alice@example.com", True)
    write(usage, redis)
    assert uses(redis) == [
        Use("192.0.2.7", "alice@example.com", 2, 1, NOON + 60),
        Use("192.0.2.7", "bob@example.com", 1, 1, NOON),
        Use("2001:db8::/64", "alice@example.com", 1, 0, NOON),
    ]
    clock.time += 60
    usage.note("192.0.2.7", "alice@example.com", False)
    write(usage, redis)
    assert uses(redis)[0] == Use("192.0.2.7", "alice@example.com", 3, 1, NOON + 120)
    assert redis.keys() == [TODAY]
    assert redis.hlen(TODAY.decode()) == 3 * 3


@pytest.mark.parametrize(
    "user",
    [
        "", " ", "a b@example.com", " leading and trailing ", "comma,@example.com", "tab\there", "line\nbreak",
        "jos\u00e9@example.com", "\udce9\udcff@example.com", "\0", "n 192.0.2.7 x", "others",
        "\ud800@example.com",
    ],
)  # fmt: skip
def test_a_user_may_be_written_in_any_way(usage: Usage, redis: Redis, user: str) -> None:
    usage.note("192.0.2.7", user, True)
    usage.note("192.0.2.8", "others", False)
    write(usage, redis)
    shown = user.replace("\ud800", "?")  # half a character, for which no bytes stand
    assert uses(redis) == [Use("192.0.2.7", shown, 1, 1, NOON), Use("192.0.2.8", "others", 1, 0, NOON)]
    assert usage.commands() == []


def test_two_processes_add_to_the_same_day(usage: Usage, clock: Clock, redis: Redis) -> None:
    other = Usage("t:", KEPT, clock)
    for process in (usage, other, usage, other):
        process.note("192.0.2.7", "alice@example.com", process is other)
        write(process, redis)
    assert uses(redis) == [Use("192.0.2.7", "alice@example.com", 4, 2, NOON)]


# --- days and their end


def test_at_midnight_another_day_begins(usage: Usage, clock: Clock, redis: Redis) -> None:
    clock.time = MIDNIGHT - 0.1
    usage.note("192.0.2.7", "alice@example.com", True)
    clock.time = MIDNIGHT
    usage.note("192.0.2.7", "alice@example.com", False)
    usage.note("192.0.2.7", "alice@example.com", False)
    write(usage, redis)
    assert sorted(redis.keys()) == [b"t:use:20231114", TODAY]
    assert uses(redis, MIDNIGHT - 1) == [Use("192.0.2.7", "alice@example.com", 3, 1, MIDNIGHT)]
    assert uses(redis) == [Use("192.0.2.7", "alice@example.com", 2, 0, MIDNIGHT)]
    assert uses(redis, MIDNIGHT - DAY, MIDNIGHT - 1) == [Use("192.0.2.7", "alice@example.com", 1, 1, MIDNIGHT - 1)]
    assert uses(redis, MIDNIGHT + DAY, MIDNIGHT + 9 * DAY) == []


def test_days_that_are_over_leave_the_memory(usage: Usage, clock: Clock, redis: Redis) -> None:
    for _ in range(20):
        usage.note("192.0.2.7", "alice@example.com", False)
        write(usage, redis)
        clock.time += DAY
    usage.note("192.0.2.7", "alice@example.com", False)
    write(usage, redis)
    assert len(usage._days) == 1
    assert len(redis.keys()) == 21


def test_each_day_ends_a_day_after_what_is_to_be_kept(usage: Usage, clock: Clock, redis: Redis) -> None:
    for _ in range(3):
        for number in range(PAIRS_AT_ONCE + 1):
            usage.note("192.0.2.7", f"user{number}@example.com", number % 2 == 0)
        clock.time += DAY
    write(usage, redis)
    assert len(redis.keys()) == 3
    assert all(KEPT + DAY - 60 <= left <= KEPT + DAY for left in ends(redis))


def test_each_write_moves_the_end(usage: Usage, redis: Redis) -> None:
    usage.note("192.0.2.7", "alice@example.com", False)
    write(usage, redis)
    redis.expire(TODAY, 60)
    usage.note("192.0.2.7", "alice@example.com", False)
    write(usage, redis)
    assert redis.ttl(TODAY) > KEPT


def test_a_connection_lost_after_the_first_two_commands_leaves_no_key_without_an_end(
    usage: Usage, redis: Redis
) -> None:
    usage.note("192.0.2.7", "alice@example.com", True)
    commands = usage.commands()
    done = carry_out(redis, commands[:2])
    assert redis.ttl(TODAY) > KEPT
    usage.written([*done, *[None] * len(commands[2:])])
    write(usage, redis)
    assert uses(redis) == [Use("192.0.2.7", "alice@example.com", 1, 1, NOON)]


# --- what Redis does not take


def test_what_redis_refuses_is_written_later(usage: Usage, redis: Redis) -> None:
    redis.set(TODAY, "somebody else's")
    usage.note("192.0.2.7", "alice@example.com", True)
    commands = usage.commands()
    replies = carry_out(redis, commands)
    assert any(isinstance(reply, Exception) for reply in replies)
    usage.written(replies)
    redis.delete(TODAY)
    usage.note("192.0.2.7", "alice@example.com", False)
    write(usage, redis)
    assert uses(redis) == [Use("192.0.2.7", "alice@example.com", 2, 1, NOON)]


@pytest.mark.parametrize("refused", [b"HLEN", b"EXPIRE", b"HSET", b"HINCRBY"])
def test_a_command_that_is_refused_does_not_double_the_others(usage: Usage, redis: Redis, refused: bytes) -> None:
    for _ in range(3):
        usage.note("192.0.2.7", "alice@example.com", True)
        commands = usage.commands()
        replies = iter(carry_out(redis, [command for command in commands if command[0] != refused]))
        usage.written([None if command[0] == refused else next(replies) for command in commands])
    write(usage, redis)
    usage.note("192.0.2.7", "alice@example.com", True)
    write(usage, redis)
    assert uses(redis) == [Use("192.0.2.7", "alice@example.com", 4, 4, NOON)]


# --- bounds


def test_a_write_is_bounded_and_begins_with_who_waits_longest(usage: Usage, redis: Redis) -> None:
    for number in range(2 * PAIRS_AT_ONCE + 1):
        usage.note("192.0.2.7", f"{number}", True)
    sizes = []
    for round_ in range(3):
        commands = usage.commands()
        assert len(commands) <= 2 * PAIRS_AT_ONCE + 3
        usage.note("192.0.2.7", "0", False)
        usage.written(carry_out(redis, commands))
        sizes.append(len(uses(redis)))
        assert any(use.user == str(round_ * PAIRS_AT_ONCE) for use in uses(redis))
    assert sizes == [PAIRS_AT_ONCE, 2 * PAIRS_AT_ONCE, 2 * PAIRS_AT_ONCE + 1]


def test_a_write_is_bounded_over_all_days(usage: Usage, clock: Clock) -> None:
    for time in (MIDNIGHT - 1, MIDNIGHT):
        clock.time = time
        for number in range(PAIRS_AT_ONCE):
            usage.note("192.0.2.7", f"{number}", True)
    assert len(usage.commands()) == 2 * PAIRS_AT_ONCE + 3


def test_what_is_written_makes_room_in_memory(usage: Usage, redis: Redis, bounds: Callable[..., None]) -> None:
    bounds(PAIRS_IN_MEMORY=2)
    for number in range(6):
        usage.note("192.0.2.7", f"{number}", False)
        if number % 2:
            write(usage, redis)
    assert [use.user for use in uses(redis)] == ["0", "1", "2", "3", "4", "5"]


def test_new_pairs_of_a_full_day_are_summed_as_others(
    usage: Usage, redis: Redis, bounds: Callable[..., None]
) -> None:
    bounds(MOST_PAIRS=5, PAIRS_AT_ONCE=3)
    for number in range(8):
        usage.note("192.0.2.7", f"{number}", number % 2 == 1)
    write(usage, redis)
    usage.note("192.0.2.7", "7", False)
    usage.note("192.0.2.7", "0", False)  # is there already
    write(usage, redis)
    assert uses(redis) == [
        *(Use("192.0.2.7", f"{number}", 2 if number == 0 else 1, number % 2, NOON) for number in range(5)),
        Use(*OTHERS, 4, 2, NOON),
    ]
    assert redis.ttl(TODAY) > KEPT


def test_of_who_is_new_to_a_full_day_only_the_sum_is_kept_in_memory(
    usage: Usage, redis: Redis, bounds: Callable[..., None]
) -> None:
    bounds(MOST_PAIRS=2)
    for number in range(3):
        usage.note("192.0.2.7", f"{number}", False)
    write(usage, redis)
    for number in range(100):
        usage.note("192.0.2.7", f"{number}", True)
    assert waiting(usage) == 3
    write(usage, redis)
    assert uses(redis) == [
        Use("192.0.2.7", "0", 2, 1, NOON), Use("192.0.2.7", "1", 2, 1, NOON), Use(*OTHERS, 1 + 98, 98, NOON)
    ]  # fmt: skip


def test_a_day_that_follows_a_full_one_has_room(
    usage: Usage, clock: Clock, redis: Redis, bounds: Callable[..., None]
) -> None:
    bounds(MOST_PAIRS=2, PAIRS_AT_ONCE=1)
    for _ in range(2):
        for number in range(4):
            usage.note("192.0.2.7", f"{number}", False)
        write(usage, redis)
        clock.time += DAY
    tomorrow = uses(redis, MIDNIGHT + DAY, MIDNIGHT + DAY)
    assert [use.user for use in tomorrow] == ["0", "1", OTHERS[1]]


def test_a_process_that_begins_on_a_full_day_adds_one_write_to_it(
    usage: Usage, clock: Clock, redis: Redis, bounds: Callable[..., None]
) -> None:
    bounds(MOST_PAIRS=6, PAIRS_AT_ONCE=2)
    for process in range(2):
        for number in range(20):
            usage.note("192.0.2.7", f"{process}-{number}", False)
        write(usage, redis)
        usage = Usage("t:", KEPT, clock)
    assert len([use for use in uses(redis) if use.client_address != OTHERS[0]]) == 6 + 2
    assert sum(use.recipients for use in uses(redis)) == 40


def test_five_thousand_pairs_fill_a_day_and_take_the_memory_that_is_said(
    usage: Usage, redis_server: PrivateRedis
) -> None:
    with connect(RedisUrl.parse(redis_server.url), "", "") as redis:
        for number in range(MOST_PAIRS + 1_000):
            address = f"2001:db8:1:2:3:4:{number // 250:x}:{number % 250:x}"
            usage.note(address, f"firstname.{number:05}@example.com", True)
        write(usage, redis)
        found = uses(redis)
        assert len(found) == MOST_PAIRS + 1
        assert found[-1] == Use(*OTHERS, 1_000, 1_000, NOON)
        size: Any = redis.memory_usage(TODAY, samples=0)
        assert size < 1_650_000


def test_the_memory_is_bounded_and_the_totals_stay_right(usage: Usage) -> None:
    for number in range(PAIRS_IN_MEMORY + 500):
        usage.note("192.0.2.7", f"{number}", False)
    assert waiting(usage) == PAIRS_IN_MEMORY + 1
    in_flight = usage.commands()
    for number in range(PAIRS_AT_ONCE):
        usage.note("192.0.2.7", f"new {number}", False)
    usage.written([None] * len(in_flight))
    assert waiting(usage) <= PAIRS_IN_MEMORY + 1
    assert sum(total.number for total in usage._today.sums.values()) == PAIRS_IN_MEMORY + 500 + PAIRS_AT_ONCE
    assert usage._today.sums[OTHERS].number >= 500 + PAIRS_AT_ONCE


# --- any order of things


class Model:
    """What must come out: for each day and pair the recipients, the foreign senders and the last use."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, str, str], tuple[int, int, int]] = {}

    def note(self, at: float, client_address: str, user: str, foreign: bool) -> None:
        key = (int(at // DAY), client_address, user)
        number, foreigns, last = self.sums.get(key, (0, 0, 0))
        self.sums[key] = (number + 1, foreigns + foreign, max(last, int(at)))

    def of(self, day: int) -> list[Use]:
        return sorted(Use(*key[1:], *sums) for key, sums in self.sums.items() if key[0] == day)


ADDRESSES = st.sampled_from(["192.0.2.7", "2001:db8::7"])
NOTE = st.tuples(st.just("note"), ADDRESSES, st.sampled_from("abc "), st.booleans())
PASS = st.tuples(st.just("pass"), st.sampled_from([0.4, 60.0, DAY / 3]))
WRITE = st.tuples(st.sampled_from(["begin", "lose", "write"]))
CUT = st.tuples(st.just("cut"), st.integers(0, 12))
REFUSE = st.tuples(st.just("refuse"), st.integers(0, 1))
STEPS = st.lists(NOTE | PASS | WRITE | CUT | REFUSE, max_size=60)


def take_steps(steps: Sequence[tuple[Any, ...]]) -> tuple[Redis, Model, int]:
    """Take the steps, write what is left; the store, what must be in it, and the last day."""
    clock, model = Clock(MIDNIGHT), Model()
    redis = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    usage = Usage("t:", KEPT, clock)
    in_flight: list[Command] = []
    for name, *arguments in steps:
        if name == "note":
            model.note(clock.time, *arguments)
            usage.note(*arguments)
        elif name == "pass":
            clock.time += arguments[0]
        elif name == "begin":
            in_flight = usage.commands() or in_flight
        elif name == "write":
            usage.written(carry_out(redis, in_flight))
            in_flight = []
        elif name == "lose":
            usage.written([None] * len(in_flight))
            in_flight = []
        elif name == "cut":  # the connection is lost after so many commands were carried out
            done = carry_out(redis, in_flight[: arguments[0]])
            usage.written([*done, *[None] * (len(in_flight) - len(done))])
            in_flight = []
        else:  # every other command that takes memory is refused, as by a Redis that has none left
            refused = [each for each in in_flight if each[0] in (b"HSET", b"HINCRBY")][arguments[0] :: 2]
            usage.written([None if each in refused else carry_out(redis, [each])[0] for each in in_flight])
            in_flight = []
    usage.written(carry_out(redis, in_flight))
    write(usage, redis)
    return redis, model, int(clock.time // DAY)


@given(STEPS)
@example([("note", "192.0.2.7", "a", True), ("begin",), ("note", "192.0.2.7", "a", False), ("lose",)])
@example([("note", "192.0.2.7", "a", True), ("begin",), ("note", "192.0.2.7", "a", False), ("begin",), ("write",)])
@example([("note", "192.0.2.7", "a", True), ("begin",), ("pass", DAY), ("note", "192.0.2.7", "a", False), ("lose",)])
@example([("note", "192.0.2.7", "a", True), ("begin",), ("pass", 60.0), ("note", "192.0.2.7", "a", True), ("lose",)])
@example([("note", "192.0.2.7", "a", True), ("begin",), ("pass", DAY / 3), ("pass", DAY / 3), ("cut", 3)])
@example([("note", "192.0.2.7", "a", True), ("begin",), ("refuse", 0), ("begin",), ("refuse", 1)])
@example([("note", "192.0.2.7", "a", False), ("begin",), ("refuse", 0)])
@settings(deadline=None)
def test_whatever_fails_meanwhile_nothing_is_lost_or_doubled(steps: Sequence[tuple[Any, ...]]) -> None:
    redis, model, last_day = take_steps(steps)
    for day in range(MIDNIGHT // DAY, last_day + 1):
        assert uses(redis, day * DAY, day * DAY) == model.of(day)
        key = module._key("t:", day).decode()
        assert redis.hlen(key) == 3 * len(model.of(day))  # on which the count of pairs rests
    assert all(KEPT < left <= KEPT + DAY for left in ends(redis))


@given(STEPS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
@settings(deadline=None)
def test_over_the_bounds_the_totals_of_each_day_stay_right(
    steps: Sequence[tuple[Any, ...]], in_redis: int, at_once: int, in_memory: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_PAIRS", in_redis)
        patch.setattr(module, "PAIRS_AT_ONCE", at_once)
        patch.setattr(module, "PAIRS_IN_MEMORY", in_memory)
        redis, model, last_day = take_steps(steps)
    for day in range(MIDNIGHT // DAY, last_day + 1):
        found, wanted = uses(redis, day * DAY, day * DAY), model.of(day)
        assert sum(use.recipients for use in found) == sum(use.recipients for use in wanted)
        assert sum(use.foreign_senders for use in found) == sum(use.foreign_senders for use in wanted)
        assert max((use.last_use for use in found), default=0) == max((use.last_use for use in wanted), default=0)
        whole = {use[:2]: use for use in wanted}
        for use in found:
            if use[:2] != OTHERS:
                assert use.recipients <= whole[use[:2]].recipients
                assert use.foreign_senders <= whole[use[:2]].foreign_senders
        if "cut" not in {step[0] for step in steps}:  # else HLEN may be among what was not carried out
            assert len(found) <= max(in_redis, at_once) + 1


# --- reading


@pytest.mark.parametrize("field", ["", "n", "n 192.0.2.7", "x 192.0.2.7 alice", "192.0.2.7", "nn 192.0.2.7 alice"])
def test_a_field_of_somebody_else_is_passed_over(usage: Usage, redis: Redis, field: str) -> None:
    usage.note("192.0.2.7", "alice@example.com", False)
    write(usage, redis)
    redis.hset(TODAY, field, "7")
    redis.hset(TODAY, "n 192.0.2.8 bob@example.com", "seven")
    assert uses(redis) == [Use("192.0.2.7", "alice@example.com", 1, 0, NOON)]


def test_other_prefixes_are_not_read(usage: Usage, redis: Redis) -> None:
    usage.note("192.0.2.7", "alice@example.com", False)
    write(usage, redis)
    assert list(read_uses(client_on(redis), "pbs:", MIDNIGHT, NOON)) == []
