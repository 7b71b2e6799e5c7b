"""Checks of what Redis or Valkey says of itself: recent, neither too open nor too closed, keeping what is written,
with a replica to fail over to. What an ACL user of few rights may not ask is not looked at.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from pbs_policy.command_line import command_line
from pbs_policy.doctor.finding import Finding, check, good, not_looked_at, warning, wrong
from pbs_policy.log import printable
from pbs_policy.settings import Settings
from pbs_policy.store.errors import StoreRefused
from pbs_policy.store.persistence import APPEND, read_info, what_a_crash_forgets
from pbs_policy.table.login_table import LoginTable

if TYPE_CHECKING:
    from pbs_policy.store.connect import RedisClient

OLDEST = (6, 2)
LONGEST_LAG = 5
"""Seconds. A replica reports to its master once a second, and whole seconds are counted: 0 or 1 is usual, 2 may be a
busy moment. At more than five several reports in a row are missing, which is no chance."""

_CLOCK_SECONDS = 60  # `pbs-policy list` shows minutes
_CONF = "redis.conf"  # doctor does not know where it is: CONFIG GET gives no lines
def check_store(redis: RedisClient, settings: Settings, place: str) -> Iterator[Finding]:
    """Every check of Redis itself. `place` is where redis_url is set."""
    yield from _check_version(redis, place)
    yield from _check_memory(redis)
    yield from _check_persistence(redis)
    yield from _check_replica(redis, place)
    yield from _check_exposure(redis)
    yield from _check_clock(redis)
    yield from _check_replicas(redis, settings, place)
    yield from check_rights(redis, "service", settings, place)


@check("store.version")
def _check_version(redis: RedisClient, place: str) -> Finding:
    info = read_info(redis, "server")
    valkey = info.get("valkey_version", "")
    version = valkey or info.get("redis_version", "0")
    name = f"{'Valkey' if valkey else 'Redis'} {version}"
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
        return wrong(f"{name} is too old", place, "Redis 6.2 or newer, or Valkey")
    return good(name, place)


@check("store.eviction")
def _check_memory(redis: RedisClient) -> Finding:
    """Every key of ours has an end, so volatile-* policies find nothing but logins to throw away."""
    info = read_info(redis, "memory")
    policy, limit = info.get("maxmemory_policy", ""), int(info.get("maxmemory", 0))
    if not policy:
        return not_looked_at("maxmemory-policy: Redis does not say")
    if limit and policy != "noeviction":
        seen = f"maxmemory-policy = {policy}: at {limit} bytes Redis throws logins away before their time"
        return warning(seen, _CONF, "maxmemory-policy noeviction, or a Redis of its own")
    return good(f"maxmemory = {limit or 'no limit'}, maxmemory-policy = {policy}")


@check("store.persistence")
def _check_persistence(redis: RedisClient) -> Finding:
    info = read_info(redis, "persistence")
    try:
        config = _config(redis, "stop-writes-on-bgsave-error", "save")
    except StoreRefused:
        config = {}
    stops = config.get("stop-writes-on-bgsave-error", "yes") == "yes"
    if info.get("rdb_last_bgsave_status", "ok") != "ok" and stops:
        seen = "the last save failed: Redis refuses writes, and no login is recorded"
        return wrong(seen, _CONF, "see Redis' log (disk full, no permission on dir)")
    kept = "kept in an append-only file" if info.get("aof_enabled") == "1" else "not written at once (no AOF)"
    saved = "" if config.get("save", "x") else ", and snapshots are off: a restart forgets them"
    return good(f"logins are {kept}{saved}")


@check("store.durable", "no deny or permit that a crash of Redis would take back")
def check_durable(table: LoginTable) -> Iterator[Finding]:
    """Whether denies and permits outlive a crash of Redis, while there are any."""
    forgets = what_a_crash_forgets(read_info(table.redis, "persistence"), table.now())
    if forgets and table.has_denies_or_permits():
        mend = f"{APPEND}; denies = FILE for what must hold, and a scheduled pbs-policy export"
        yield warning(f"there are denies or permits, and {forgets}", _CONF, mend)


@check("store.replica")
def _check_replica(redis: RedisClient, place: str) -> Finding:
    info = read_info(redis, "replication")
    if info.get("role", "master") == "master":
        return good("this is a master", place)
    master = printable(f"{info.get('master_host')}:{info.get('master_port')}")
    link, quiet = info.get("master_link_status", "unknown"), info.get("master_last_io_seconds_ago", "?")
    seen = f"this is a replica of {master} (link {link}, last heard of {quiet} s ago): writes are refused"
    return wrong(seen, place, f"redis_url = redis://{master}/0")


@check("store.replicas")
def _check_replicas(redis: RedisClient, settings: Settings, place: str) -> Iterator[Finding]:
    """Each replica that the master has heard of: what it lacks is lost to a failover. A replica has none to be looked
    at: `store.replica`."""
    info, url = read_info(redis, "replication"), settings.redis_url
    if info.get("role", "master") != "master":
        return
    # `ip=192.0.2.2,port=6379,state=online,offset=14,lag=1`, as INFO says of each.
    said = [value for name, value in info.items() if re.fullmatch(r"slave\d+", name)]
    replicas = [dict(part.split("=", 1) for part in each.split(",") if "=" in part) for each in said]
    late = [(each, trouble) for each in replicas if (trouble := _trouble(each))]
    for each, trouble in late:
        name = printable(f"{each.get('ip', '?')}:{each.get('port', '?')}")
        seen = f"the replica {name} {trouble}: after a failover to it the logins of that time are missing"
        yield warning(seen, place, f"the network to {name}, its log and its load; INFO replication at both")
    if not replicas and url.names_master:
        what = "Sentinels" if url.master else "a Cluster"
        seen = f"redis_url names {what}, and the master has no replica: there is nothing to fail over to"
        yield warning(seen, place, "replicaof HOST PORT, the master's, at a second Redis")
    elif not replicas:
        yield good("there is none: a single Redis, without which nobody may relay", place)
    elif not late:
        worst = max(map(_lag, replicas))
        yield good(f"each of {len(replicas)} replicas is online, the longest silence is {worst} s", place)


def _lag(replica: dict[str, str]) -> int:
    lag = replica.get("lag", "")
    return int(lag) if lag.isdecimal() else 0


def _trouble(replica: dict[str, str]) -> str:
    state = replica.get("state", "unknown")
    if state != "online":
        return f"is not online (state {printable(state)})"
    return f"was last heard from {_lag(replica)} s ago" if _lag(replica) > LONGEST_LAG else ""


@check("store.exposure")
def _check_exposure(redis: RedisClient) -> Finding:
    """Whoever can write to Redis can permit relaying."""
    config = _config(redis, "bind", "protected-mode", "requirepass", "port", "tls-port")
    try:
        open_door = _rights(redis, "default").without_password
    except StoreRefused:
        open_door = not config.get("requirepass")
    bound = [item.lstrip("-") for item in config.get("bind", "").split()]
    public = " ".join(item for item in bound or ["*"] if not _is_loopback(item))
    mend = "bind 127.0.0.1 -::1, or requirepass and redis_password_file"
    if config.get("port", "6379") == "0" and config.get("tls-port", "0") == "0":
        return good("Redis listens at a unix socket alone")
    if public and open_door and config.get("protected-mode", "yes") != "yes":
        seen = f"Redis listens at {public} without a password: whoever reaches it can permit relaying"
        return wrong(seen, _CONF, mend)
    if public and open_door:
        seen = f"Redis listens at {public} without a password; protected-mode alone keeps strangers out"
        return warning(seen, _CONF, mend)
    return good(f"Redis listens {f'at {public}, with a password' if public else 'at loopback addresses alone'}")


def _is_loopback(text: str) -> bool:
    try:
        return ip_address(text).is_loopback
    except ValueError:
        return text == "localhost"


@check("store.clock")
def _check_clock(redis: RedisClient) -> Finding:
    asked = time.time()
    ((seconds, microseconds),) = redis.ask([(b"TIME",)])
    ahead = int(seconds) + int(microseconds) / 1e6 - (asked + time.time()) / 2
    if abs(ahead) > _CLOCK_SECONDS:
        seen = f"Redis' clock is {ahead:+.0f} s off ours: permissions end in time, listings show wrong ages"
        return warning(seen, "", "systemctl status systemd-timesyncd (or chrony, ntpd) on both hosts")
    return good(f"the clocks differ by {abs(ahead):.1f} s; ends are by Redis' clock alone")


@check("store.rights")
def check_rights(redis: RedisClient, who: str, settings: Settings, place: str) -> Finding:
    """Whether the ACL user of `who` (the script, the service) may do more than that needs."""
    try:
        user = _text(redis.ask([(b"ACL", b"WHOAMI")])[0])
        rights = _rights(redis, user)
    except StoreRefused as error:
        # It may not ask what it may do: that is what a user of few rights should be.
        return good(f"the {who}'s user may not look at rights: {printable(str(error), 100)}", place)
    if user == "default":
        return good(f"the {who} is Redis' default user: an ACL user of its own would be less", place)
    if rights.all_commands or rights.all_keys:
        what = "do everything" if rights.all_commands else "write to every key"
        least = ("-@all", "+set") if who == "script" else ("-@all", "+get", "+mget", "+pttl")
        seen = f"the {who}'s user {user} may {what}: more than it needs, for whoever has its password"
        return warning(seen, place, set_user(user, "resetkeys", f"~{settings.key_prefix}*", *least))
    return good(f"the {who}'s user {user} has limits", place)


class _Rights(NamedTuple):
    """An ACL user: whether it may use all commands, write to all keys, and be used without a password."""

    all_commands: bool
    all_keys: bool
    without_password: bool


def _rights(redis: RedisClient, user: str) -> _Rights:
    """What ACL GETUSER says; the hashes of its passwords are left behind. Raises StoreRefused."""
    (reply,) = redis.ask([(b"ACL", b"GETUSER", user.encode())])
    said = dict(zip(reply[::2], reply[1::2], strict=True)) if reply else {}
    commands = set(_text(said.get(b"commands", b"")).split())
    flags = {_text(each) for each in said.get(b"flags", ())}
    # One text since Redis 7, a list before.
    keys = said.get(b"keys", b"")
    keys = set(_text(keys).split() if isinstance(keys, bytes) else map(_text, keys))
    may_all = "+@all" in commands or "allcommands" in flags
    return _Rights(may_all, bool(keys & {"~*", "*", "%RW~*", "%W~*"}), {"on", "nopass"} <= flags)


def _config(redis: RedisClient, *names: str) -> dict[str, str]:
    """What CONFIG GET says. Raises StoreRefused."""
    replies = redis.ask([(b"CONFIG", b"GET", name.encode()) for name in names])
    return {_text(reply[0]): _text(reply[1]) for reply in replies if reply}


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def set_user(user: str, *rules: str) -> str:
    """The command that gives an ACL user these rights."""
    return command_line("redis-cli", "ACL", "SETUSER", user, *rules)
