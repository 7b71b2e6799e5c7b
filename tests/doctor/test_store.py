"""Doctor's checks of Redis, on both worlds and on real servers that are configured wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.doctor import Doctor, store, store_keys
from pbs_policy.doctor.finding import Finding
from pbs_policy.doctor.store import StoreFacts, gather
from pbs_policy.settings import Settings, load
from pbs_policy.store.connect import RedisClient
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.login_table import LoginTable
from tests.stores import client_on, connect, table_on

OwnRedis = Callable[..., PrivateRedis]


def settings_of(**values: str) -> Settings:
    return load(Path("/dev/null"), overrides=[f"{name}={value}" for name, value in values.items()])[0]


SETTINGS = settings_of()
SOUND_INFO = {"redis_version": "7.0.15", "role": "master", "aof_enabled": "1", "rdb_last_bgsave_status": "ok"}
SOUND_CONFIG = {"maxmemory": "0", "maxmemory-policy": "noeviction", "bind": "127.0.0.1 -::1", "protected-mode": "yes",
                "port": "6379", "tls-port": "0", "requirepass": "", "save": "3600 1"}  # fmt: skip


def facts(info: dict[str, str] | None = None, config: dict[str, str] | None = None, **more: Any) -> StoreFacts:
    return StoreFacts(info=SOUND_INFO | (info or {}), config=SOUND_CONFIG | (config or {}), ahead=0.1, **more)


def faults(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {each.check: each for each in findings if each.level != "good"}


def client_of(server: PrivateRedis, user: str = "", password: str = "") -> Redis:
    return connect(RedisUrl.parse(server.url), user, password)


def asking(server: PrivateRedis, user: str = "", password: str = "") -> RedisClient:
    return client_on(client_of(server, user, password))


def test_a_sound_redis_has_no_fault() -> None:
    assert faults(store.check_store(facts(), SETTINGS, "")) == {}


@pytest.mark.parametrize(
    ("info", "config", "check", "level", "seen"),
    [
        ({"redis_version": "5.0.14"}, {}, "store.version", "wrong", "Redis 5.0.14 is too old"),
        ({"redis_version": "6.0.16"}, {}, "store.version", "wrong", "Redis 6.0.16 is too old"),
        ({}, {"maxmemory": "1000", "maxmemory-policy": "volatile-ttl"}, "store.eviction", "warning", "throws logins"),
        ({"rdb_last_bgsave_status": "err"}, {}, "store.persistence", "wrong", "refuses writes"),
        (
            {"role": "slave", "master_host": "192.0.2.9", "master_port": "6379"},
            {},
            "store.replica",
            "wrong",
            "192.0.2.9",
        ),
        ({}, {"bind": "*", "protected-mode": "no"}, "store.exposure", "wrong", "without a password"),
        ({}, {"bind": "", "protected-mode": "no"}, "store.exposure", "wrong", "at * without a password"),
        ({}, {"bind": "192.0.2.9"}, "store.exposure", "warning", "protected-mode alone"),
    ],
)
def test_each_fault_of_redis_is_named(
    info: dict[str, str], config: dict[str, str], check: str, level: str, seen: str
) -> None:
    found = faults(store.check_store(facts(info, config), SETTINGS, ""))
    assert list(found) == [check]
    assert found[check].level == level
    assert seen in found[check].seen
    assert found[check].mend


@pytest.mark.parametrize(
    ("info", "config"),
    [
        ({"valkey_version": "8.1.1", "redis_version": "7.2.4"}, {}),
        ({"redis_version": "6.2.0"}, {}),
        ({}, {"maxmemory": "1000"}),
        ({}, {"maxmemory-policy": "allkeys-lru"}),
        ({"rdb_last_bgsave_status": "err"}, {"stop-writes-on-bgsave-error": "no"}),
        ({}, {"bind": "*", "requirepass": "set"}),
        ({}, {"bind": "*", "protected-mode": "no", "port": "0"}),
    ],
)
def test_what_is_no_fault_of_redis_is_not_called_one(info: dict[str, str], config: dict[str, str]) -> None:
    assert faults(store.check_store(facts(info, config), SETTINGS, "")) == {}


def test_a_clock_that_is_wrong_is_a_warning() -> None:
    wrong = facts()
    wrong.ahead = -3600.0
    found = faults(store.check_store(wrong, SETTINGS, ""))
    assert "-3600 s off" in found["store.clock"].seen


def test_a_real_redis_is_looked_at_whole(own_redis: OwnRedis) -> None:
    gathered = gather(asking(own_redis()))
    assert gathered.refused == {}
    assert faults(store.check_store(gathered, SETTINGS, "")) == {}
    assert faults(store.check_service_rights(gathered, SETTINGS, "")) == {}
    assert gathered.ahead is not None
    assert abs(gathered.ahead) < 5


def test_a_real_redis_knows_whether_it_has_a_password(own_redis: OwnRedis) -> None:
    for arguments, password, without in (((), "", True), (("--requirepass", "x"), "x", False)):
        gathered = gather(asking(own_redis(*arguments), "", password))
        assert gathered.default_rights
        assert gathered.default_rights.without_password is without
        assert gathered.default_rights.all_commands


def test_a_real_redis_that_evicts_is_found(own_redis: OwnRedis) -> None:
    server = own_redis("--maxmemory", "50mb", "--maxmemory-policy", "volatile-lru")
    assert list(faults(store.check_store(gather(asking(server)), SETTINGS, ""))) == ["store.eviction"]


def test_a_real_replica_is_found_and_cannot_be_written_to(own_redis: OwnRedis) -> None:
    server = own_redis("--replicaof", "127.0.0.1", "1")
    redis = client_of(server)
    assert list(faults(store.check_store(gather(client_on(redis)), SETTINGS, ""))) == ["store.replica"]
    found = faults(store_keys.check_write(client_on(redis), SETTINGS, ""))
    assert "read only replica" in found["store.write"].seen


def test_an_evicting_redis_is_found_in_either_world_or_not_looked_at(redis: Redis) -> None:
    findings = list(store.check_store(gather(client_on(redis)), SETTINGS, ""))
    assert {each.check for each in findings} == {
        "store.version", "store.eviction", "store.persistence", "store.replica", "store.exposure", "store.clock",
        "store.replicas",
    }  # fmt: skip
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
    assert faults(store.check_script_rights(hook, settings, "")) == {}
    assert faults(store_keys.check_read(LoginTable(reader, "pbs:"), settings, "")) == {}
    levels = {each.check: each.level for each in store.check_store(gather(reader), SETTINGS, "")}
    assert levels == dict.fromkeys(levels, "not looked at")
    assert faults(store_keys.check_keys(reader, settings))["store.ends"].level == "not looked at"


@pytest.mark.parametrize(("user", "seen"), [("all", "may do everything"), ("wide", "write to every key")])
def test_a_user_who_may_do_too_much_is_a_warning(with_users: PrivateRedis, user: str, seen: str) -> None:
    found = faults(store.check_script_rights(asking(with_users, user, user), SETTINGS, "f:1"))
    assert found["store.rights"].level == "warning"
    assert seen in found["store.rights"].seen
    assert found["store.rights"].mend == f"redis-cli ACL SETUSER {user} resetkeys '~pbs:*' -@all +set"


def test_a_user_who_may_do_too_little_is_a_fault(with_users: PrivateRedis) -> None:
    settings = settings_of(redis_user="reader", redis_password_file="/password")
    found = faults(store_keys.check_write(asking(with_users, "reader", "reader"), settings, ""))
    assert "cannot record a login, it lacks +set: " in found["store.write"].seen
    found = faults(store_keys.check_read(LoginTable(asking(with_users, "blind", "blind"), "pbs:"), settings, ""))
    assert "cannot look logins up, it lacks ~pbs:*: " in found["store.read"].seen


def test_trying_to_write_leaves_nothing_that_permits(redis: Redis) -> None:
    assert faults(store_keys.check_write(client_on(redis), SETTINGS, "")) == {}
    keys = redis.keys("*")
    assert all(0 < redis.pttl(key) <= 1000 for key in keys)
    assert list(table_on(redis, "pbs:").entries()) == []


def test_keys_without_an_end_are_counted(redis: Redis) -> None:
    redis.set("pbs:login:192.0.2.7", "1795453232", ex=60)
    assert faults(store_keys.check_keys(client_on(redis), SETTINGS)) == {}
    redis.set("pbs:login:192.0.2.8", "1795453232")
    redis.set("other:login:192.0.2.9", "1795453232")
    found = faults(store_keys.check_keys(client_on(redis), SETTINGS))
    assert found["store.ends"].seen.startswith("1 of 2 keys have no end, pbs:login:192.0.2.8")
    assert found["store.ends"].mend.endswith("redis-cli DEL pbs:login:192.0.2.8")


def test_denies_without_an_end_are_honoured_and_no_fault(redis: Redis) -> None:
    for key in ("deny:192.0.2.7", "deny:all", "deny-user:alice@example.com", "auto-deny:192.0.2.7", "networks:deny"):
        redis.set(f"pbs:{key}", "by hand")
    ends = next(store_keys.check_keys(client_on(redis), SETTINGS))
    assert ends.level == "good"
    assert "5 of denies have none, pbs:" in ends.seen
    redis.set("pbs:permit:192.0.2.8", "{}")
    redis.set("pbs:use:20260101", "{}")
    found = faults(store_keys.check_keys(client_on(redis), SETTINGS))["store.ends"]
    assert found.seen.startswith("2 of 7 keys have no end, pbs:permit:192.0.2.8 is one: no such login or permit")
    assert found.mend.endswith("redis-cli DEL pbs:permit:192.0.2.8")


@pytest.mark.parametrize(
    "key", ["deny:192.0.2.7", "deny-user:alice", "auto-deny:192.0.2.7", "networks:deny", "users:deny"]
)
def test_a_key_of_a_deny_that_is_no_string_is_named(redis: Redis, key: str) -> None:
    redis.set("pbs:deny:192.0.2.8", "spam", ex=60)
    assert faults(store_keys.check_keys(client_on(redis), SETTINGS)) == {}
    redis.hset(f"pbs:{key}", "written", "by hand")
    redis.expire(f"pbs:{key}", 60)
    found = faults(store_keys.check_keys(client_on(redis), SETTINGS))["store.types"]
    assert (found.level, f"1 of 2 keys of denies are no string, pbs:{key} is one" in found.seen) == ("wrong", True)


def test_other_programs_keys_are_not_gone_through_to_the_end(own_redis: OwnRedis) -> None:
    redis = client_of(own_redis())
    pipeline = redis.pipeline()
    for number in range(30_000):
        pipeline.set(f"other:{number}", "1")
    pipeline.execute()
    steps = redis.info("commandstats").get("cmdstat_scan", {}).get("calls", 0)
    assert faults(store_keys.check_keys(client_on(redis), SETTINGS)) == {}
    assert redis.info("commandstats")["cmdstat_scan"]["calls"] - steps <= 20


def test_only_a_sample_of_a_large_table_is_looked_at(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_keys, "MOST_KEYS", 3)
    monkeypatch.setattr(store_keys, "_STEPS", 1)
    redis.mset({f"pbs:login:192.0.2.{host}": "1" for host in range(1, 9)})
    assert "3 of 3 keys" in faults(store_keys.check_keys(client_on(redis), SETTINGS))["store.ends"].seen


def test_a_redis_that_is_down_is_one_fault(own_redis: OwnRedis) -> None:
    server = own_redis()
    url = server.url
    server.stop()
    settings, values = load(Path("/dev/null"), overrides=[f"redis_url={url}"])
    found = faults(Doctor(settings, values).examine_store())
    assert list(found) == ["store.reachable"]
    assert found["store.reachable"].level == "wrong"


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
    found = faults(store_keys.check_write(asking(own_redis(*arguments)), SETTINGS, ""))["store.write"]
    assert mend in found.mend, found
    assert "SETUSER" not in found.mend


def test_no_password_is_in_what_was_gathered(own_redis: OwnRedis) -> None:
    gathered = gather(asking(own_redis("--requirepass", "hunter2"), "", "hunter2"))
    assert gathered.config is not None
    assert gathered.config["requirepass"] == "set"
    assert "hunter2" not in repr(gathered)


# --- what a crash forgets

CRASH = {"aof_enabled": "0", "rdb_last_save_time": "1000000000"}


@pytest.mark.parametrize("key", ["pbs:deny:192.0.2.7", "pbs:deny-user:alice", "pbs:permit:192.0.2.7"])
def test_a_deny_or_permit_that_a_crash_would_take_back_deserves_a_warning(redis: Redis, key: str) -> None:
    table = table_on(redis, "pbs:", now=lambda: 1_000_003_600.0)
    redis.set("pbs:login:192.0.2.7", "1763881234 imap alice", ex=60)
    redis.set("other:deny:192.0.2.7", "", ex=60)
    assert faults(store.check_durable(facts(CRASH), table)) == {}
    redis.set(key, "", ex=60)
    (found,) = store.check_durable(facts(CRASH), table)
    assert (found.check, found.level) == ("store.durable", "warning")
    assert "it forgets what is newer than its last save 1h ago" in found.seen
    assert "CONFIG SET appendonly yes" in found.mend
    assert faults(store.check_durable(facts(), table)) == {}


def test_who_may_not_scan_is_not_told_that_nothing_would_be_lost(own_redis: OwnRedis) -> None:
    server = own_redis()
    with client_of(server) as redis:
        redis.execute_command("ACL", "SETUSER", "default", "-scan")
        (found,) = store.check_durable(gather(client_on(redis)), table_on(redis, "pbs:"))
    assert (found.check, found.level) == ("store.durable", "not looked at")


def test_a_file_of_denies_with_a_fault_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "denies"
    file.write_text("192.0.2.7\nall\n")
    settings, values = load(Path("/dev/null"), overrides=[f"denies={file}"])
    first = next(Doctor(settings, values).examine())
    assert (first.check, first.level, first.place) == ("settings.files", "wrong", "--set")
    assert f"denies: {file}:2: 'all'" in first.seen
    file.write_text("192.0.2.7\n")
    assert next(Doctor(settings, values).examine()).level == "good"
