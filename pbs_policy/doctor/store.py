"""Checks of what Redis or Valkey says of itself: recent, neither too open nor too closed, keeping what is written,
with a replica to fail over to. It is asked once: what an ACL user of few rights may not ask is not looked at. No
password and no hash of one is kept.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pbs_policy.command_line import command_line
from pbs_policy.doctor.finding import Finding, check, good, not_looked_at, warning, wrong
from pbs_policy.log import printable
from pbs_policy.settings import Settings
from pbs_policy.store.errors import StoreRefused, StoreUnavailable
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
Answer = TypeVar("Answer")


class Rights(NamedTuple):
    """An ACL user: whether it may use all commands, write to all keys, and be used without a password."""

    all_commands: bool
    all_keys: bool
    without_password: bool


@dataclass
class StoreFacts:
    """What Redis said; None where it may not be asked, with the reason under the same name in `refused`."""

    info: dict[str, str] | None = None
    config: dict[str, str] | None = None
    user: str | None = None
    rights: Rights | None = None
    default_rights: Rights | None = None
    ahead: float | None = None
    refused: dict[str, str] = field(default_factory=dict)

    def told(self, name: str) -> dict[str, str]:
        """`info` or `config`. Raises StoreUnavailable where Redis may not be asked, for a check to say so."""
        told: dict[str, str] | None = getattr(self, name)
        if told is None:
            raise StoreUnavailable(f"{name.upper()}: {self.refused.get(name, '')}")
        return told


def gather(redis: RedisClient) -> StoreFacts:
    """Ask Redis about itself. Raises StoreUnavailable where it cannot be asked at all."""
    facts = StoreFacts()

    def ask(name: str, question: Callable[[], Answer]) -> Answer | None:
        try:
            return question()
        except StoreRefused as error:
            facts.refused[name] = printable(str(error), 100)
            return None

    facts.info = ask("info", lambda: read_info(redis, "default"))
    facts.config = ask("config", lambda: _config(redis))
    name = facts.user = ask("user", lambda: _text(redis.ask([(b"ACL", b"WHOAMI")])[0]))
    if name is not None:
        facts.rights = ask("rights", lambda: _rights(redis, name))
        facts.default_rights = ask("default_rights", lambda: _rights(redis, "default"))
    asked = time.time()
    now = ask("time", lambda: redis.ask([(b"TIME",)])[0])
    if now is not None:
        facts.ahead = int(now[0]) + int(now[1]) / 1e6 - (asked + time.time()) / 2
    return facts


def _config(redis: RedisClient) -> dict[str, str]:
    names = ("maxmemory", "maxmemory-policy", "bind", "protected-mode", "requirepass", "port", "tls-port", "save",
             "stop-writes-on-bgsave-error")  # fmt: skip
    found: dict[str, str] = {}
    for name in names:
        (reply,) = redis.ask([(b"CONFIG", b"GET", name.encode())])
        found |= zip(map(_text, reply[::2]), map(_text, reply[1::2]), strict=True)
    if found.get("requirepass"):
        found["requirepass"] = "set"  # the password itself is nobody's business here
    return found


def _rights(redis: RedisClient, user: str) -> Rights:
    """What ACL GETUSER says; the hashes of its passwords are left behind."""
    (reply,) = redis.ask([(b"ACL", b"GETUSER", user.encode())])
    said = dict(zip(reply[::2], reply[1::2], strict=True)) if reply else {}
    commands = set(_text(said.get(b"commands", b"")).split())
    flags = {_text(each) for each in said.get(b"flags", ())}
    # One text since Redis 7, a list before.
    keys = said.get(b"keys", b"")
    keys = set(_text(keys).split() if isinstance(keys, bytes) else map(_text, keys))
    may_all = "+@all" in commands or "allcommands" in flags
    return Rights(may_all, bool(keys & {"~*", "*", "%RW~*", "%W~*"}), {"on", "nopass"} <= flags)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def check_store(facts: StoreFacts, settings: Settings, place: str) -> Iterator[Finding]:
    """Every check that rests on what Redis says of itself. `place` is where redis_url is set."""
    yield from _check_version(facts, place)
    yield from _check_memory(facts)
    yield from _check_persistence(facts)
    yield from _check_replica(facts, place)
    yield from _check_exposure(facts)
    yield from _check_clock(facts)
    yield from _check_replicas(facts, settings, place)


@check("store.version")
def _check_version(facts: StoreFacts, place: str) -> Finding:
    info = facts.told("info")
    valkey = info.get("valkey_version", "")
    version = valkey or info.get("redis_version", "0")
    name = f"{'Valkey' if valkey else 'Redis'} {version}"
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
        return wrong(f"{name} is too old", place, "Redis 6.2 or newer, or Valkey")
    return good(name, place)


@check("store.eviction")
def _check_memory(facts: StoreFacts) -> Finding:
    """Every key of ours has an end, so volatile-* policies find nothing but logins to throw away."""
    told = facts.config or facts.told("info")
    policy = told.get("maxmemory-policy") or (facts.info or {}).get("maxmemory_policy", "")
    if not policy:
        return not_looked_at(f"maxmemory-policy: {facts.refused.get('config') or 'Redis does not say'}")
    limit = int(told.get("maxmemory", 0) or 0)
    if limit and policy != "noeviction":
        seen = f"maxmemory-policy = {policy}: at {limit} bytes Redis throws logins away before their time"
        return warning(seen, _CONF, "maxmemory-policy noeviction, or a Redis of its own")
    return good(f"maxmemory = {limit or 'no limit'}, maxmemory-policy = {policy}")


@check("store.persistence")
def _check_persistence(facts: StoreFacts) -> Finding:
    info, config = facts.told("info"), facts.config or {}
    stops = config.get("stop-writes-on-bgsave-error", "yes") == "yes"
    if info.get("rdb_last_bgsave_status", "ok") != "ok" and stops:
        seen = "the last save failed: Redis refuses writes, and no login is recorded"
        return wrong(seen, _CONF, "see Redis' log (disk full, no permission on dir)")
    kept = "kept in an append-only file" if info.get("aof_enabled") == "1" else "not written at once (no AOF)"
    saved = "" if config.get("save", "x") else ", and snapshots are off: a restart forgets them"
    return good(f"logins are {kept}{saved}")


@check("store.durable", "no deny or permit that a crash of Redis would take back")
def check_durable(facts: StoreFacts, table: LoginTable) -> Iterator[Finding]:
    """Whether denies and permits outlive a crash of Redis, while there are any."""
    forgets = what_a_crash_forgets(facts.told("info"), table.now())
    if forgets and table.has_denies_or_permits():
        mend = f"{APPEND}; denies = FILE for what must hold, and a scheduled pbs-policy export"
        yield warning(f"there are denies or permits, and {forgets}", _CONF, mend)


@check("store.replica")
def _check_replica(facts: StoreFacts, place: str) -> Finding:
    info = facts.told("info")
    if info.get("role", "master") == "master":
        return good("this is a master", place)
    master = printable(f"{info.get('master_host')}:{info.get('master_port')}")
    link, quiet = info.get("master_link_status", "unknown"), info.get("master_last_io_seconds_ago", "?")
    seen = f"this is a replica of {master} (link {link}, last heard of {quiet} s ago): writes are refused"
    return wrong(seen, place, f"redis_url = redis://{master}/0")


@check("store.replicas")
def _check_replicas(facts: StoreFacts, settings: Settings, place: str) -> Iterator[Finding]:
    """Each replica that the master has heard of: what it lacks is lost to a failover. A replica has none to be looked
    at: `store.replica`."""
    info, url = facts.told("info"), settings.redis_url
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
def _check_exposure(facts: StoreFacts) -> Finding:
    """Whoever can write to Redis can permit relaying."""
    config, rights = facts.told("config"), facts.default_rights
    bound = [item.lstrip("-") for item in config.get("bind", "").split()]
    public = " ".join(item for item in bound or ["*"] if not _is_loopback(item))
    open_door = rights.without_password if rights else not config.get("requirepass")
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
def _check_clock(facts: StoreFacts) -> Finding:
    if facts.ahead is None:
        return not_looked_at(f"TIME: {facts.refused.get('time', '')}")
    if abs(facts.ahead) > _CLOCK_SECONDS:
        seen = f"Redis' clock is {facts.ahead:+.0f} s off ours: permissions end in time, listings show wrong ages"
        return warning(seen, "", "systemctl status systemd-timesyncd (or chrony, ntpd) on both hosts")
    return good(f"the clocks differ by {abs(facts.ahead):.1f} s; ends are by Redis' clock alone")


@check("store.rights")
def check_service_rights(facts: StoreFacts, settings: Settings, place: str) -> Finding:
    """What the service's own user may do."""
    return _judge_rights(facts, "service", settings, place)


@check("store.rights")
def check_script_rights(redis: RedisClient, settings: Settings, place: str) -> Finding:
    """What the script's user may do."""
    return _judge_rights(gather(redis), "script", settings, place)


def _judge_rights(facts: StoreFacts, who: str, settings: Settings, place: str) -> Finding:
    """Whether the ACL user of `who` (the script, the service) may do more than that needs."""
    user, rights = facts.user, facts.rights
    if user is None or rights is None:
        # It may not ask what it may do: that is what a user of few rights should be.
        why = facts.refused.get("user") or facts.refused.get("rights") or "no ACL"
        return good(f"the {who}'s user may not look at rights: {why}", place)
    if user == "default":
        return good(f"the {who} is Redis' default user: an ACL user of its own would be less", place)
    if rights.all_commands or rights.all_keys:
        what = "do everything" if rights.all_commands else "write to every key"
        least = ("-@all", "+set") if who == "script" else ("-@all", "+get", "+mget", "+pttl")
        seen = f"the {who}'s user {user} may {what}: more than it needs, for whoever has its password"
        return warning(seen, place, set_user(user, "resetkeys", f"~{settings.key_prefix}*", *least))
    return good(f"the {who}'s user {user} has limits", place)


def set_user(user: str, *rules: str) -> str:
    """The command that gives an ACL user these rights."""
    return command_line("redis-cli", "ACL", "SETUSER", user, *rules)
