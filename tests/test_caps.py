"""Caps: what is counted, once, for all servers, and never one too many, whatever is interleaved or cut off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import fakeredis
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis import Redis

from pbs_policy.address import ClientAddresses, networks_of
from pbs_policy.cap import Cap
from pbs_policy.decision import caps
from pbs_policy.decision.caps import Count, Verdict
from pbs_policy.decision.case import Case
from pbs_policy.decision.decide import decide
from pbs_policy.decision.rules import Decision, Rules
from pbs_policy.decision.sender import SenderRules
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.postfix.protocol import as_request
from pbs_policy.store.question import Answer, Procedure, carry_out
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import NO_END
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.networks import parse_lengths
from pbs_policy.table.records import Permit
from tests.service import Service, request
from tests.stores import connect, table_on, target

ADDRESS = "192.0.2.7"
PREFIX = "t:"
LOGIN = f"{PREFIX}login:{ADDRESS}".encode()
ALICE, BOB = "alice@example.com", "bob@example.com"


def relay(
    table: LoginTable, rules: Rules, recipient: str, *, address: str = ADDRESS, instance: str = "1.2.3.4",
    maps: SenderMaps | None = None, only_looks: bool = False, **attributes: str,
) -> Decision:  # fmt: skip
    """The service's decision on one recipient of the message `instance`, counted as the service counts it."""
    asked = as_request(request(address, recipient=recipient, instance=instance, **attributes))
    client = ClientAddresses().parse(address)
    (lengths,), _ = table.read([table.keys.permit_networks])
    networks = networks_of(client.text, parse_lengths(lengths))
    case = Case(client, asked, rules, table.keys, maps, networks, only_looks=only_looks)
    found, _ = table.read(case.keys)
    return carry_out(decide(case, found), table.ask)


def advance(redis: Redis, seconds: float) -> None:
    """Let so many seconds pass for every key: in both worlds, and without waiting for them.

    A key of which less than a tenth of a second would be left is gone: two that were to end together were written a
    moment apart.
    """
    for key in set(redis.scan_iter()):  # SCAN may say a key twice
        left = redis.pttl(key)
        if left != NO_END:
            later = int(left - seconds * 1000)
            redis.pexpire(key, later if later > 100 else 0)


def log_in(redis: Redis, address: str = ADDRESS, user: str = ALICE) -> None:
    """A login that outlives every test."""
    for key in (f"login:{address}", f"login:{address},{user}", f"login:{address},@{user.partition('@')[2]}"):
        redis.set(PREFIX + key, f"1700000000 pop3 {user}", ex=1_000_000)


@pytest.fixture
def table(redis: Redis) -> LoginTable:
    log_in(redis)
    return table_on(redis, PREFIX)


def answers(decisions: Sequence[Decision]) -> str:
    """One letter for each: o for OK, c for a cap, d for a deny."""
    letters = {("OK", "login"): "o", ("OK", "permit"): "o", ("DUNNO", "cap"): "c", ("DUNNO", "denied"): "d"}
    return "".join(letters[each.action, each.reason] for each in decisions)


# --- what is counted


@pytest.mark.parametrize("kind", ["address", "user", "permit", "network"])
def test_so_many_recipients_and_then_no_more(
    redis: Redis, table: LoginTable, kind: Literal["address", "user", "permit", "network"]
) -> None:
    rules = Rules(address_cap=Cap(3, 60)) if kind == "address" else Rules(user_cap=Cap(3, 60))
    if kind in ("permit", "network"):
        rules = Rules(services=frozenset(["none"]))
        table.permit(target(ADDRESS if kind == "permit" else "192.0.2.0/24"), Permit(1, cap=Cap(3, 60)), 1000)
    assert answers([relay(table, rules, f"r{number}@example.net") for number in range(6)]) == "oooccc"
    advance(redis, 59)
    assert answers([relay(table, rules, "r9@example.net")]) == "c"
    advance(redis, 1)
    assert answers([relay(table, rules, f"s{number}@example.net") for number in range(5)]) == "ooocc"


@pytest.mark.parametrize(
    ("limit", "asked", "expected"),
    [
        (2, "1a 1a 1b 1a 1c 1c 1b 1a 1c", "ooooccooc"),
        (2, "1a 2a 3a 1a", "ooco"),  # another message to the same recipient
        (1, "1bc 1b", "oc"),
        (2, "-a -a -a -a", "oocc"),  # without an instance nothing is known to be the same twice
    ],
)
def test_the_same_recipient_of_the_same_message_counts_once_and_has_the_same_answer(
    table: LoginTable, limit: int, asked: str, expected: str
) -> None:
    rules = Rules(address_cap=Cap(limit, 60), user_cap=Cap(limit, 60))
    seen = [relay(table, rules, f"{each[1:]}@x.net", instance=each[0].strip("-")) for each in asked.split()]
    assert answers(seen) == expected


def test_instance_and_recipient_are_not_taken_for_one_another(table: LoginTable) -> None:
    rules = Rules(address_cap=Cap(1, 60))
    assert answers([relay(table, rules, "bc", instance="a"), relay(table, rules, "c", instance="ab")]) == "oc"


def test_a_user_is_counted_at_all_addresses_together_and_an_address_for_all_users(
    redis: Redis, table: LoginTable
) -> None:
    log_in(redis, "192.0.2.8")
    rules = Rules(user_cap=Cap(2, 60))
    turns = enumerate(("192.0.2.8", ADDRESS) * 2)
    seen = [relay(table, rules, f"{at}@x.net", address=address) for at, address in turns]
    assert answers(seen) == "oocc"
    log_in(redis, "192.0.2.8", "Bob@Example.com")
    assert answers([relay(table, rules, "b1@x.net", address="192.0.2.8")]) == "o", "another user"
    log_in(redis, ADDRESS, "BOB@example.com")
    assert answers([relay(table, rules, f"b{each}@x.net") for each in (2, 3)]) == "oc", "the same in other letters"
    rules = Rules(address_cap=Cap(2, 60))
    first = relay(table, rules, "c1@x.net")
    log_in(redis)
    assert answers([first, relay(table, rules, "c2@x.net"), relay(table, rules, "c3@x.net")]) == "ooc"


def test_whom_the_user_cap_refuses_the_address_cap_does_not_count(redis: Redis, table: LoginTable) -> None:
    rules = Rules(address_cap=Cap(3, 60), user_cap=Cap(1, 60))
    assert answers([relay(table, rules, f"{each}@x.net") for each in range(9)]) == "o" + "c" * 8
    assert answers([relay(table, replace(rules, user_cap=None), f"b{each}@x.net") for each in range(3)]) == "ooc"


@pytest.mark.parametrize(
    ("rules", "attributes"),
    [
        (Rules(SenderRules("address")), {"sender": "mallory@example.net"}),
        (Rules(require_tls=True), {}),
        (Rules(services=frozenset(["imap"])), {}),
        (Rules(), {"address": "192.0.2.9"}),
    ],
)
def test_only_what_would_be_ok_is_counted(
    redis: Redis, table: LoginTable, rules: Rules, attributes: dict[str, Any]
) -> None:
    rules = replace(rules, address_cap=Cap(1, 60), user_cap=Cap(1, 60))
    assert relay(table, rules, "a@x.net", **attributes).action == "DUNNO"
    assert not list(redis.scan_iter(match=f"{PREFIX}cap:*"))


@pytest.mark.parametrize("what", ["address", "network", "user", "all", "no end"])
def test_what_is_denied_is_not_counted(redis: Redis, table: LoginTable, what: str) -> None:
    if what == "user":
        table.deny_user(ALICE.encode(), "", 60)
    elif what == "no end":
        redis.persist(table.keys.login(ADDRESS))
    else:
        name = {"address": ADDRESS, "network": "192.0.0.0/16"}.get(what)
        table.deny(target(name) if name else None, "", 60)
    assert relay(table, Rules(address_cap=Cap(1, 60), user_cap=Cap(1, 60)), "a@x.net").action == "DUNNO"
    assert not list(redis.scan_iter(match=f"{PREFIX}cap:*"))


@pytest.mark.parametrize(("own", "limit"), [(1, 1), (5, 5), (None, 3)])
def test_a_permits_own_cap_replaces_those_of_the_settings(redis: Redis, own: int | None, limit: int) -> None:
    table = table_on(redis, PREFIX)
    rules = Rules(address_cap=Cap(3, 60), user_cap=Cap(3, 60))
    permit = Permit(1, user=ALICE, cap=Cap(own, 60) if own else None)
    table.permit(target(ADDRESS), permit, 1000)
    seen = [relay(table, rules, f"{each}@x.net") for each in range(6)]
    assert answers(seen) == "o" * limit + "c" * (6 - limit)
    counted = {key.decode().split(":")[2] for key in redis.scan_iter(match=f"{PREFIX}cap:*")}
    assert counted == ({"permit"} if own else {"address", "user"})


def test_every_client_of_a_permitted_network_counts_towards_the_networks_own_cap(redis: Redis) -> None:
    table = table_on(redis, PREFIX)
    table.permit(target("192.0.2.0/24"), Permit(1, cap=Cap(2, 60)), 1000)
    seen = [relay(table, Rules(), "a@x.net", address=f"192.0.2.{each}", instance=str(each)) for each in range(4)]
    assert answers(seen) == "oocc"


def test_a_permit_over_its_cap_leaves_the_login_of_a_neighbour_of_a_denied_user(
    redis: Redis, table: LoginTable
) -> None:
    """Alice is logged in, not denied, and counted by no cap: neither the spent permit nor the denied user is hers."""
    log_in(redis, user=BOB)
    table.deny_user(BOB.encode(), "spam", 1000)
    assert relay(table, Rules(), "a@x.net", sender=ALICE).action == "OK"
    table.permit(target(ADDRESS), Permit(1, cap=Cap(1, 600)), 1000)
    assert relay(table, Rules(), "b@x.net", sender=ALICE).reason == "permit"
    assert relay(table, Rules(), "c@x.net", sender=ALICE).reason == "login"


def test_observed_it_is_counted_and_nobody_is_denied(redis: Redis, table: LoginTable) -> None:
    rules = Rules(address_cap=Cap(1, 60), auto_deny=3600, observe_only=True)
    seen = [relay(table, rules, f"{each}@x.net") for each in range(6)]
    assert answers(seen) == "occccc"
    assert [bool(each.warning) for each in seen] == [False, True, False, False, False, False]
    assert not list(table.denies())


# --- the warning, and auto_deny


def test_one_warning_per_address_and_period_names_the_address_and_the_cap(redis: Redis, table: LoginTable) -> None:
    log_in(redis, "192.0.2.8")
    rules = Rules(address_cap=Cap(2, 60))
    for _ in range(3):  # periods
        for address in (ADDRESS, "192.0.2.8"):
            names = "0012223345"
            seen = [relay(table, rules, f"{each}@x.net", address=address) for each in names]
            warnings = {at: each.warning for at, each in enumerate(seen) if each.warning}
            assert list(warnings) == [names.index("2")]
            assert f"address {address} " in warnings[names.index("2")]
            assert "2/1m" in warnings[names.index("2")]
        advance(redis, 60)


def test_a_warning_quotes_a_user_who_could_pass_for_fields_of_the_line(redis: Redis, table: LoginTable) -> None:
    user = 'x: "ok" action=OK client_address=198.51.100.9'
    log_in(redis, user=user)
    seen = [relay(table, Rules(user_cap=Cap(1, 60)), f"{each}@x.net") for each in "12"]
    shown = user.lower().replace('"', '\\"')
    assert seen[1].warning == f'user "{shown}" is over its cap of 1/1m recipients'


def test_auto_deny_gives_no_expiry_to_what_a_deny_without_one_is_found_by(redis: Redis, table: LoginTable) -> None:
    address = "2001:db8::7"
    log_in(redis, address)
    redis.set(table.keys.auto_deny_networks, "6/64")
    rules = Rules(address_cap=Cap(1, 60), auto_deny=3600)
    seen = [relay(table, rules, f"{each}@x.net", address=address) for each in "12345"]
    assert any("auto_deny" in each.warning for each in seen)
    assert redis.ttl(table.keys.auto_deny_networks) == -1
    assert redis.get(table.keys.auto_deny_networks) == b"6/64 6/128"


def test_an_address_over_twice_its_cap_is_denied_and_logging_in_again_does_not_help(
    redis: Redis, table: LoginTable
) -> None:
    rules = Rules(address_cap=Cap(2, 60), auto_deny=3600)
    seen = [relay(table, rules, f"{each}@x.net") for each in range(5)]
    assert answers(seen) == "ooccc", "the fifth recipient is one more than twice two"
    assert [bool(each.warning) for each in seen] == [False, False, True, False, True]
    assert "denied" in seen[4].warning
    (deny,) = table.denies()
    assert (deny.kind, deny.target) == ("address", ADDRESS)
    assert deny.left is not None
    assert 3590 < deny.left <= 3600
    log_in(redis)
    assert answers([relay(table, rules, "0@x.net")]) == "d"
    log_in(redis, "192.0.2.8")
    assert answers([relay(table, rules, "0@x.net", address="192.0.2.8")]) == "o", "its user is not denied"
    advance(redis, 3600)
    assert answers([relay(table, rules, "0@x.net")]) == "o"


@pytest.mark.parametrize("auto_deny", [0, 3600])
def test_twice_the_cap_is_not_over_twice_the_cap(table: LoginTable, auto_deny: int) -> None:
    rules = Rules(address_cap=Cap(3, 60), auto_deny=auto_deny)
    assert answers([relay(table, rules, f"{each}@x.net") for each in range(6)]) == "oooccc"
    assert not list(table.denies())
    assert answers([relay(table, rules, f"{each}@x.net") for each in range(6, 8)]) == ("cd" if auto_deny else "cc")


@pytest.mark.parametrize("limit", [1, 2])
def test_a_refused_recipient_that_is_asked_for_again_counts_once_towards_twice_the_cap(
    table: LoginTable, limit: int
) -> None:
    rules = Rules(address_cap=Cap(limit, 60), auto_deny=3600)
    names = [f"{each}@x.net" for each in range(2 * limit)]
    assert answers([relay(table, rules, name) for name in names]) == "o" * limit + "c" * limit
    assert answers([relay(table, rules, name) for name in names[limit:] * 3]) == "c" * limit * 3
    assert not list(table.denies())


def test_two_permissions_for_one_request_are_one_request_towards_twice_the_cap(
    redis: Redis, table: LoginTable
) -> None:
    """A login and a permit of the same address: what both are refused for is one recipient."""
    table.permit(target(ADDRESS), Permit(1), 1000)
    rules = Rules(address_cap=Cap(1, 60), auto_deny=3600)
    assert answers([relay(table, rules, f"{each}@x.net") for each in range(2)]) == "oc"
    assert not list(table.denies())


def test_who_is_denied_beside_a_denied_users_permit_is_told_of_in_the_log(table: LoginTable) -> None:
    """The neighbour was weighed already: he is not looked for again, to find the deny that he has just been given."""
    table.permit(target(ADDRESS), Permit(1, user=BOB), 1000)
    table.deny_user(BOB.encode(), "spam", 1000)
    rules = Rules(address_cap=Cap(1, 60), auto_deny=3600)
    seen = [relay(table, rules, f"{each}@x.net", sender=ALICE) for each in range(3)]
    assert answers(seen) == "occ"
    assert "denied" in seen[2].warning
    assert [each.target for each in table.denies() if each.kind == "address"] == [ADDRESS]


def test_a_user_over_twice_the_cap_is_not_the_address_fault(table: LoginTable) -> None:
    rules = Rules(user_cap=Cap(1, 60), address_cap=Cap(100, 60), auto_deny=3600)
    assert answers([relay(table, rules, f"{each}@x.net") for each in range(9)]) == "o" + "c" * 8
    assert not list(table.denies())


# --- bounds


@pytest.mark.parametrize("limit", [1, 4])
def test_both_sets_are_bounded_and_end(redis: Redis, table: LoginTable, limit: int) -> None:
    rules = Rules(address_cap=Cap(limit, 60), user_cap=Cap(limit, 120))
    for number in range(10 * limit + 10):
        relay(table, rules, f"{number}@x.net")
    sizes = {key.decode(): redis.scard(key) for key in redis.scan_iter(match=f"{PREFIX}[co][av]*")}
    assert len(sizes) == 4
    for key, size in sizes.items():
        assert size <= limit + key.startswith(f"{PREFIX}over:")
        assert 0 < redis.ttl(key) <= (60 if "address" in key else 120)


def test_whom_a_cap_has_refused_is_forgotten_with_those_it_let_through(redis: Redis, table: LoginTable) -> None:
    rules = Rules(address_cap=Cap(1, 60))
    relay(table, rules, "1@x.net")
    advance(redis, 50)
    relay(table, rules, "2@x.net")
    cap, over = table.keys.counted(f"address:{ADDRESS}".encode())
    assert redis.pttl(over) <= redis.pttl(cap) + 500
    advance(redis, 10.5)
    assert not redis.exists(cap, over)


def test_the_period_begins_with_its_first_recipient_and_is_not_made_longer(redis: Redis, table: LoginTable) -> None:
    rules = Rules(address_cap=Cap(3, 60))
    for number in range(8):
        relay(table, rules, f"{number}@x.net")
        advance(redis, 5)
    assert 15_000 < redis.pttl(table.keys.counted(f"address:{ADDRESS}".encode())[0]) <= 20_000


# --- servers that count at the same moment: each command of each takes its turn


class Server:
    """One procedure carried out command by command, whenever its turn comes; it can be cut off at any moment."""

    def __init__(self, redis: Redis, counts: Sequence[Count], who: bytes) -> None:
        self._redis = redis
        self.who = who
        self._procedure: Procedure[Verdict] | None = caps.count(counts, who, LOGIN)
        self._question = next(self._procedure)
        self._replies: list[Any] = []
        self.verdict: Verdict | None = None

    @property
    def is_at_rest(self) -> bool:
        return self._procedure is None

    def turn(self) -> None:
        """Redis carries out one command of ours."""
        if self._procedure is None:
            return
        assert not self._question.keys, "a cap is counted by commands alone"
        self._replies.append(carried_out(self._redis, self._question.commands[len(self._replies)]))
        if len(self._replies) == len(self._question.commands):
            replies, self._replies = self._replies, []
            try:
                self._question = self._procedure.send(Answer((), replies))
            except StopIteration as end:
                self.verdict = end.value
                self._procedure = None

    def cut_off(self, *, is_heard: bool) -> None:
        """The connection is lost; what was sent is carried out all the same if Redis had heard it."""
        if self._procedure is not None:
            if is_heard:
                for command in self._question.commands[len(self._replies) :]:
                    carried_out(self._redis, command)
            self._procedure.close()
            self._procedure = None

    def finish(self) -> None:
        while not self.is_at_rest:
            self.turn()


def carried_out(redis: Redis, command: Sequence[bytes]) -> Any:
    if command == (b"PTTL", LOGIN):
        return 500_000  # what is counted here has a login that lasts
    execute: Callable[..., Any] = redis.execute_command
    return execute(*command)


def counts_of(limits: Sequence[int]) -> list[Count]:
    keys = table_on(fakeredis.FakeRedis(), PREFIX).keys
    return [Count(f"cap {at}", Cap(limit, 60), *keys.counted(b"%d" % at)) for at, limit in enumerate(limits)]


def assert_held(redis: Redis, counts: Sequence[Count], servers: Sequence[Server]) -> None:
    """No cap let one too many through, and each knows those it did."""
    for each in counts:
        let_through = {server.who for server in servers if server.verdict == Verdict()}
        assert len(let_through) <= each.cap.limit, f"{len(let_through)} under a cap of {each.cap.limit}"
        assert let_through <= redis.smembers(each.key)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=2),
    st.integers(2, 5),
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["turn"] * 12 + ["heard", "unheard"])), max_size=80),
)
@example([1], 2, [(0, "turn"), (1, "turn")] * 8)
@example([1], 2, [(0, "turn")] * 2 + [(1, "turn")] * 8 + [(0, "turn")] * 6)
def test_however_servers_take_turns_never_one_too_many(
    limits: list[int], number: int, turns: list[tuple[int, str]]
) -> None:
    redis = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    counts = counts_of(limits)
    servers = [Server(redis, counts, b"%d" % each) for each in range(number)]
    for which, event in turns:
        server = servers[which % number]
        if event == "turn":
            server.turn()
        else:
            server.cut_off(is_heard=event == "heard")
        assert_held(redis, counts, servers)
    for server in servers:
        server.finish()
    assert_held(redis, counts, servers)
    servers.append(later := Server(redis, counts, b"99"))
    later.finish()
    assert_held(redis, counts, servers)
    for each in counts:
        assert redis.pttl(each.key) != NO_END, "after the next request the set has an end"


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 3), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=40))
def test_however_questions_take_turns_the_same_recipient_counts_once(
    limit: int, turns: list[tuple[int, int]]
) -> None:
    """Recipients are asked about again and again, at the same moment as others, but none of them twice at once: an
    smtpd waits for its answer."""
    redis = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    counts = counts_of([limit])
    done: list[Server] = []
    active: dict[bytes, Server] = {}
    for which, commands in turns:
        who = b"%d" % (which % 5)
        server = active.get(who) or Server(redis, counts, who)
        active[who] = server
        for _ in range(commands):
            server.turn()
        if server.is_at_rest:
            done.append(active.pop(who))
        assert_held(redis, counts, done + list(active.values()))


def test_two_servers_for_the_last_place_refuse_both_rather_than_none(redis: Redis) -> None:
    counts = counts_of([1])
    one, other = (Server(redis, counts, who) for who in (b"1", b"2"))
    for server in (one, other, one, other):
        server.turn()
    one.finish()
    other.finish()
    refused = [server for server in (one, other) if server.verdict != Verdict()]
    assert len(refused) == 2
    again = Server(redis, counts, b"3")
    again.finish()
    assert again.verdict == Verdict(), "the place is still there"


# --- a connection that is lost between the rounds


@pytest.mark.parametrize("rounds", [0, 1, 2])
@pytest.mark.parametrize("is_heard", [False, True])
@pytest.mark.parametrize("before", [0, 1, 2, 5])
def test_a_request_cut_off_after_any_round_permits_nothing_beyond_the_cap_and_leaves_no_key_for_ever(
    redis: Redis, before: int, is_heard: bool, rounds: int
) -> None:
    counts = counts_of([2, 3])
    done = [Server(redis, counts, b"%d" % each) for each in range(before)]
    for each in done:
        each.finish()
    cut = Server(redis, counts, b"100")
    for _ in range(rounds * 8):
        cut.turn()
    cut.cut_off(is_heard=is_heard)
    later = [Server(redis, counts, b"%d" % (200 + each)) for each in range(4)]
    for each in later:
        each.finish()
    assert_held(redis, counts, done + later)
    for key in redis.scan_iter():
        assert redis.pttl(key) != NO_END
    advance(redis, 60)
    assert not list(redis.scan_iter())


def test_what_was_asked_a_second_time_on_a_new_connection_counts_once(redis: Redis) -> None:
    """`lookups` asks once more what was in flight, and Redis may have carried it out already."""
    counts = counts_of([2])
    cut = Server(redis, counts, b"1")
    for _ in range(3):
        cut.turn()
    cut.cut_off(is_heard=True)
    again, other, third = (Server(redis, counts, who) for who in (b"1", b"2", b"3"))
    for each in (again, other, third):
        each.finish()
    assert [each.verdict == Verdict() for each in (again, other, third)] == [True, True, False]


# --- running services


@pytest.fixture
def start_services(
    redis_server: PrivateRedis, start_service: Callable[..., Service]
) -> Callable[..., tuple[Redis, list[Service]]]:
    def start(number: int = 2, **settings: str) -> tuple[Redis, list[Service]]:
        redis = connect(RedisUrl.parse(redis_server.url), "", "")
        log_in(redis)
        lines = {"redis_url": redis_server.url, "key_prefix": PREFIX, "log_decisions": "all", **settings}
        return redis, [start_service(**lines) for _ in range(number)]

    return start


def test_two_services_share_one_cap_and_warn_once(start_services: Callable[..., tuple[Redis, list[Service]]]) -> None:
    redis, services = start_services(max_recipients_per_address="3/1h", max_recipients_per_user="100/1h")
    with redis:
        seen = [services[at % 2].ask(ADDRESS, instance="1.2", recipient=f"{at}@x.net") for at in range(8)]
        assert seen == ["OK"] * 3 + ["DUNNO"] * 5
        again = [services[at % 2].ask(ADDRESS, instance="1.2", recipient=f"{at}@x.net") for at in range(8, 0, -1)]
        assert again == ["DUNNO"] * 6 + ["OK"] * 2
        assert wait_until(lambda: sum(service.log().count("recipient=") for service in services) == 16)
        log = "".join(service.log() for service in services)
        assert log.count("warning: ") == 1
        assert f"warning: address {ADDRESS} is over its cap of 3/1h" in log


def test_many_connections_to_two_services_never_get_one_too_many(
    start_services: Callable[..., tuple[Redis, list[Service]]],
) -> None:
    redis, services = start_services(max_recipients_per_address="20/1h")

    def ask(connection: int) -> int:
        with services[connection % 2].connect() as client:
            return [client.ask(ADDRESS, instance=f"{connection}.{at}") for at in range(10)].count("OK")

    with redis, ThreadPoolExecutor(8) as pool:
        permitted = sum(pool.map(ask, range(8)))
        assert permitted <= 20
        more = [services[0].ask(ADDRESS, instance=f"later.{at}") for at in range(25)].count("OK")
        assert permitted + more == 20, "who was refused at the same moment took nobody's place"


def test_a_service_counts_what_would_have_been_under_observe_only(
    start_services: Callable[..., tuple[Redis, list[Service]]],
) -> None:
    redis, (service,) = start_services(1, max_recipients_per_user="1/1h", observe_only="yes")
    with redis:
        assert {service.ask(ADDRESS, recipient=f"{at}@x.net", instance="1") for at in range(3)} == {"DUNNO"}
        assert service.waits_to_log("recipient=2@x.net")
        decisions = [line for line in service.log().splitlines() if "recipient=" in line]
        assert ["would_be=OK" in line for line in decisions] == [True, False, False]
        assert ["reason=cap would_be=DUNNO" in line for line in decisions] == [False, True, True]


def test_a_service_denies_who_goes_over_twice_the_cap_for_every_service(
    start_services: Callable[..., tuple[Redis, list[Service]]],
) -> None:
    redis, services = start_services(max_recipients_per_address="2/1h", auto_deny="1h")
    with redis:
        seen = [services[0].ask(ADDRESS, instance=str(at)) for at in range(5)]
        assert seen == ["OK"] * 2 + ["DUNNO"] * 3
        log_in(redis)
        assert services[1].ask(ADDRESS, instance="0") == "DUNNO"
        assert services[1].waits_to_log("reason=denied")
        assert services[0].waits_to_log("auto_deny")
        assert 3500 < redis.ttl(f"{PREFIX}auto-deny:{ADDRESS}") <= 3600
