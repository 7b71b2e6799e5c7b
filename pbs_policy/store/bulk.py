"""Many keys read in few rounds: `read_keys` is how a whole table is read. While a batch of keys is worked on, Redis
already answers for the next.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pbs_policy.store.question import Command

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pbs_policy.store.connect import RedisClient

T = TypeVar("T")

BATCH = 1000
"""Keys that Redis looks at for one SCAN. It serves nobody else meanwhile: 0.2 ms here."""


class KeyBatch(NamedTuple):
    """Some keys of a table: what stands under each, None where it is gone; the milliseconds it has left (`keys`:
    NO_END, GONE) at `asked_at`, by the monotonic clock."""

    keys: list[bytes]
    values: list[bytes | None]
    left: list[int]
    asked_at: float


def read_keys(
    redis: RedisClient,
    pattern: bytes,
    wanted: Callable[[list[bytes]], list[bytes]],
    progress: Callable[[int], object] = lambda _count: None,
) -> Iterator[KeyBatch]:
    """Everything under the keys that match `pattern`, in Redis' order, a batch at a time.

    `wanted` chooses of a batch of keys, `progress` is told how many keys were read. A key may be missed or come twice
    that is written meanwhile (SCAN).
    """
    cursor: bytes | None = b"0"
    cursors: set[bytes] = set()
    keys: list[bytes] = []
    done: KeyBatch | None = None
    with ExitStack() as opened:
        ask_aside: Callable[[Sequence[Command]], Future[list[Any]]] | None = None
        while True:
            commands = _commands(keys, pattern, cursor)
            asked_at = time.monotonic()
            if done and commands:
                # On a connection of its own: whoever is given a batch may ask something himself.
                ask_aside = ask_aside or _aside(redis, opened)
                asked = ask_aside(commands)
                yield done
                replies = iter(asked.result())
            else:  # nobody works on a batch meanwhile, or nothing is left to be asked: so it is with a small table
                if done:
                    yield done
                replies = iter(redis.ask(commands) if commands else ())
            if not commands:
                return
            done = KeyBatch(keys, next(replies), [next(replies) for _ in keys], asked_at) if keys else None
            keys = []
            if cursor is not None:
                at, names = next(replies)
                cursor = next_cursor(at, cursors)
                keys = wanted(names)
                progress(len(names))


def _aside(redis: RedisClient, opened: ExitStack) -> Callable[[Sequence[Command]], Future[list[Any]]]:
    """How to ask on a connection of its own, without waiting for the replies."""
    from concurrent.futures import ThreadPoolExecutor  # 9 ms, which no other command and no small table need

    ask = opened.enter_context(redis.another()).ask
    submit = opened.enter_context(ThreadPoolExecutor(1, "bulk")).submit
    return lambda commands: submit(ask, commands)


def _commands(keys: list[bytes], pattern: bytes, cursor: bytes | None) -> list[Command]:
    commands: list[Command] = []
    if keys:
        commands.append((b"MGET", *keys))
        commands += [(b"PTTL", key) for key in keys]
    if cursor is not None:
        commands.append(scan_command(cursor, pattern, BATCH))
    return commands


def scan_command(cursor: bytes, pattern: bytes, count: int) -> Command:
    """The next step of a SCAN, over about `count` keys; its reply is the cursor of the one after it, b"0" at the end,
    and the keys that match."""
    return (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % count)


def next_cursor(cursor: bytes, seen: set[bytes]) -> bytes | None:
    """The cursor to go on from, which is noted in `seen`; None at the end. Raises StoreUnavailable for one that was
    there before: Redis names none twice in one SCAN, and that would have no end."""
    if cursor == b"0":
        return None
    if cursor in seen:
        from pbs_policy.store.errors import StoreUnavailable

        raise StoreUnavailable("SCAN comes to a place where it was before, and would have no end")
    seen.add(cursor)
    return cursor


def escape_glob(text: bytes) -> bytes:
    """`text` as a SCAN pattern that matches nothing else."""
    return re.sub(rb"([*?\[\]\\])", rb"\\\1", text)


def pieces(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """`items` in lists of `size`, the last one shorter."""
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece
