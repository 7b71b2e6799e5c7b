"""Commands by the thousand on one connection of redis-py: it sends and parses, and its pipeline, which takes 15 us of
processor time for each command where this takes 2, is passed by.

`read_keys` is how a whole table is read: while a batch of keys is worked on, Redis already answers for the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from pbs_policy.question import Command

if TYPE_CHECKING:
    from redis import Redis

T = TypeVar("T")

BATCH = 1000
"""Keys that Redis looks at for one SCAN. It serves nobody else meanwhile: 0.2 ms here."""


class Bulk:
    """A connection taken from `redis` for the time of a `with`. Raises what redis-py raises."""

    def __init__(self, redis: Redis) -> None:
        self._client: Any = redis.client()  # type: ignore[no-untyped-call]
        self._commands: Sequence[Command] = ()
        self._is_waiting = False

    def send(self, commands: Sequence[Command]) -> None:
        """Send `commands`, whose replies are then to be had from `receive`."""
        from redis import ConnectionError as ConnectionLost

        self._commands = commands
        self._is_waiting = True
        try:
            self._write()
        except ConnectionLost:
            self._client.connection.disconnect()
            self._write()

    def receive(self) -> list[Any]:
        """The replies to what was sent last. Where the connection was lost meanwhile, it is opened once more and
        everything is sent again: so only commands that may be said twice."""
        from redis import ConnectionError as ConnectionLost

        connection = self._client.connection
        try:
            replies = [connection.read_response() for _ in self._commands]
        except ConnectionLost:
            connection.disconnect()
            self._write()
            replies = [connection.read_response() for _ in self._commands]
        self._is_waiting = False
        return replies

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Send, and receive."""
        self.send(commands)
        return self.receive()

    def _write(self) -> None:
        self._client.connection.send_packed_command([b"".join([_pack(command) for command in self._commands])])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_waiting:
            # Its replies would be taken for those to somebody else's commands.
            self._client.connection.disconnect()
        self._client.close()


class Batch(NamedTuple):
    """Some keys of a table: what stands under each, None where it is gone; the milliseconds it has left (`keys`:
    NO_END, GONE) at `asked_at`, by the monotonic clock; and the further keys that were asked for, with values."""

    keys: list[bytes]
    values: list[bytes | None]
    left: list[int]
    asked_at: float
    further: Sequence[bytes] = ()
    further_values: Sequence[bytes | None] = ()


def read_keys(
    redis: Redis,
    pattern: bytes,
    wanted: Callable[[list[bytes]], list[bytes]],
    further: Callable[[list[bytes], list[bytes | None]], list[bytes]] = lambda _keys, _values: [],
    progress: Callable[[int], object] = lambda _count: None,
) -> Iterator[Batch]:
    """Everything under the keys that match `pattern`, in Redis' order, a batch at a time.

    `wanted` chooses of a batch of keys, `further` names other keys that its values make interesting, `progress` is
    told how many keys were read. A key may be missed or come twice that is written meanwhile (SCAN).
    """
    cursor: bytes | None = b"0"
    keys: list[bytes] = []
    waiting: Batch | None = None  # for its further values
    done: Batch | None = None
    with Bulk(redis) as bulk:
        while True:
            commands = _commands(waiting.further if waiting else (), keys, pattern, cursor)
            if commands:
                bulk.send(commands)
                asked_at = time.monotonic()
            if done:
                yield done
            if not commands:
                if waiting:
                    yield waiting
                return
            replies = iter(bulk.receive())
            done, waiting = waiting, None
            if done and done.further:
                done = done._replace(further_values=next(replies))
            if keys:
                values = next(replies)
                left = [next(replies) for _ in keys]
                waiting = Batch(keys, values, left, asked_at, further(keys, values))
            keys = []
            if cursor is not None:
                at, names = next(replies)
                cursor = None if at in (0, b"0") else at
                keys = wanted(names)
                progress(len(names))


def _commands(further: Sequence[bytes], keys: list[bytes], pattern: bytes, cursor: bytes | None) -> list[Command]:
    commands: list[Command] = []
    if further:
        commands.append((b"MGET", *further))
    if keys:
        commands.append((b"MGET", *keys))
        commands += [(b"PTTL", key) for key in keys]
    if cursor is not None:
        commands.append((b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % BATCH))
    return commands


def _pack(command: Command) -> bytes:
    if len(command) == 2:  # PTTL, of which there are the most
        name, key = command
        return b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(key), key)
    return b"*%d\r\n" % len(command) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in command])


def pieces(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """`items` in lists of `size`, the last one shorter."""
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece
