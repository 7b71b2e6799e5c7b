"""The users of a day: who is online when, how often each logs in, from which addresses, and what is sent.

Everything is drawn from one seed before or while the day runs, a minute at a time. What is assumed, and from where
a site would take its own figures, is said at each constant. Times are minutes of the day.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from benchmarks.filling import MANY_LOGGED_IN, user_number

MINUTES = 1_440
TTL = 30
"""Minutes that a login permits, by default."""

LOGINS_A_USER = 100
"""In a day: a POP3 client that asks every 5 to 15 minutes while it is on, for 8 to 16 hours."""

# Begins of sessions in each hour, in any unit: a night, a morning that all begin at once, an evening at home.
_BEGINS = (2, 1, 1, 1, 2, 5, 12, 25, 40, 30, 18, 14, 14, 16, 14, 12, 12, 16, 20, 20, 16, 12, 8, 4)
_ADDRESSES = ((1, 60), (2, 25), (3, 10), (6, 5))  # of a user: desk, home, telephone, travels; and their shares
_INTERVALS = ((5, 55), (10, 20), (15, 20), (60, 5))  # minutes between two logins of a client, and their shares
_HOURS = (2, 8, 10, 12, 14, 24)  # that a client stays on
_OFFICE = 20  # users behind the address of one office ...
_IN_OFFICES = 0.2  # ... and the share of users who are in one
_SENDS = 0.04  # messages after a login: 4 a user and day
_SENT_WITHIN = 45  # minutes after the login; those beyond TTL are lost unless there was another login
STRANGERS = 0.5  # of all relay attempts: who has never logged in, tried and refused at an even rate all day


@dataclass(slots=True)
class Client:
    """One program of one user at one address: what it logs in as, and until when it does."""

    address: str
    user: bytes
    interval: int
    last_minute: int


@dataclass
class Population:
    """So many users, and the day that is ahead of them."""

    users: int
    seed: int = 1
    due: list[list[Client]] = field(default_factory=lambda: [[] for _ in range(MINUTES)])
    sending: list[list[str]] = field(default_factory=lambda: [[] for _ in range(MINUTES + _SENT_WITHIN)])
    addresses: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        first = int(IPv4Address(MANY_LOGGED_IN)) + 1
        for number in range(self.users):
            user = user_number(number)
            if self._random.random() < _IN_OFFICES:
                own = [first + 8_000_000 + number // _OFFICE]
            else:
                own = [first + 8 * number + each for each in range(_choose(self._random, _ADDRESSES))]
            self.addresses += len(own)
            for address in own:
                self._begin(str(IPv4Address(address)), user, len(own))

    def _begin(self, address: str, user: bytes, shares: int) -> None:
        """The day of one client: those of a user with several addresses are on for a part of it each."""
        [hour] = self._random.choices(range(24), _BEGINS)
        begin = hour * 60 + self._random.randrange(60)
        interval = _choose(self._random, _INTERVALS)
        length = self._random.choice(_HOURS) * 60 // shares
        # Who is still on at midnight was on at the last one as well: the day begins in its own middle.
        parts = [(begin, min(begin + length, MINUTES)), (0, begin + length - MINUTES)]
        for start, end in parts:
            if start < end:
                self.due[start].append(Client(address, user, interval, end))

    def logins(self, minute: int) -> list[Client]:
        """Who logs in in this minute, each of whom has the next login planned. To be called once for each minute."""
        now = self.due[minute]
        self.due[minute] = []
        for client in now:
            later = minute + client.interval
            if later < min(client.last_minute, MINUTES):
                self.due[later].append(client)
            if self._random.random() < _SENDS:
                self.sending[minute + self._random.randrange(_SENT_WITHIN)].append(client.address)
        return now

    def attempts(self, minute: int) -> Iterator[str]:
        """The client addresses of this minute's relay attempts, users' and strangers'."""
        yield from self.sending[minute]
        even = self.users * LOGINS_A_USER * _SENDS * STRANGERS / (1 - STRANGERS) / MINUTES
        count = int(even) + (self._random.random() < even % 1)
        for _ in range(count):
            yield str(IPv4Address(int(IPv4Address("198.18.0.0")) + self._random.randrange(131_072)))


def _choose(chance: random.Random, shares: tuple[tuple[int, int], ...]) -> int:
    [chosen] = chance.choices([value for value, _ in shares], [share for _, share in shares])
    return chosen
