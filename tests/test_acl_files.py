"""The ACL users in redis-examples, on real servers: each role does its work, and nothing else. On the Redis that is
installed, and on those of the tree that PBS_TREE names.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis, RedisError
from redis.exceptions import NoPermissionError

from pbs_policy.cli import run
from pbs_policy.decision.rules import DUNNO, OK
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.shipped import shipped
from pbs_policy.store.connect import connect
from pbs_policy.store.errors import StoreRefused
from pbs_policy.store.redis_url import RedisUrl
from tests.recorder.report import post, report
from tests.redis_clients import ALICE, BOB, Clients
from tests.service import Recorder
from tests.topology.servers import Sentinel, Watched

NEEDED = {
    "script": {"set"},
    "recorder": {"set", "mget"},
    "service": {
        *("get", "mget", "pttl", "publish", "hset", "hincrby", "hlen", "expire"),
        *("sadd", "srem", "scard", "pexpire", "set"),
    },
    "administrator": {
        *("get", "mget", "pttl", "ttl", "scan", "set", "del", "watch", "multi", "exec", "hgetall", "scard"),
        *("sismember", "subscribe", "info", "time", "acl|whoami"),
    },
    "sentinel": {"sentinel|get-master-addr-by-name"},
}
"""What each role says to Redis, the last one to a Sentinel; besides, what everybody may say."""

ROLES = ["script", "recorder", "service", "administrator"]
"""Of Redis."""

OPEN_TO_EVERYBODY = {"auth", "hello", "quit", "reset"}
"""What may be said before a login is not asked for in the rights of a user."""


def line_of(role: str) -> str:
    return shipped(f"redis-examples/{role}.acl").read_text().strip()


@pytest.fixture
def server(own_redis: Callable[..., PrivateRedis], each_redis: list[str], tmp_path: Path) -> PrivateRedis:
    """A Redis with the users as they are shipped, each with its role as password."""
    users = tmp_path / "users.acl"
    users.write_text("".join(f"{line_of(role)} >{role}\n" for role in ROLES))
    # What is switched off is refused whatever the rights, and would prove nothing.
    switched_on = ("--enable-debug-command", "yes", "--enable-module-command", "yes")
    return own_redis("--aclfile", str(users), *switched_on, program=each_redis)


@pytest.fixture
def sentinel(server: PrivateRedis, each_redis: list[str]) -> Iterator[Sentinel]:
    """A Sentinel of the server, with its user."""
    with (
        tempfile.TemporaryDirectory(prefix="pbs-") as directory,
        Sentinel(Path(directory), server.port, f"{line_of('sentinel')} >sentinel", program=each_redis) as running,
    ):
        yield running


def client(server: PrivateRedis | Sentinel, role: str) -> Redis:
    """As this role; as the default user where it is empty."""
    user = f"pbs-{role}" if role else None
    client = Redis(host="127.0.0.1", port=server.port, username=user, password=role or None, protocol=2)
    client.response_callbacks.clear()  # replies as they are on the wire
    return client


@pytest.fixture
def act_as(
    clients: Clients, server: PrivateRedis, password_file: Callable[[str], str]
) -> Callable[..., dict[str, str]]:
    """Point the clients at the server as this role, with further settings."""

    def act(role: str, **settings: str) -> dict[str, str]:
        login = {"redis_user": f"pbs-{role}", "redis_password_file": password_file(role)}
        clients.point_at(server.url, **login, **settings)
        return {"redis_url": server.url, **login, **settings}

    return act


def test_without_a_password_nobody_is_one_of_these_users(
    own_redis: Callable[..., PrivateRedis], each_redis: list[str], tmp_path: Path
) -> None:
    users = tmp_path / "users.acl"
    users.write_text("".join(line_of(role) + "\n" for role in ROLES))
    server = own_redis("--aclfile", str(users), program=each_redis)
    for role in ROLES:
        for password in ("", "x", role):
            with connect(RedisUrl.parse(server.url), "", "") as redis, pytest.raises(StoreRefused, match="WRONGPASS"):
                redis.ask([(b"AUTH", f"pbs-{role}".encode(), password.encode())])


def test_each_role_can_do_its_work(
    clients: Clients, server: PrivateRedis, act_as: Callable[..., dict[str, str]], capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    rules = {"sender_match": "domain", "max_recipients_per_address": "2/1h", "auto_deny": "1h"}
    act_as("service", **rules)
    service = clients.start()
    assert service.ask(ALICE) == DUNNO
    act_as("script", **rules)
    clients.assert_recorded()
    with Redis(port=server.port) as redis:
        redis.set("pbs:watching", "1", ex=60)
    answers = [service.ask(ALICE, recipient=f"{number}@example.net", instance=str(number)) for number in range(8)]
    assert answers[:2] == [OK, OK]
    assert set(answers[2:]) == {DUNNO}
    service.stop()  # what is not yet written is written at the end
    assert "NOPERM" not in service.log()
    with Redis(port=server.port) as redis:
        kinds = {key.split(b":")[1] for key in redis.keys("pbs:*")}
        assert kinds >= {b"login", b"cap", b"over", b"auto-deny", b"use", b"stats"}
    settings = act_as("administrator", **rules)
    file = tmp_path / "administrator.conf"
    file.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    dump = tmp_path / "dump"
    for command in [
        *(["list"], ["check", ALICE], ["show", ALICE], ["permit", BOB, "--user", "bob@example.com"]),
        *(["permit", "198.51.100.0/24", "--user", "bob@example.com", "--cap", "9/1h"],),
        *(["denied"], ["undeny", ALICE], ["deny", BOB, "--for", "1h"], ["undeny", BOB], ["export", str(dump)]),
        *(["revoke", "alice@example.com"], ["revoke", "--all"], ["import", str(dump)], ["report"], ["stats"]),
    ]:  # fmt: skip
        assert run(["-c", str(file), *command]) in (0, 1), command
        assert "permission" not in "".join(capsys.readouterr()), command
    with client(server, "administrator") as redis:
        redis.execute_command("SUBSCRIBE", "pbs:events")


def test_the_recorder_can_do_its_work(
    start_recorder: Callable[..., Recorder], server: PrivateRedis, act_as: Callable[..., dict[str, str]]
) -> None:
    recorder = start_recorder(**act_as("recorder", sender_match="domain"))
    assert post(recorder.url, report())[0] == 200
    with Redis(port=server.port) as redis:
        assert wait_until(lambda: len(redis.keys("pbs:login:192.0.2.7*")) == 3)
    recorder.stop()
    assert "NOPERM" not in recorder.log()


def test_the_sentinels_user_finds_the_master(
    clients: Clients, server: PrivateRedis, sentinel: Sentinel, password_file: Callable[[str], str]
) -> None:
    login = {"sentinel_user": "pbs-sentinel", "sentinel_password_file": password_file("sentinel")}
    clients.point_at(Watched(server, [sentinel]).url, **login)
    clients.assert_all_are_served()


@pytest.mark.parametrize("role", ROLES)
def test_every_other_command_of_every_category_is_refused(role: str, server: PrivateRedis) -> None:
    tried = _try_every_other_command(server, role)
    assert len(tried) > 20
    assert all(tried.values()), tried


def test_every_other_command_of_every_category_is_refused_to_the_sentinels_user(sentinel: Sentinel) -> None:
    """A Sentinel has the same categories, many of them empty."""
    tried = _try_every_other_command(sentinel, "sentinel")
    assert tried.keys() >= {"admin", "connection", "dangerous", "fast", "pubsub", "slow"}
    assert all(tried.values()), tried


def _try_every_other_command(server: PrivateRedis | Sentinel, role: str) -> dict[str, int]:
    """Say each command that the role does not need, as that role. How many there were in each category."""
    allowed = NEEDED[role] | OPEN_TO_EVERYBODY
    tried: dict[str, int] = {}
    passed = []
    with client(server, "") as default, client(server, role) as redis:
        arities = _arities(default.execute_command("COMMAND"))
        groups = {}
        for category in default.execute_command("ACL", "CAT"):
            named = default.execute_command("ACL", "CAT", category)
            groups[category.decode()] = {each.decode() for each in named} & set(arities)
        # Commands of no category: those of modules that know none, such as the vector sets that Redis 8 brings.
        groups["none"] = set(arities) - set().union(*groups.values())
        for group, names in groups.items():
            if names:
                tried[group] = len(names - allowed)
            for name in sorted(names - allowed):
                words = name.split("|")
                try:
                    redis.execute_command(*words, *["x"] * (arities[name] - len(words)))
                except NoPermissionError:
                    continue
                except RedisError as error:
                    if "NOPERM" not in str(error):  # as EXEC says it
                        passed.append(f"{name}: {error}")
                else:
                    passed.append(name)
    assert passed == [], passed
    return tried


def _arities(commands: list[Any]) -> dict[str, int]:
    """How many words each command has at least; of one with subcommands each of those."""
    arities: dict[str, int] = {}
    for name, arity, *_, subcommands in commands:
        arities |= _arities(subcommands) if subcommands else {name.decode(): abs(arity)}
    return arities


_BUT_LOGINS = [
    "SET pbs:login:192.0.2.7 x EX 9 GET",  # it would read
    "SET pbs:permit:192.0.2.7 x EX 9",
    "SET pbs:deny:all x EX 9",
    "SET pbs:networks:permit x EX 9",
    "SET other x EX 9",
    "GET pbs:login:192.0.2.7",
]
REFUSED = {
    "script": _BUT_LOGINS,
    "recorder": [
        *_BUT_LOGINS,
        "SET pbs:deny-user:alice@example.com x EX 9",
        "SET pbs:users:deny x EX 9",
        "MGET pbs:permit:192.0.2.7",
        "MGET pbs:login:192.0.2.7 pbs:use:20260101",
        "MGET pbs:login:192.0.2.7 other",
    ],
    "service": [
        "SET pbs:login:192.0.2.7 x EX 9",
        "SET pbs:permit:192.0.2.7 x EX 9",
        "HSET pbs:login:192.0.2.7 a b",
        "EXPIRE pbs:login:192.0.2.7 99999",
        "SET pbs:deny:192.0.2.7 x EX 9",
        "SET pbs:deny:all x EX 9",
        "SET pbs:deny-user:alice@example.com x EX 9",
        "SET pbs:networks:deny x EX 9",
        "PEXPIRE pbs:deny:192.0.2.7 1",
        "PEXPIRE pbs:auto-deny:192.0.2.7 1",
        "DEL pbs:deny:192.0.2.7",
        "GET other",
        "MGET pbs:login:192.0.2.7 other",
        "PUBLISH other x",
    ],
    "administrator": ["GET other", "SET other x", "DEL other", "SUBSCRIBE other", "MGET pbs:login:192.0.2.7 other"],
}


@pytest.mark.parametrize(("role", "command"), [(role, each) for role, every in REFUSED.items() for each in every])
def test_what_a_role_may_say_it_may_not_say_of_everything(role: str, command: str, server: PrivateRedis) -> None:
    with client(server, role) as redis, pytest.raises(NoPermissionError):
        redis.execute_command(*command.split())


def test_the_readme_speaks_of_each_file() -> None:
    readme = shipped("redis-examples/README.md").read_text()
    for file in shipped("redis-examples").glob("*.acl"):
        (user,) = re.findall(r"^user (\S+) ", file.read_text(), re.MULTILINE)
        assert f"| `{file.name}` | `{user}` |" in readme


def test_the_script_that_writes_as_this_user_reads_nothing_of_what_it_wrote(server: PrivateRedis) -> None:
    with client(server, "script") as redis:
        assert redis.set(f"pbs:login:{ALICE}", "1763881234 imap", ex=60)
        for command in ("GET", "PTTL", "EXISTS", "DEL", "DUMP", "STRLEN"):
            with pytest.raises(NoPermissionError):
                redis.execute_command(command, f"pbs:login:{ALICE}")
    with Redis(port=server.port) as default:
        assert wait_until(lambda: default.ttl(f"pbs:login:{ALICE}") > 0)
