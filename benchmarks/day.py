"""A day of logins and relay attempts through the real table and the real service, all times shortened alike.

A minute of the day lasts `MINUTE` seconds here, and the ttl as many minutes as it would: Redis' own clock ends the
logins, with `PX` where the post-login script says `EX`, since the ttl is 2 s then. What does not shrink is Redis' own
upkeep: it has 900 times as many keys to expire in a second as on such a day, so its memory is not understated.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.bench import Bench, Service
from benchmarks.figures import Bar, Section, megabytes, table
from benchmarks.filling import login_keys
from benchmarks.policy_client import PolicyClient
from benchmarks.population import LOGINS_A_USER, MINUTES, TTL, Client, Population
from benchmarks.processes import PINNED, cpu_seconds, on_cores, place
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.store.connect import RedisClient, connect
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import Keys
from pbs_policy.table.records import Record, serialise_record

MINUTE = 1 / 15
"""Seconds: the day takes 96."""

USERS = 10_000
"""Of the run for RESULTS.md: a day of 10^6 logins. PBS_DAY_USERS says another number."""

_CONNECTIONS = 64  # smtpd processes that ask at the same time
_SLACK = 0.01  # seconds within which a login may be taken for live or for ended: sending and receiving take a while
_ALONE = 3_000  # logins, and checks, whose CPU is measured with nothing beside them


@dataclass
class Hour:
    """What was seen in one hour of the day; `live` to `memory` at its end."""

    logins: int = 0
    users_attempts: int = 0
    permitted: int = 0
    strangers: int = 0
    live: int = 0
    keys: int = 0
    memory: int = 0


@dataclass
class Day:
    """What the whole of it found."""

    hours: list[Hour] = field(default_factory=list)
    answers: int = 0
    wrong: int = 0
    deferred: int = 0
    latest: float = 0.0
    login_bytes: float = 0.0
    service_cpu: float = 0.0
    redis_cpu: float = 0.0


class Table:
    """The login table as it is written here, and what must stand in it at any moment."""

    def __init__(self, redis: PrivateRedis, ttl: float) -> None:
        self.ttl = ttl
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = str(redis.socket_path)
        self._socket.settimeout(30)
        self._socket.connect(self._path)
        self._keys = Keys("pbs:")
        self._ends: dict[str, tuple[float, float]] = {}

    def log_in(self, clients: Iterable[Client]) -> None:
        """Record a login of each, all on one connection."""
        commands = [self._commands(client) for client in clients]
        before = time.monotonic()
        self._say(self._socket, b"".join(commands), 2 * len(commands))
        after = time.monotonic()
        for client in clients:
            self._ends[client.address] = before + self.ttl, after + self.ttl

    def log_in_as_the_script_does(self, client: Client) -> None:
        """The same for one, on a connection of its own."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(30)
            connection.connect(self._path)
            self._say(connection, self._commands(client), 2)

    def is_wrong(self, address: str, action: str, asked: float, answered: float) -> bool:
        """Whether this answer cannot be: an OK although the login had ended, a DUNNO although it had not."""
        surely_until, perhaps_until = self._ends.get(address, (0.0, 0.0))
        if action == "OK":
            return asked > perhaps_until + _SLACK
        return action == "DUNNO" and answered < surely_until - _SLACK  # what is deferred claims nothing

    def live(self) -> int:
        """Addresses that are logged in now. Forgets those that are not."""
        now = time.monotonic()
        self._ends = {address: ends for address, ends in self._ends.items() if ends[1] > now}
        return len(self._ends)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _commands(self, client: Client) -> bytes:
        value = serialise_record(Record(int(time.time()), "pop3", client.user.decode()))
        end = b"$2\r\nPX\r\n$%d\r\n%d\r\n" % (len(str(round(self.ttl * 1000))), round(self.ttl * 1000))
        return b"".join(
            b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n%b" % (len(key), key, len(value), value, end)
            for key in login_keys(self._keys, client.address, client.user)[:2]
        )

    @staticmethod
    def _say(connection: socket.socket, commands: bytes, count: int) -> None:
        connection.sendall(commands)
        wanted, answer = b"+OK\r\n" * count, b""
        while len(answer) < len(wanted):
            piece = connection.recv(1 << 16)
            if not piece:
                raise ConnectionError("Redis closed the connection")
            answer += piece
        if answer != wanted:
            raise ConnectionError(f"Redis did not take every login: {answer[:200]!r}")


def run(bench: Bench) -> Section:
    """The cell."""
    users = bench.pick(int(os.environ.get("PBS_DAY_USERS", USERS)), 200)
    minute = bench.pick(MINUTE, MINUTE / 8)
    with on_cores(PINNED.others):
        redis = bench.redis("redis", "--maxclients", "20000")
    # The ttl of the settings is the script's; the service reads what Redis says.
    service = bench.service("service", redis.url)
    place(service.pid, PINNED.server)
    bench.say(f"day: {users:,} users")
    with on_cores(PINNED.others), connect(RedisUrl.parse(f"unix://{redis.socket_path}"), "", "") as client:
        day = _live_through(Population(users), minute, redis, service, client)
        costs = _measure_alone(bench, redis, service)
    return _section(day, users, minute, costs)


def _live_through(
    population: Population, minute: float, redis: PrivateRedis, service: Service, client: RedisClient
) -> Day:
    day, hour = Day(), Hour()
    logins = Table(redis, TTL * minute)
    connections = [PolicyClient(service.target) for _ in range(_CONNECTIONS)]
    empty, _ = _state(client)
    begun = time.monotonic()
    service_before, redis_before = cpu_seconds(service.pid), cpu_seconds(redis.pid)
    for now in range(MINUTES):
        due = begun + now * minute
        late = time.monotonic() - due
        day.latest = max(day.latest, late)
        if late < 0:
            time.sleep(-late)
        clients = population.logins(now)
        logins.log_in(clients)
        hour.logins += len(clients)
        _ask(list(population.attempts(now)), connections, logins, day, hour)
        if now % 60 == 59:
            hour.memory, hour.keys = _state(client)
            hour.live = logins.live()
            day.hours.append(hour)
            hour = Hour()
    day.service_cpu = cpu_seconds(service.pid) - service_before
    day.redis_cpu = cpu_seconds(redis.pid) - redis_before
    fullest = max(day.hours, key=lambda each: each.memory)
    day.login_bytes = (fullest.memory - empty) / max(fullest.live, 1)
    logins.close()
    for connection in connections:
        connection.close()
    return day


def _ask(addresses: Sequence[str], connections: Sequence[PolicyClient], logins: Table, day: Day, hour: Hour) -> None:
    """One request outstanding on each connection, as Postfix does it."""
    for begin in range(0, len(addresses), len(connections)):
        asked = time.monotonic()
        pairs = list(zip(addresses[begin : begin + len(connections)], connections, strict=False))
        for address, connection in pairs:
            connection.send(address)
        for address, connection in pairs:
            action = connection.receive()
            day.answers += 1
            day.deferred += action not in ("OK", "DUNNO")
            day.wrong += logins.is_wrong(address, action, asked, time.monotonic())
            if address.startswith("198."):
                hour.strangers += 1
            else:
                hour.users_attempts += 1
                hour.permitted += action == "OK"


def _state(client: RedisClient) -> tuple[int, int]:
    """Redis' used_memory and its number of keys."""
    memory, keys = client.ask([(b"INFO", b"memory"), (b"DBSIZE",)])
    return int(memory.partition(b"used_memory:")[2].split()[0]), int(keys)


def _measure_alone(bench: Bench, redis: PrivateRedis, service: Service) -> dict[str, float]:
    """CPU seconds of each part for one login, one refused and one permitted check, each with nothing beside it."""
    count = bench.pick(_ALONE, 300)
    logins = Table(redis, 3_600)
    users = [Client(f"10.64.{number // 250}.{number % 250}", b"user%d@example.com" % number, 5, 0)
             for number in range(count)]  # fmt: skip
    costs = {}
    before = cpu_seconds(redis.pid)
    for user in users:
        logins.log_in_as_the_script_does(user)
    costs["redis, a login"] = (cpu_seconds(redis.pid) - before) / count
    logins.log_in(users)
    connections = [PolicyClient(service.target) for _ in range(_CONNECTIONS)]
    for name, addresses in (
        ("a stranger", [f"198.19.{number // 250}.{number % 250}" for number in range(count)]),
        ("permitted", [user.address for user in users]),
    ):
        day, hour = Day(), Hour()
        start = cpu_seconds(service.pid), cpu_seconds(redis.pid)
        for _ in range(4):
            _ask(addresses, connections, logins, day, hour)
        costs[f"service, {name}"] = (cpu_seconds(service.pid) - start[0]) / day.answers
        costs[f"redis, {name}"] = (cpu_seconds(redis.pid) - start[1]) / day.answers
        if day.wrong or day.deferred:
            raise ValueError(f"{day.wrong} wrong and {day.deferred} deferred answers of {day.answers}: {name}")
    logins.close()
    for connection in connections:
        connection.close()
    return costs


def _section(day: Day, users: int, minute: float, costs: dict[str, float]) -> Section:
    logins = sum(hour.logins for hour in day.hours)
    attempts = sum(hour.users_attempts for hour in day.hours)
    permitted = sum(hour.permitted for hour in day.hours)
    strangers = sum(hour.strangers for hour in day.hours)
    most_live = max(hour.live for hour in day.hours)
    rows = [
        [
            f"{number:02}:00", f"{hour.logins / 3600:.1f}", f"{(hour.users_attempts + hour.strangers) / 3600:.1f}",
            f"{hour.permitted / max(hour.users_attempts, 1):.1%}", f"{hour.live:,}", f"{hour.keys:,}",
            megabytes(hour.memory),
        ]
        for number, hour in enumerate(day.hours)
    ]  # fmt: skip
    head = ["hour", "logins/s", "checks/s", "users' attempts permitted", "live addresses", "keys", "Redis, MB"]
    parts = [
        ["a login, as the script does it: a connection, two SET", f"{costs['redis, a login'] * 1e6:.0f}", ""],
        ["a stranger's relay attempt", *(f"{costs[f'{who}, a stranger'] * 1e6:.0f}" for who in ("redis", "service"))],
        ["one that is permitted", *(f"{costs[f'{who}, permitted'] * 1e6:.0f}" for who in ("redis", "service"))],
    ]
    return Section(
        "A day of logins",
        [
            f"{users:,} users, who log in {LOGINS_A_USER} times a day in the mean (every 5 to 60 minutes while they "
            "are on, from 1 to 6 addresses, a fifth of them behind an office's), and send after one login of 25; as "
            f"many relay attempts again are strangers'. The day takes {minute * MINUTES:.0f} s, the ttl of {TTL} "
            f"minutes {TTL * minute:.2f} s, by Redis' own clock. {logins:,} logins, {attempts + strangers:,} relay "
            "attempts. Rates are of the day's own seconds; live addresses, keys and memory are those at the end of "
            "the hour.",
            table(head, rows),
            f"A live address takes {day.login_bytes:.0f} bytes of `used_memory` in the fullest hour, with what Redis "
            "has not expired yet and its tables' spare room. "
            f"{permitted / max(attempts, 1):.1%} of the users' attempts were permitted (what a client sends long "
            "after a login, up to 45 minutes, comes too late unless it has logged in again), none of the strangers'. "
            f"In the whole day the service used {day.service_cpu:.1f} s of a core and Redis {day.redis_cpu:.1f} s; "
            f"{day.deferred:,} relay attempts were deferred, and the latest minute began "
            f"{max(day.latest, 0) * 1000:.0f} ms late (were that seconds, the machine was busy and the day another).",
            f"Microseconds of a core, each with nothing beside it, {_CONNECTIONS} requests at a time:",
            table(["", "Redis", "service"], parts),
        ],
        [
            Bar("answers that cannot be, of all", "none", f"{day.wrong:,} of {day.answers:,}", day.wrong == 0),
            Bar("most addresses live at once", "", f"{most_live:,}", None),
        ],
    )
