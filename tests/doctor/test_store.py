"""Doctor's checks of Redis, on both worlds and on real servers that are configured wrongly."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.doctor import Doctor, store, store_keys
from pbs_policy.doctor.finding import Finding
from pbs_policy.settings import Settings, load
from pbs_policy.store.connect import RedisClient
from pbs_policy.store.errors import StoreRefused
from pbs_policy.store.question import Command
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.login_table import LoginTable
from tests.commands import Pbs
from tests.stores import client_on, connect, table_on

OwnRedis = Callable[..., PrivateRedis]
Texts = dict[str, str]
DAY = 86_400


def settings_of(**values: str) -> Settings:
    return load(Path("/dev/null"), overrides=[f"{name}={value}" for name, value in values.items()])[0]


SETTINGS = settings_of()
SOUND_INFO = {"redis_version": "7.0.15", "role": "master", "aof_enabled": "1", "rdb_last_bgsave_status": "ok",
              "maxmemory": "0", "maxmemory_policy": "noeviction"}  # fmt: skip
SOUND_CONFIG = {"bind": "127.0.0.1 -::1", "protected-mode": "yes", "port": "6379", "tls-port": "0", "requirepass": "",
                "save": "3600 1"}  # fmt: skip


class Told(RedisClient):
    """A Redis of which this much is known, and which refuses to say more."""

    def __init__(self, info: Texts | None = None, config: Texts | None = None, ahead: float = 0.1) -> None:
        self.info, self.config, self.ahead = SOUND_INFO | (info or {}), SOUND_CONFIG | (config or {}), ahead

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        return [self._reply(*each) for each in commands]

    def _reply(self, word: bytes, *words: bytes) -> Any:
        if word == b"INFO":
            return "\r\n".join(f"{name}:{value}" for name, value in self.info.items()).encode()
        if word == b"TIME":
            return f"{time.time() + self.ahead:.6f}".encode().split(b".")
        name = words[-1].decode()
        if word == b"CONFIG":
            return [name.encode(), self.config[name].encode()] if name in self.config else []
        raise StoreRefused("NOPERM")


def faults(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {each.check: each for each in findings if each.level != "good"}


def faults_of(redis: RedisClient) -> dict[str, Finding]:
    return faults(store.check_store(redis, SETTINGS, "pbs-policy.conf:1"))


def faults_of_keys(redis: Redis) -> dict[str, Finding]:
    return faults(store_keys.check_keys(client_on(redis), SETTINGS))


def client_of(server: PrivateRedis, user: str = "", password: str = "") -> Redis:
    return connect(RedisUrl.parse(server.url), user, password)


def asking(server: PrivateRedis, user: str = "", password: str = "") -> RedisClient:
    return client_on(client_of(server, user, password))


@pytest.mark.parametrize(
    ("info", "config", "level", "check", "seen"),
    [
        ({"redis_version": "5.0.14"}, {}, "wrong", "store.version", "Redis 5.0.14 is too old"),
        ({"redis_version": "6.0.16"}, {}, "wrong", "store.version", "Redis 6.0.16 is too old"),
        ({"maxmemory": "1000", "maxmemory_policy": "volatile-ttl"}, {}, "warning", "store.eviction", "throws logins"),
        ({"rdb_last_bgsave_status": "err"}, {}, "wrong", "store.persistence", "refuses writes"),
        ({"role": "slave", "master_host": "192.0.2.9", "master_port": "1"}, {}, "wrong", "store.replica", "192."),
        ({}, {"bind": "*", "protected-mode": "no"}, "wrong", "store.exposure", "without a password"),
        ({}, {"bind": "", "protected-mode": "no"}, "wrong", "store.exposure", "at * without a password"),
        ({}, {"bind": "192.0.2.9"}, "warning", "store.exposure", "protected-mode alone"),
    ],
)
def test_each_fault_of_redis_is_named(info: Texts, config: Texts, level: str, check: str, seen: str) -> None:
    ((name, found),) = faults_of(Told(info, config)).items()
    assert (name, found.level, seen in found.seen, found.mend != "") == (check, level, True, True), found


@pytest.mark.parametrize(
    ("info", "config"),
    [
        ({}, {}),
        ({"valkey_version": "8.1.1", "redis_version": "7.2.4"}, {}),
        ({"redis_version": "6.2.0"}, {}),
        ({"maxmemory": "1000"}, {}),
        ({"maxmemory_policy": "allkeys-lru"}, {}),
        ({"rdb_last_bgsave_status": "err"}, {"stop-writes-on-bgsave-error": "no"}),
        ({}, {"bind": "*", "requirepass": "set"}),
        ({}, {"bind": "*", "protected-mode": "no", "port": "0"}),
    ],
)
def test_what_is_no_fault_of_redis_is_not_called_one(info: Texts, config: Texts) -> None:
    assert faults_of(Told(info, config)) == {}


def test_a_clock_that_is_wrong_is_a_warning() -> None:
    assert "-3600 s off" in faults_of(Told(ahead=-3600.0))["store.clock"].seen


@pytest.mark.parametrize(
    ("arguments", "password", "fault"),
    [
        ((), "", None),
        (("--requirepass", "hunter2"), "hunter2", None),
        (("--maxmemory", "50mb", "--maxmemory-policy", "volatile-lru"), "", "store.eviction"),
        (("--replicaof", "127.0.0.1", "1"), "", "store.replica"),
    ],
)
def test_a_real_redis_is_looked_at_whole(
    own_redis: OwnRedis, arguments: tuple[str, ...], password: str, fault: str | None
) -> None:
    redis = asking(own_redis(*arguments), "", password)
    findings = list(store.check_store(redis, SETTINGS, ""))
    assert [each.check for each in findings if each.level != "good"] == ([fault] if fault else [])
    assert faults(store.check_rights(redis, "script", SETTINGS, "")) == {}
    assert store._rights(redis, "default") == (True, True, not password)
    assert "hunter2" not in str(findings)


def test_a_redis_is_sound_in_either_world_or_not_looked_at(redis: Redis) -> None:
    findings = list(store.check_store(client_on(redis), SETTINGS, ""))
    names = ("version", "eviction", "persistence", "replica", "exposure", "clock", "replicas", "rights")
    assert [each.check for each in findings] == [f"store.{name}" for name in names]
    assert [each for each in findings if each.level in ("warning", "wrong")] == []


@pytest.fixture
def with_users(own_redis: OwnRedis) -> PrivateRedis:
    server = own_redis()
    execute: Any = client_of(server).execute_command  # without types in redis-py
    for user, rules in {
        "hook": "~pbs:* -@all +set",
        "reader": "%R~pbs:* -@all +get +mget +pttl",
        "all": "~* +@all",
        "wide": "~* -@all +set +acl",
        "blind": "~other:* -@all +get +mget",
    }.items():
        execute("ACL", "SETUSER", user, "on", f">{user}", *rules.split())
    return server


def test_the_least_rights_suffice_and_are_no_fault(with_users: PrivateRedis) -> None:
    hook, reader = asking(with_users, "hook", "hook"), asking(with_users, "reader", "reader")
    settings = settings_of(redis_user="hook", redis_password_file="/password")
    assert faults(store_keys.check_write(hook, settings, "")) == {}
    assert faults(store.check_rights(hook, "script", settings, "")) == {}
    assert faults(store_keys.check_read(LoginTable(reader, "pbs:"), settings, "")) == {}
    findings = [*store.check_store(reader, SETTINGS, ""), *store_keys.check_keys(reader, settings)]
    assert {each.level for each in findings if each.check != "store.rights"} == {"not looked at"}


@pytest.mark.parametrize(("user", "seen"), [("all", "may do everything"), ("wide", "write to every key")])
def test_a_user_who_may_do_too_much_is_a_warning(with_users: PrivateRedis, user: str, seen: str) -> None:
    (found,) = store.check_rights(asking(with_users, user, user), "script", SETTINGS, "f:1")
    assert (found.check, found.level, seen in found.seen) == ("store.rights", "warning", True)
    assert found.mend == f"redis-cli ACL SETUSER {user} resetkeys '~pbs:*' -@all +set"


def test_a_user_who_may_do_too_little_is_a_fault(with_users: PrivateRedis) -> None:
    settings = settings_of(redis_user="reader", redis_password_file="/password")
    (found,) = store_keys.check_write(asking(with_users, "reader", "reader"), settings, "")
    assert "cannot record a login, it lacks +set: " in found.seen
    (found,) = store_keys.check_read(LoginTable(asking(with_users, "blind", "blind"), "pbs:"), settings, "")
    assert "cannot look logins up, it lacks ~pbs:*: " in found.seen


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (("--maxmemory", "1"), "raise maxmemory"),
        (("--replicaof", "127.0.0.1", "1"), "redis_url has to name the master"),
        (("--min-replicas-to-write", "1"), "start the replicas"),
        (("--requirepass", "x"), "redis_password_file"),
    ],
)
def test_a_redis_that_takes_no_writes_is_not_told_to_grant_rights(
    own_redis: OwnRedis, arguments: tuple[str, ...], mend: str
) -> None:
    (found,) = store_keys.check_write(asking(own_redis(*arguments)), SETTINGS, "")
    assert (found.check, found.level, mend in found.mend) == ("store.write", "wrong", True), found


def test_trying_to_write_leaves_nothing_that_permits(redis: Redis) -> None:
    assert faults(store_keys.check_write(client_on(redis), SETTINGS, "")) == {}
    assert all(0 < redis.pttl(key) <= 1000 for key in redis.keys("*"))
    assert list(table_on(redis, "pbs:").entries()) == []


def test_a_redis_that_is_down_is_one_fault(own_redis: OwnRedis) -> None:
    server = own_redis()
    url = server.url
    server.stop()
    settings, values = load(Path("/dev/null"), overrides=[f"redis_url={url}"])
    found = faults(Doctor(settings, values).examine_store())
    assert {name: each.level for name, each in found.items()} == {"store.reachable": "wrong"}


# --- keys that somebody else wrote


def test_keys_without_an_end_are_counted_and_those_of_denies_are_no_fault(redis: Redis) -> None:
    redis.set("pbs:login:192.0.2.7", "1795453232", ex=60)
    for key in ("deny:192.0.2.7", "deny:all", "deny-user:alice@example.com", "auto-deny:192.0.2.7", "networks:deny"):
        redis.set(f"pbs:{key}", "by hand")
    ends = next(store_keys.check_keys(client_on(redis), SETTINGS))
    assert (ends.level, "5 of denies have none, pbs:" in ends.seen) == ("good", True)
    redis.set("pbs:use:20260101", "{}")
    redis.set("pbs:permit:192.0.2.8", "{}")
    redis.set("other:login:192.0.2.9", "1795453232")
    found = faults_of_keys(redis)["store.ends"]
    assert found.seen.startswith("2 of 8 keys have no end, pbs:permit:192.0.2.8 is one: no such login or permit")
    assert found.mend.endswith("redis-cli DEL pbs:permit:192.0.2.8")


@pytest.mark.parametrize(
    "key", ["deny:192.0.2.7", "deny-user:alice", "auto-deny:192.0.2.7", "networks:deny", "users:deny"]
)
def test_a_key_of_a_deny_that_is_no_string_is_named(redis: Redis, key: str) -> None:
    redis.set("pbs:deny:192.0.2.8", "spam", ex=60)
    assert faults_of_keys(redis) == {}
    redis.hset(f"pbs:{key}", "written", "by hand")
    redis.expire(f"pbs:{key}", 60)
    found = faults_of_keys(redis)["store.types"]
    assert (found.level, f"1 of 2 keys of denies are no string, pbs:{key} is one" in found.seen) == ("wrong", True)


def test_other_programs_keys_are_not_gone_through_to_the_end(own_redis: OwnRedis) -> None:
    redis = client_of(own_redis())
    redis.mset({f"other:{number}": "1" for number in range(30_000)})
    assert faults_of_keys(redis) == {}
    assert redis.info("commandstats")["cmdstat_scan"]["calls"] <= 20


def test_only_a_sample_of_a_large_table_is_looked_at(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_keys, "MOST_KEYS", 3)
    monkeypatch.setattr(store_keys, "_STEPS", 1)
    redis.mset({f"pbs:login:192.0.2.{host}": "1" for host in range(1, 9)})
    assert "3 of 3 keys" in faults_of_keys(redis)["store.ends"].seen


# --- denies that an earlier version wrote without registering them


def of_denies(redis: Redis) -> Finding:
    (found,) = store_keys.check_denies(table_on(redis, "pbs:"))
    return found


@pytest.mark.parametrize("denied", ["deny-user:alice@example.com", "deny:2001:db8::7", "deny:2001:db8:1:2::/64"])
def test_an_unregistered_deny_is_named_until_it_is_written_again(
    denied: str, redis: Redis, pbs: Pbs, tmp_path: Path
) -> None:
    redis.set(f"pbs:{denied}", "spam", ex=DAY)
    redis.set("pbs:deny:192.0.2.7", "spam", ex=DAY)
    found = of_denies(redis)
    assert found.level == "warning"
    assert found.seen.startswith(f"1 of 2 denies in Redis, {denied.partition(':')[2]} is one, ")
    for command in found.mend.replace("FILE", str(tmp_path / "denies.jsonl")).split(" && "):
        program, *arguments = command.split()
        assert (program, pbs(*arguments).status) == ("pbs-policy", 0)
    assert of_denies(redis).level == "good"


def test_a_deny_that_outlasts_its_registration_is_named(redis: Redis, pbs: Pbs) -> None:
    """A later, shorter deny has registered itself alone."""
    redis.set("pbs:deny-user:alice@example.com", "spam", ex=30 * DAY)
    assert pbs("deny", "bob@example.com", "--for", "1d").status == 0
    assert "1 of 2 denies in Redis, alice@example.com is one, " in of_denies(redis).seen


@pytest.mark.parametrize("who", ["alice@example.com", "192.0.2.7", "192.0.2.0/24", "2001:db8::7", "2001:db8::/48"])
def test_a_deny_of_this_version_is_registered_and_one_that_cannot_be_exported_is_not_named(
    who: str, redis: Redis, pbs: Pbs
) -> None:
    redis.set("pbs:deny-user:carol@example.com", "spam")  # without an expiry: store.ends names it
    redis.set("pbs:deny:nonsense", "spam", ex=DAY)  # nobody asks for it
    assert pbs("deny", who, "--for", "1d").status == 0
    assert of_denies(redis).level == "good"


# --- what a crash forgets

CRASH = {"aof_enabled": "0", "rdb_last_save_time": "1000000000"}


@pytest.mark.parametrize("key", ["pbs:deny:192.0.2.7", "pbs:deny-user:alice", "pbs:permit:192.0.2.7"])
def test_a_deny_or_permit_that_a_crash_would_take_back_deserves_a_warning(
    redis: Redis, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_on(redis, "pbs:", now=lambda: 1_000_003_600.0)
    sound = table_on(redis, "pbs:", now=table.now)
    monkeypatch.setattr(store, "read_info", lambda asked, _: CRASH if asked is table.redis else SOUND_INFO)
    redis.set("pbs:login:192.0.2.7", "1763881234 imap alice", ex=60)
    redis.set("other:deny:192.0.2.7", "", ex=60)
    assert faults(store.check_durable(table)) == {}
    redis.set(key, "", ex=60)
    (found,) = store.check_durable(table)
    assert (found.check, found.level) == ("store.durable", "warning")
    assert "it forgets what is newer than its last save 1h ago" in found.seen
    assert "CONFIG SET appendonly yes" in found.mend
    assert faults(store.check_durable(sound)) == {}


def test_who_may_not_scan_is_not_told_that_nothing_would_be_lost(own_redis: OwnRedis) -> None:
    with client_of(own_redis()) as redis:
        redis.execute_command("ACL", "SETUSER", "default", "-scan")
        (found,) = store.check_durable(table_on(redis, "pbs:"))
    assert (found.check, found.level) == ("store.durable", "not looked at")


# --- replicas

ONLINE = "ip=192.0.2.2,port=6379,state=online,offset=14,lag=1"
LATE = "ip=192.0.2.3,port=6380,state=online,offset=14,lag=6"
SENTINELS, CLUSTER = "redis+sentinel://192.0.2.1/mail", "redis+cluster://192.0.2.1"


def of_replicas(redis: RedisClient, url: str = "redis://192.0.2.1") -> Finding:
    settings = settings_of(redis_url=url, key_prefix="{pbs}:")  # a Cluster asks for the braces
    (found,) = [each for each in store.check_store(redis, settings, "f:1") if each.check == "store.replicas"]
    return found


@pytest.mark.parametrize(
    ("replicas", "url", "level", "seen"),
    [
        ([ONLINE, ONLINE.replace("lag=1", "lag=5")], SENTINELS, "good", "each of 2 replicas is online, the longest"),
        ([ONLINE, LATE], CLUSTER, "warning", "the replica 192.0.2.3:6380 was last heard from 6 s ago: after"),
        ([LATE.replace("online", "send_bulk"), ONLINE], "unix:///run/redis.sock", "warning",
         "the replica 192.0.2.3:6380 is not online (state send_bulk): after a failover to it the logins of that"),
        ([ONLINE, "ip=2001:db8::3,port=1,state=online,offset=1,lag=60,type=replica"], SENTINELS, "warning",
         "the replica 2001:db8::3:1 was last heard from 60 s"),
        ([], "redis://192.0.2.1", "good", "there is none: a single Redis"),
        ([], "unix:///run/redis/redis.sock", "good", "there is none: a single Redis"),
        ([], SENTINELS.replace("/mail", ",192.0.2.2/mail"), "warning", "redis_url names Sentinels, and the master"),
        ([], SENTINELS, "warning", "redis_url names Sentinels, and the master has no replica"),
        ([], CLUSTER, "warning", "redis_url names a Cluster, and the master has no replica: there is nothing to"),
    ],
)  # fmt: skip
def test_a_master_needs_replicas_that_keep_up_where_a_failover_is_meant(
    replicas: list[str], url: str, level: str, seen: str
) -> None:
    info = {"connected_slaves": str(len(replicas)), "slave_expires_tracked_keys": "0"}
    found = of_replicas(Told(info | {f"slave{number}": each for number, each in enumerate(replicas)}), url)
    assert (found.level, found.place, found.seen[: len(seen)]) == (level, "f:1", seen)
    assert bool(found.mend) is (level == "warning")


def test_a_replica_is_not_asked_for_its_replicas() -> None:
    told = Told({"role": "slave", "slave0": LATE})
    assert "store.replicas" not in [each.check for each in store.check_store(told, SETTINGS, "")]


def test_a_real_replica_is_good_until_it_falls_silent(own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    master = own_redis("--repl-diskless-sync-delay", "0")
    assert "a single Redis" in of_replicas(asking(master)).seen
    replica = own_redis("--replicaof", "127.0.0.1", str(master.port))
    assert wait_until(lambda: "each of 1 replicas is online" in of_replicas(asking(master)).seen)
    monkeypatch.setattr(store, "LONGEST_LAG", 1)  # the real one would keep this test waiting
    os.kill(replica.pid, signal.SIGSTOP)
    try:
        seen = f"the replica 127.0.0.1:{replica.port} was last heard from"
        assert wait_until(lambda: seen in of_replicas(asking(master)).seen)
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    assert wait_until(lambda: of_replicas(asking(master)).level == "good")


def test_a_real_replica_that_waits_for_its_first_copy_is_not_online(own_redis: OwnRedis) -> None:
    master = own_redis("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "60")
    replica = own_redis("--replicaof", "127.0.0.1", str(master.port))
    seen = f"the replica 127.0.0.1:{replica.port} is not online (state wait"
    assert wait_until(lambda: seen in of_replicas(asking(master)).seen)
