"""A reply that its command cannot have: replies are matched by their order alone, so none that follows on the same
connection can be trusted. What is in flight is asked once more on another."""

from __future__ import annotations

import asyncio

import pytest

from tests.lookups.peer import UNAVAILABLE, Peer, Server, eventually, session

pytestmark = pytest.mark.usefixtures("run")

# Not a set of RESP3, nor a list of statuses: hiredis makes the same of them as of a list of values.
IMPOSSIBLE_VALUES = [
    b"+OK\r\n",
    b":1\r\n",
    b"$-1\r\n",
    b"$1\r\na\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n$-1\r\n$-1\r\n",
    b"*1\r\n:7\r\n",
    b"*1\r\n*1\r\n$1\r\na\r\n",
    b"*1\r\n-ERR inside\r\n",
    b"-MGOT no such error\r\n",
    b"-\r\n",
    b"%1\r\n$1\r\na\r\n$1\r\nb\r\n",
    b"%1\r\n*0\r\n:1\r\n",
    b">1\r\n$1\r\na\r\n",
    b"#t\r\n",
    b"#f\r\n",
    b",1.5\r\n",
    b"_\r\n",
    b"no protocol at all\r\n",
]

IMPOSSIBLE_ENDS = [
    b"+OK\r\n",
    b"$5\r\n60000\r\n",
    b"$-1\r\n",
    b":-3\r\n",
    b"*1\r\n:1\r\n",
    b"-PTLL no such error\r\n",
    b"#t\r\n",
    b"#f\r\n",
    b",1.5\r\n",
]


@pytest.mark.parametrize(
    ("name", "reply"),
    [*((b"MGET", reply) for reply in IMPOSSIBLE_VALUES), *((b"PTTL", reply) for reply in IMPOSSIBLE_ENDS)],
)
async def test_the_connection_is_given_up_and_what_is_in_flight_is_asked_on_another(
    name: bytes, reply: bytes
) -> None:
    """Behind the impossible reply stand replies of the right kind for all that is in flight: to others' questions."""
    server = Server({b"a": b"1", b"b": b"2", b"c": b"3"})
    held: list[list[bytes]] = []

    def script(peer: Peer, command: list[bytes]) -> None:
        if peer.number or b"good" in command:
            server.answer(peer, command)
            return
        held.append(command)
        if len(held) == 5:
            wrong = b":60000\r\n*1\r\n$5\r\nwrong\r\n"
            peer.transport.write((b"" if name == b"PTTL" else b":60000\r\n") + reply + wrong * 2)

    server.script = script
    async with server.running() as url, session(url) as asking:
        await asking.ask([b"good"])
        answers = []
        for key in (b"a", b"b"):
            answers.append(asking.ask([key], [key]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        answers.append(asking.ask([b"c"]))
        assert await asyncio.gather(*answers) == [([b"1"], [60_000]), ([b"2"], [60_000]), ([b"3"], [])]
        assert len(server.peers) == 2
        assert asking.errors() == 1


@pytest.mark.parametrize("change", ["doubled", "swapped"])
async def test_the_reply_to_the_neighbour_in_flight_is_no_answer(change: str) -> None:
    """Both ask for as many values as the other."""
    server = Server({b"a": b"1", b"b": b"2"})
    held: list[bytes] = []

    def script(peer: Peer, command: list[bytes]) -> None:
        if peer.number or b"good" in command:
            server.answer(peer, command)
            return
        held.append(server.reply(command))
        if len(held) == 2:
            first, second = held
            peer.transport.write(second + first if change == "swapped" else first + first)

    server.script = script
    async with server.running() as url, session(url) as asking:
        await asking.ask([b"good"])
        first = asking.ask([b"a"])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second = asking.ask([b"b"])
        assert [await first, await second] == [([b"1"], []), ([b"2"], [])]
        assert len(server.peers) == 2


async def test_what_gets_an_impossible_reply_twice_is_unavailable() -> None:
    server = Server({b"good": b"1"})

    def script(peer: Peer, command: list[bytes]) -> None:
        peer.transport.write(b":1\r\n" if b"bad" in command else server.reply(command))

    server.script = script
    async with server.running() as url, session(url) as asking:
        assert await asking.value(b"good") == b"1"
        assert await asking.ask([b"bad"]) == UNAVAILABLE

        async def is_good_again() -> bool:
            return await asking.ask([b"good"]) == ([b"1"], [])

        assert await eventually(is_good_again)


async def test_a_server_that_gives_nothing_else_is_not_connected_to_without_pause() -> None:
    server = Server()
    server.script = lambda peer, _: peer.transport.write(b"+OK\r\n")
    async with server.running() as url, session(url) as asking:
        for _ in range(200):
            assert await asking.ask([b"a"]) == UNAVAILABLE
            await asyncio.sleep(0.001)
        # Two attempts a second are more than PROBE_INTERVAL makes of this time, on a slow machine as well.
        assert len(server.peers) < 20


@pytest.mark.parametrize("error", ["NOPERM no rights", "LOADING", "BUSY a script", "ERR unknown command"])
async def test_an_error_that_redis_knows_keeps_the_connection_and_is_reported_once(error: str) -> None:
    server = Server({b"a": b"1"})

    def script(peer: Peer, command: list[bytes]) -> None:
        refusal = f"-{error} to {command[0].decode()}\r\n".encode()
        peer.transport.write(refusal if b"bad" in command else server.reply(command))

    server.script = script
    async with server.running() as url, session(url) as asking:
        for _ in range(3):
            assert await asking.ask([b"bad"]) == UNAVAILABLE
            assert await asking.ask([], [b"bad"]) == UNAVAILABLE
            assert await asking.value(b"a") == b"1"
        assert len(server.peers) == 1
        assert asking.errors() == 2  # one for each command
