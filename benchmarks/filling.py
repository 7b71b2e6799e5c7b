"""Fills a Redis with logins as the post-login script writes them, fast: two or three keys each, made-up users.

Two ranges of addresses that belong to nobody: 198.18.0.0/15 is for benchmarks (RFC 2544), and where its 131,072
addresses are too few, 10.0.0.0/8 (RFC 1918) stands in.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from pbs_policy.table.keys import Keys
from pbs_policy.table.records import Record, serialise_record
from pbs_policy.table.users import names_of_user

LOGGED_IN = "198.18.0.0"
NOT_LOGGED_IN = "198.19.0.0"
RUN = 65_536
"""Addresses in each of the two runs above."""

MANY_LOGGED_IN = "10.0.0.0"
MANY_NOT_LOGGED_IN = "10.128.0.0"

TTL = 86_400
"""Seconds: no login ends while it is measured."""

_FIRST_NAMES = ("a", "bob", "j", "jean", "katarzyna", "li", "maria", "mo", "olga", "tim")
_LAST_NAMES = ("berg", "garcia", "ito", "kowalski", "nilsson", "obrien", "papandreou", "rossi", "smith", "wu")
_COMPANIES = ("", "", "", "acme.", "city.", "lawyers.", "mail.", "shop.", "tv.", "uni.")
_TOPS = ("example.com", "example.net", "example.org")

_PORTION = 1_000  # logins sent before their replies are read: 200 kB, which the socket's buffers and Redis take


class Kind(NamedTuple):
    """One of the keys of a login: its place in `login_keys`, the setting that reads it."""

    place: int
    name: str
    read_by: str


KINDS = (
    Kind(0, "login:<address>", "every relay check"),
    Kind(1, "login:<address>,<user>", "`sender_match = address`; list, show and revoke by user"),
    Kind(2, "login:<address>,@<domain>", "`sender_match = domain`"),
)


DEFAULT_KINDS = KINDS[:2]
"""What the script writes unless its settings say `sender_match = domain`."""


def user_number(number: int) -> bytes:
    """A user, the same for the same number; every third has digits behind the name."""
    first, number = _FIRST_NAMES[number % 10], number // 10
    last, number = _LAST_NAMES[number % 10], number // 10
    company, number = _COMPANIES[number % 10], number // 10
    digits = "" if number % 3 else str(number % 100)
    return f"{first}.{last}{digits}@{company}{_TOPS[number % 3]}".encode()


def mean_user_size(count: int) -> float:
    """Bytes of the name of one of the first `count` users."""
    return sum(len(user_number(number)) for number in range(count)) / count


def login_keys(keys: Keys, address: str, user: bytes) -> list[bytes]:
    """The keys of a login of `user` from `address`, in the order of KINDS."""
    return [keys.login(address, name) for name in (b"", *names_of_user(user, ""))]


def fill(
    path: Path,
    first: str,
    count: int,
    kinds: tuple[Kind, ...] = DEFAULT_KINDS,
    user_of: Callable[[int], bytes] = user_number,
) -> None:
    """Log in one user from each of `count` addresses, through Redis' unix socket at `path`."""
    keys, now, start = Keys("pbs:"), int(time.time()), int(IPv4Address(first))

    def commands() -> Iterator[list[bytes]]:
        for number in range(count):
            user = user_of(number)
            names = login_keys(keys, str(IPv4Address(start + number)), user)
            value = serialise_record(Record(now, "pop3", user.decode()))
            yield [_set(names[kind.place], value) for kind in kinds]

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        portion: list[bytes] = []
        for number, written in enumerate(commands(), 1):
            portion += written
            if number % _PORTION == 0 or number == count:
                connection.sendall(b"".join(portion))
                _expect_ok(connection, len(portion))
                portion.clear()


def _set(key: bytes, value: bytes) -> bytes:
    return b"*5\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n$2\r\nEX\r\n$5\r\n%d\r\n" % (
        len(key), key, len(value), value, TTL,
    )  # fmt: skip


def _expect_ok(connection: socket.socket, count: int) -> None:
    wanted = b"+OK\r\n" * count
    answer = b""
    while len(answer) < len(wanted):
        data = connection.recv(65_536)
        if not data:
            raise ConnectionError("Redis closed the connection while it was filled")
        answer += data
    if answer != wanted:
        raise ConnectionError(f"Redis did not take every login: {answer[:200]!r}")
