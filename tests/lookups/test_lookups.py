"""The hot path to Redis by itself, on uvloop and on asyncio's own loop: against real servers, and against a
server of the test's own that counts what it is asked and misbehaves on demand.

Every test ends with the check that each question had exactly one answer (`Session`).
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest

from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.ports import free_port
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.store.resp import pack
from pbs_policy.table.keys import GONE, NO_END
from tests.lookups.peer import (
    DEADLINE,
    PROBE,
    UNAVAILABLE,
    Peer,
    Server,
    Session,
    eventually,
    mute,
    session,
    wait_for_redis,
)
from tests.loop_clock import LoopClock

pytestmark = pytest.mark.usefixtures("run")

# --- one command for all that ask in one turn ---------------------------------------------------------------------


async def test_all_that_is_asked_in_one_turn_of_the_loop_goes_out_as_one_command() -> None:
    server = Server({b"a": b"1", b"c": b"3"})
    async with server.running() as url, session(url) as asking:
        answers = [asking.ask([b"a", b"b"]), asking.ask([b"c"]), asking.ask([b"b", b"c", b"a"])]
        assert await asyncio.gather(*answers) == [([b"1", None], []), ([b"3"], []), ([None, b"3", b"1"], [])]
        assert server.commands == [(0, [b"MGET", b"a", b"b", b"c", b"b", b"c", b"a"])]
        await asyncio.gather(*(asking.ask([b"a"]) for _ in range(1000)))
        assert server.commands[1:] == [(0, [b"MGET", *[b"a"] * 1000])]


async def test_the_next_turn_does_not_wait_for_the_answer_of_this_one() -> None:
    server = Server({b"a": b"1", b"b": b"2"})
    held: list[tuple[Peer, list[bytes]]] = []
    server.script = lambda peer, command: held.append((peer, command))
    async with server.running() as url, session(url) as asking:
        first = asking.ask([b"a"])
        assert await eventually(lambda: len(held) == 1)
        second = asking.ask([b"b"])
        assert await eventually(lambda: len(held) == 2)
        for peer, command in held:
            server.answer(peer, command)
        assert [await first, await second] == [([b"1"], []), ([b"2"], [])]
        assert len(server.peers) == 1


async def test_the_ends_of_keys_travel_in_the_same_segment() -> None:
    server = Server({b"a": b"1"})
    async with server.running() as url, session(url) as asking:
        before = server.peers[0].segments
        answers = [asking.ask([b"a"], [b"a", b"x"]), asking.ask([b"b"]), asking.ask([], [b"a"])]
        assert await asyncio.gather(*answers) == [([b"1"], [60_000, GONE]), ([None], []), ([], [60_000])]
        assert [command for _, command in server.commands] == [
            [b"PTTL", b"a"],
            [b"PTTL", b"x"],
            [b"PTTL", b"a"],
            [b"MGET", b"a", b"b"],
        ]
        assert server.peers[0].segments == before + 1


# --- answers go to those who asked --------------------------------------------------------------------------------


class Writer:
    """A second client of the same server, that writes what the lookups are to find."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._replies = hiredis.Reader()

    async def __call__(self, *command: str | bytes | int) -> Any:
        packed = pack(tuple(part if isinstance(part, bytes) else str(part).encode() for part in command))
        self._writer.write(packed)
        while (reply := self._replies.gets()) is False:
            data = await self._reader.read(65536)
            assert data, "the server closed"
            self._replies.feed(data)
        assert not isinstance(reply, Exception), reply
        return reply


@asynccontextmanager
async def writer(url: str) -> AsyncIterator[Writer]:
    parsed = RedisUrl.parse(url)
    reader, opened = await asyncio.open_connection(*parsed.places[0])
    try:
        yield Writer(reader, opened)
    finally:
        opened.close()
        await opened.wait_closed()


async def test_random_questions_have_their_own_answers(redis_server: PrivateRedis) -> None:
    chance = random.Random(20260101)
    # Values that look like the protocol itself, that are empty, and that are large.
    kinds = [b"1763881234 imap alice@example.com", b"", b"$-1\r\n", b"*2\r\n+OK\r\n", b"-ERR\r\n", b"x" * 20_000]
    data = {b"key-%d" % number: chance.choice(kinds) + b"%d" % number for number in range(50)}
    data[b"empty"] = b""
    endless = set(chance.sample(sorted(data), 10))
    names = [*data, b"absent", b"another absent", b"with blank and\r\nnewline"]

    async def one_client(asking: Session, client: random.Random) -> None:
        for _ in range(40):
            keys = client.choices(names, k=client.randrange(1, 6))
            ends = client.choices(names, k=client.randrange(3))
            values, left = await asking.ask(keys, ends)
            assert values == [data.get(key) for key in keys]
            for key, milliseconds in zip(ends, left, strict=True):
                if key in endless:
                    assert milliseconds == NO_END
                elif key in data:
                    assert 0 < milliseconds <= 60_000
                else:
                    assert milliseconds == GONE
            for _ in range(client.randrange(3)):
                await asyncio.sleep(0)

    async with writer(redis_server.url) as write, session(redis_server.url) as asking:
        for key, value in data.items():
            await write("SET", key, value, *(() if key in endless else ("PX", 60_000)))
        clients = (one_client(asking, random.Random(chance.random())) for _ in range(30))
        await asyncio.gather(*clients)
        assert asking.errors() == 0


async def test_the_database_of_the_url_is_the_one_that_is_read(redis_server: PrivateRedis) -> None:
    async with writer(redis_server.url) as write:
        await write("SET", "key", "in 0", "PX", 60_000)
        await write("SELECT", 3)
        await write("SET", "key", "in 3", "PX", 60_000)
    async with session(redis_server.url) as in_0, session(redis_server.url[:-1] + "3") as in_3:
        assert [await in_0.value(b"key"), await in_3.value(b"key")] == [b"in 0", b"in 3"]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_replies_may_come_in_small_pieces(size: int) -> None:
    server = Server({b"a": b"1\r\n", b"b": b"$-1\r\n", b"c": b""})
    waiting = bytearray()

    def drip(peer: Peer, command: list[bytes]) -> None:
        idle = not waiting
        waiting.extend(server.reply(command))
        if idle:
            asyncio.get_running_loop().call_soon(drop, peer)

    def drop(peer: Peer) -> None:
        peer.transport.write(bytes(waiting[:size]))
        del waiting[:size]
        if waiting:
            asyncio.get_running_loop().call_soon(drop, peer)

    server.script = drip
    async with server.running() as url, session(url) as asking:
        for _ in range(5):
            answers = [asking.ask([b"a", b"b", b"x"]), asking.ask([b"c"], [b"a", b"x"])]
            assert await asyncio.gather(*answers) == [
                ([b"1\r\n", b"$-1\r\n", None], []),
                ([b""], [60_000, GONE]),
            ]


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refused", [b"MGET", b"PTTL"])
async def test_an_error_makes_unavailable_what_rests_on_it_and_nothing_else(refused: bytes) -> None:
    """The values of a round come by one command and fail together; another command is of one question only."""
    server = Server({b"good": b"1"})

    def script(peer: Peer, command: list[bytes]) -> None:
        wrong = command[0] == refused and b"bad" in command
        peer.transport.write(b"-NOPERM no rights\r\n" if wrong else server.reply(command))

    server.script = script
    async with server.running() as url, session(url) as asking:
        before = asking.ask([b"good"], [b"good"])
        await asyncio.sleep(0)
        same = [asking.ask([b"good"]), asking.ask([b"bad"], [b"bad", b"good"]), asking.ask([], [b"good"])]
        await asyncio.sleep(0)
        after = asking.ask([b"good"], [b"good"])
        assert await before == await after == ([b"1"], [60_000])
        expected = [UNAVAILABLE] * 3 if refused == b"MGET" else [([b"1"], []), UNAVAILABLE, ([], [60_000])]
        assert await asyncio.gather(*same) == expected
        assert "NOPERM" in asking.log()
        assert len(server.peers) == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("when", ["answered", "unavailable"])
async def test_an_answer_that_cannot_be_given_takes_no_other_with_it(when: str) -> None:
    # As where the connection that asked is gone: what the callback raises must not reach its neighbours.
    def fail(_: object, __: object) -> None:
        raise RuntimeError("the peer is gone")

    server = Server({b"a": b"1"})
    async with server.running() as url, session(url) as asking:
        if when == "unavailable":
            server.script = mute
        first = asking.ask([b"a"])
        asking.lookups.ask([b"a"], fail)
        second = asking.ask([b"a"])
        await asyncio.sleep(0)
        asking.lookups.ask([b"a"], fail)
        third = asking.ask([b"a"])
        expected = UNAVAILABLE if when == "unavailable" else ([b"1"], [])
        answered = await asyncio.wait_for(asyncio.gather(first, second, third), 20)
        assert list(answered) == [expected] * 3
        server.script = server.answer
        assert await eventually(asking.is_available)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "banner",
    [
        b"220 mail.example.com ESMTP\r\n",
        b"ERROR\r\n",
        b"\x15\x03\x01\0\x02\x02F",
    ],
    ids=["SMTP", "memcached", "TLS"],
)
async def test_a_server_of_another_protocol_is_unavailable_and_said_once(banner: bytes) -> None:
    clock = LoopClock()
    server = Server()
    server.banner = banner
    server.script = mute
    server.script_for_probe = True
    async with server.running() as url:
        before = clock()
        async with session(url) as asking:
            assert await asking.ask([b"a"]) == UNAVAILABLE
            assert clock() - before < 2 * DEADLINE
            assert await eventually(lambda: len(server.peers) >= 2)
            assert await asking.ask([b"a"]) == UNAVAILABLE
        # Every attempt fails alike: a line for each would fill the log for as long as it lasts.
        assert 1 <= asking.errors() <= 2


async def test_an_answer_that_nobody_asked_for_ends_the_connection() -> None:
    server = Server({b"a": b"1"})
    async with server.running() as url, session(url) as asking:
        assert await asking.value(b"a") == b"1"
        server.peers[0].transport.write(b"*1\r\n$5\r\nstray\r\n")
        assert await eventually(lambda: server.peers[0].transport.is_closing() or len(server.peers) == 2)
        assert await asking.value(b"a") == b"1"
        assert len(server.peers) == 2


# --- connections that are lost ------------------------------------------------------------------------------------


def cutting(server: Server, cuts: int, after: int) -> Callable[[Peer, list[bytes]], None]:
    """A script that cuts the first `cuts` replies `after` so many bytes, and the connection with them."""
    left = itertools.count(cuts, -1)

    def script(peer: Peer, command: list[bytes]) -> None:
        reply = server.reply(command)
        if next(left) > 0:
            peer.transport.write(reply[:after])
            peer.transport.close()
        else:
            peer.transport.write(reply)

    return script


@pytest.mark.parametrize("cuts", [1, 2])
@pytest.mark.parametrize("after", [0, 1, 4, 15])
async def test_a_reply_that_is_cut_off_is_asked_for_once_more_and_no_more(after: int, cuts: int) -> None:
    clock = LoopClock()
    server = Server({b"a": b"1", b"b": b"22222222"})
    server.script = cutting(server, cuts, after)
    async with server.running() as url, session(url) as asking:
        before = clock()
        answers = [asking.ask([b"a", b"b"]), asking.ask([b"b"])]
        found = [([b"1", b"22222222"], []), ([b"22222222"], [])] if cuts == 1 else [UNAVAILABLE] * 2
        assert await asyncio.gather(*answers) == found
        assert clock() - before < DEADLINE
        assert server.commands == [(number, [b"MGET", b"a", b"b", b"b"]) for number in (0, 1)]
        assert asking.errors() == 0
        assert await asking.value(b"a") == b"1"  # and the next one has a connection again
        assert len(server.peers) == cuts + 1


async def test_only_what_had_no_answer_is_asked_again() -> None:
    server = Server({b"a": b"1", b"b": b"2", b"c": b"3"})

    def script(peer: Peer, command: list[bytes]) -> None:
        if peer.number == 0 and command[1] != b"a":
            if command[1] == b"c":
                peer.transport.close()
            return
        server.answer(peer, command)

    server.script = script
    async with server.running() as url, session(url) as asking:
        answers = []
        for key in (b"a", b"b", b"c"):
            answers.append(asking.ask([key]))
            await asyncio.sleep(0)
        assert await asyncio.gather(*answers) == [([b"1"], []), ([b"2"], []), ([b"3"], [])]
        asked_again = [set(command[1:]) for number, command in server.commands if number == 1]
        assert asked_again == [{b"b"}, {b"c"}]


async def test_part_of_a_round_that_was_cut_is_not_mixed_with_its_repetition() -> None:
    server = Server({b"a": b"old"})

    def script(peer: Peer, command: list[bytes]) -> None:
        if peer.number == 0 and command[0] == b"PTTL":
            server.data[b"a"] = b"new"
            peer.transport.close()
        else:
            server.answer(peer, command)

    server.script = script
    async with server.running() as url, session(url) as asking:
        assert await asking.ask([b"a"], [b"a", b"b"]) == ([b"new"], [60_000, GONE])


async def test_an_idle_connection_that_is_closed_is_opened_anew() -> None:
    server = Server({b"a": b"1"})
    async with server.running() as url, session(url) as asking:
        for number in range(20):
            assert await asking.value(b"a") == b"1"
            server.peers[-1].transport.close()
            if number % 2:
                await asyncio.sleep(0)
        assert await asking.value(b"a") == b"1"
        assert asking.errors() == 0


@pytest.mark.parametrize("moment", ["accepted", "too many clients", "AUTH", "GET"])
async def test_a_server_that_hangs_up_while_the_connection_is_opened_is_tried_again(moment: str) -> None:
    # As a proxy without a backend does, a Redis with all its maxclients, or one that is being shut down.
    server = Server({b"a": b"1"})
    hanging_up = itertools.count(1)

    def hang_up(peer: Peer, last_words: bytes) -> None:
        peer.transport.write(last_words)
        if next(hanging_up) <= 2:
            peer.transport.close()

    def welcome(peer: Peer) -> None:
        if next(hanging_up) <= 2:
            last_words = b"-ERR max number of clients reached\r\n" if moment == "too many clients" else b""
            peer.transport.write(last_words)
            peer.transport.close()

    def script(peer: Peer, command: list[bytes]) -> None:
        if command[0].decode() == moment:
            hang_up(peer, server.reply(command))
        else:
            server.answer(peer, command)

    server.script = script
    server.script_for_probe = True
    if moment in ("accepted", "too many clients"):
        server.welcome = welcome
    async with server.running() as url:
        opened = Session(url[:-1] + "3", user="svc", password="secret")
        await asyncio.wait_for(opened.lookups.open(), 20)
        assert await eventually(opened.is_available)
        assert await opened.value(b"a") == b"1"
        await opened.lookups.close()
        opened.check()


async def test_refused_at_first_it_is_available_when_the_server_comes() -> None:
    clock = LoopClock()
    port = free_port()
    async with session(f"redis://127.0.0.1:{port}/0") as asking:
        for _ in range(10):
            before = clock()
            assert await asking.ask([b"a"]) == UNAVAILABLE
            assert clock() - before < 0.2
        async with Server({b"a": b"1"}).running(port):
            assert await eventually(asking.is_available)
            assert await asking.value(b"a") == b"1"
        assert asking.errors() == 1


async def test_a_server_that_goes_and_comes_back_in_time_costs_no_request() -> None:
    port = free_port()
    server = Server({b"a": b"1"})
    async with session(f"redis://127.0.0.1:{port}/0") as asking:
        for _ in range(3):
            async with server.running(port):
                assert await eventually(asking.is_available)
            answers = [asking.ask([b"a"]) for _ in range(5)]
            await asyncio.sleep(0)
            answers += [asking.ask([b"a"]) for _ in range(5)]
            assert await eventually(lambda: not asking.lookups.is_connected)
            answers += [asking.ask([b"a"]) for _ in range(5)]
            async with server.running(port):
                assert await asyncio.gather(*answers) == [([b"1"], [])] * 15


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_does_not_come_back_is_awaited_until_the_deadline_and_no_longer() -> None:
    clock = LoopClock()
    port = free_port()
    async with session(f"redis://127.0.0.1:{port}/0") as asking:
        server = Server()
        async with server.running(port):
            assert await eventually(asking.is_available)
        before = clock()
        assert await asking.ask([b"a"]) == UNAVAILABLE
        assert clock() - before < DEADLINE + 0.3

        async def fails_at_once() -> bool:
            sent = clock()
            assert await asking.ask([b"a"]) == UNAVAILABLE
            return clock() - sent < 0.05

        assert await eventually(fails_at_once)


async def test_a_server_that_is_still_loading_is_unavailable_until_it_has_loaded() -> None:
    server = Server({b"a": b"1"})
    server.script_for_probe = True
    loading = itertools.count(1)

    def script(peer: Peer, command: list[bytes]) -> None:
        is_loading = command[1] == PROBE and next(loading) <= 2
        peer.transport.write(b"-LOADING\r\n" if is_loading else server.reply(command))

    server.script = script
    async with server.running() as url, session(url) as asking:
        assert await asking.ask([b"a"]) == UNAVAILABLE
        assert await eventually(asking.is_available)
        assert "LOADING" in asking.log()
        assert asking.errors() == 1


# --- a server that is mute ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
async def test_a_mute_server_costs_one_deadline_and_then_none() -> None:
    clock = LoopClock()
    server = Server({b"a": b"1"})
    async with server.running() as url, session(url) as asking:
        assert await asking.value(b"a") == b"1"
        server.script = mute
        server.script_for_probe = True
        before, began = clock(), time.monotonic()
        answers = [asking.ask([b"a"]) for _ in range(50)]
        await asyncio.sleep(0)
        answers += [asking.ask([b"a"]) for _ in range(50)]
        assert await asyncio.gather(*answers) == [UNAVAILABLE] * 100
        assert clock() - before < DEADLINE + 0.4
        assert time.monotonic() - began > DEADLINE * 0.9
        for _ in range(20):
            before = clock()
            assert await asking.ask([b"a"]) == UNAVAILABLE
            assert clock() - before < 0.1
        assert asking.errors() == 1
        server.script = server.answer
        assert await eventually(asking.is_available)
        assert await asking.value(b"a") == b"1"


@pytest.mark.usefixtures("impatient")
async def test_opening_does_not_wait_for_a_mute_server() -> None:
    clock = LoopClock()
    server = Server()
    server.script = mute
    server.script_for_probe = True
    async with server.running() as url:
        before = clock()
        async with session(url) as asking:
            assert clock() - before < DEADLINE + 0.4
            before = clock()
            assert await asking.ask([b"a"]) == UNAVAILABLE
            assert clock() - before < 0.1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("first", ["answers in part", "closes"])
async def test_a_server_that_goes_mute_on_the_way_keeps_the_deadline(first: str) -> None:
    clock = LoopClock()
    server = Server({b"a": b"1"})

    def script(peer: Peer, command: list[bytes]) -> None:
        if first == "answers in part":
            peer.transport.write(server.reply(command)[:-1])
        elif peer.number == 0:
            peer.transport.close()

    server.script = script
    async with server.running() as url, session(url) as asking:
        before = clock()
        assert await asking.ask([b"a"]) == UNAVAILABLE
        assert clock() - before < DEADLINE + 0.4
        server.script = server.answer
        assert await eventually(asking.is_available)


# --- the end ------------------------------------------------------------------------------------------------------


async def test_closing_answers_everybody_at_once() -> None:
    clock = LoopClock()
    server = Server()
    server.script = mute
    async with server.running() as url:
        async with session(url) as asking:
            answers = [asking.ask([b"a"]) for _ in range(3)]
            await asyncio.sleep(0)
            answers.append(asking.ask([b"a"]))
            await asyncio.sleep(0)
            answers.append(asking.ask([b"a"]))  # its turn has not ended: nothing is sent yet
            before = clock()
            await asking.lookups.close()
            assert await asyncio.gather(*answers) == [UNAVAILABLE] * 5
            assert clock() - before < 0.2


async def test_closing_answers_those_who_wait_for_a_connection() -> None:
    clock = LoopClock()
    port = free_port()
    async with session(f"redis://127.0.0.1:{port}/0") as asking:
        server = Server()
        async with server.running(port):
            assert await eventually(asking.is_available)
        answers = [asking.ask([b"a"])]
        await asyncio.sleep(0)
        answers.append(asking.ask([b"a"]))
        before = clock()
        await asking.lookups.close()  # which `session` does again
        assert await asyncio.gather(*answers) == [UNAVAILABLE] * 2
        assert clock() - before < 0.2


# --- what was written is what is read -----------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [False, True], ids=["undisturbed", "with cut connections"])
async def test_no_answer_is_older_than_the_last_write(redis_server: PrivateRedis, *, cuts: bool) -> None:
    """2,000 times each: SET returned, then ask; DEL returned, then ask; while others keep asking."""
    url = redis_server.url
    rounds = 500 if cuts else 2_000
    done = asyncio.Event()
    unavailable = 0

    async def load(asking: Session, key: bytes) -> None:
        while not done.is_set():
            await asking.ask([key, b"absent"], [key])

    async with writer(url) as write, session(url) as asking:
        others = [asyncio.create_task(load(asking, b"key-%d" % (number % 4))) for number in range(20)]
        for number in range(rounds):
            key, value = b"key-%d" % (number % 4), b"%d" % number
            if cuts and number % 25 == 0:
                await write("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await write("SET", key, value, "PX", 60_000)
            values, left = await asking.ask([key], [key])
            if values is None:
                unavailable += 1
            else:
                assert values == [value]
                assert left[0] > 0
            await write("DEL", key)
            values, left = await asking.ask([key], [key])
            if values is None:
                unavailable += 1
            else:
                assert (values, left) == ([None], [GONE])
        done.set()
        await asyncio.gather(*others)
    assert unavailable == 0


# --- the master is another server ---------------------------------------------------------------------------------


def cluster_of(*urls: str) -> str:
    return "redis+cluster://" + ",".join(url.removeprefix("redis://").removesuffix("/0") for url in urls)


@pytest.mark.parametrize("error", ["MOVED 9 {}", "CLUSTERDOWN The cluster is down", "READONLY You can't write"])
async def test_what_another_server_is_to_answer_is_asked_there(error: str) -> None:
    """After a failover in a Cluster that the former master survived, for one."""
    former, master = Server({b"a": b"old"}), Server({b"a": b"new"})
    async with former.running() as former_url, master.running() as url:
        async with session(cluster_of(former_url)) as asking:
            assert await asking.value(b"a") == b"old"
            place = url.removeprefix("redis://").removesuffix("/0")
            moved = f"-{error.format(place)}\r\n".encode()
            probe = f"-MOVED 9 {place}\r\n".encode()
            former.script_for_probe = True
            former.script = lambda peer, command: peer.transport.write(
                {b"GET": probe, b"MGET": moved}.get(command[0], b"+OK\r\n")
            )
            answers = [asking.ask([b"a"]), asking.ask([b"a", b"b"], [b"a"])]
            assert await asyncio.gather(*answers) == [([b"new"], []), ([b"new", None], [60_000])]
            assert asking.log().count("connected to Redis") == 2
            assert f"the master {place}" in asking.log()


@pytest.mark.usefixtures("frequent_looks")
async def test_a_command_that_a_replica_refuses_has_the_master_looked_for() -> None:
    server = Server({b"a": b"1"})
    async with server.running() as url, session(url) as asking:
        server.script = lambda peer, _: peer.transport.write(b"-READONLY You can't write\r\n")
        assert await asking.ask([], [b"a"]) == UNAVAILABLE
        server.script = server.answer
        assert await eventually(lambda: asking.lookups.connections == 2)
        assert await asking.value(b"a") == b"1"


@pytest.mark.usefixtures("frequent_looks")
async def test_a_replica_is_unavailable_until_it_is_a_master() -> None:
    server = Server({b"a": b"1"})
    server.role = b"replica"
    async with server.running() as url, session(url) as asking:
        assert await asking.ask([b"a"]) == UNAVAILABLE
        assert "it is a replica, which may be behind" in asking.log()
        server.role = b"master"
        assert await eventually(asking.is_available)


@pytest.mark.usefixtures("frequent_looks")
async def test_who_becomes_a_replica_is_asked_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """REPLICAOF by hand leaves the connections as they are."""
    server = Server({b"a": b"1"})
    async with server.running() as at:
        place = at.removeprefix("redis://").removesuffix("/0")
        async with session(at) as asking:
            assert await asking.value(b"a") == b"1"
            wait_for_redis(DEADLINE, monkeypatch)
            server.role = b"slave"

            async def is_unavailable() -> bool:
                return not await asking.is_available()

            assert await eventually(is_unavailable)
            assert f"{place}: it is a replica, which may be behind" in asking.log()


@pytest.mark.usefixtures("frequent_looks")
async def test_without_a_change_of_masters_nothing_is_opened_anew() -> None:
    server = Server({b"a": b"1"})
    async with server.running() as url, session(url) as asking:
        assert await eventually(lambda: len(server.peers) == 2)
        # Two more looks, by what the server is asked there.
        asked = server.peers[1].segments
        assert await eventually(lambda: server.peers[1].segments >= asked + 2)
        assert len(server.peers) == 2
        assert await asking.value(b"a") == b"1"
        assert asking.log().count("connected") == 1
