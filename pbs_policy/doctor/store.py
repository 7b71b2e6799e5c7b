"""Checks of Redis or Valkey: reachable, recent, neither too open nor too closed, and keeping what is written.

The checks are pure functions over `StoreFacts`, or take Redis as an argument. A user of few rights may ask little,
and then less is looked at. Only `check_write` writes: one key, for a second, that permits nobody.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING

from pbs_policy.command_line import command_line
from pbs_policy.doctor.finding import Finding, good, not_looked_at, warning, wrong
from pbs_policy.doctor.store_facts import StoreFacts
from pbs_policy.log import printable
from pbs_policy.settings import Settings
from pbs_policy.store.bulk import escape_glob, scan_command
from pbs_policy.store.errors import StoreRefused, StoreUnavailable
from pbs_policy.store.persistence import APPEND, what_a_crash_forgets
from pbs_policy.store.question import Command
from pbs_policy.store.replies import missing_right
from pbs_policy.table.keys import GONE, NO_END, Keys
from pbs_policy.table.login_table import LoginTable

if TYPE_CHECKING:
    from pbs_policy.store.connect import RedisClient

OLDEST = (6, 2)
MOST_KEYS = 10_000
"""How many keys are looked at: a sample of a large table."""

_STEPS = 20  # round trips of SCAN, also where other programs' keys are in between

_CLOCK_SECONDS = 60  # `pbs-policy list` shows minutes
_CONF = "redis.conf"  # doctor does not know where it is: CONFIG GET gives no lines

_REFUSALS = {
    "OOM": "raise maxmemory, or give the logins a Redis of their own",
    "READONLY": "redis_url has to name the master, or the Sentinels that know it",
    "read only replica": "redis_url has to name the master, or the Sentinels that know it",
    "MISCONF": "see Redis' log: it cannot save, so it takes no writes (disk full, no permission on dir)",
    "NOREPLICAS": "start the replicas, or lower min-replicas-to-write",
    "LOADING": "wait until Redis has loaded its data, and look again",
    "NOAUTH": "redis_user and redis_password_file in the script's settings",
    "WRONGPASS": "redis_user and redis_password_file in the script's settings",
}
"""What helps where Redis refuses a write for another reason than rights, by what it says."""


def check_store(facts: StoreFacts, place: str) -> Iterator[Finding]:
    """Every check that rests on what Redis says of itself. `place` is where redis_url is set."""
    yield from _check_version(facts, place)
    yield from _check_memory(facts)
    yield from _check_persistence(facts)
    yield from _check_replica(facts, place)
    yield from _check_exposure(facts)
    yield from _check_clock(facts)


def _check_version(facts: StoreFacts, place: str) -> Iterator[Finding]:
    if facts.info is None:
        yield not_looked_at("store.version", f"INFO: {facts.refused.get('info', '')}", place)
        return
    valkey = str(facts.info.get("valkey_version", ""))
    version = valkey or str(facts.info.get("redis_version", "0"))
    name = f"{'Valkey' if valkey else 'Redis'} {version}"
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
        yield wrong("store.version", f"{name} is too old", place, "Redis 6.2 or newer, or Valkey")
    else:
        yield good("store.version", name, place)


def _check_memory(facts: StoreFacts) -> Iterator[Finding]:
    """Every key of ours has an end, so volatile-* policies find nothing but logins to throw away."""
    source = facts.config or facts.info
    policy = str((facts.config or {}).get("maxmemory-policy") or (facts.info or {}).get("maxmemory_policy") or "")
    if source is None or not policy:
        why = facts.refused.get("config") or facts.refused.get("info") or "Redis does not say"
        yield not_looked_at("store.eviction", f"maxmemory-policy: {why}")
        return
    limit = int(source.get("maxmemory", 0) or 0)
    if limit and policy != "noeviction":
        seen = f"maxmemory-policy = {policy}: at {limit} bytes Redis throws logins away before their time"
        yield warning("store.eviction", seen, _CONF, "maxmemory-policy noeviction, or a Redis of its own")
    else:
        yield good("store.eviction", f"maxmemory = {limit or 'no limit'}, maxmemory-policy = {policy}")


def _check_persistence(facts: StoreFacts) -> Iterator[Finding]:
    if facts.info is None:
        yield not_looked_at("store.persistence", f"INFO: {facts.refused.get('info', '')}")
        return
    stops = (facts.config or {}).get("stop-writes-on-bgsave-error", "yes") == "yes"
    if facts.info.get("rdb_last_bgsave_status", "ok") != "ok" and stops:
        yield wrong("store.persistence", "the last save failed: Redis refuses writes, and no login is recorded",
                    _CONF, "see Redis' log (disk full, no permission on dir)")  # fmt: skip
        return
    kept = "kept in an append-only file" if facts.info.get("aof_enabled") == "1" else "not written at once (no AOF)"
    saved = "" if (facts.config or {}).get("save", "x") else ", and snapshots are off: a restart forgets them"
    yield good("store.persistence", f"logins are {kept}{saved}")


def check_durable(facts: StoreFacts, table: LoginTable) -> Iterator[Finding]:
    """Whether denies and permits outlive a crash of Redis, while there are any."""
    if facts.info is None:
        yield not_looked_at("store.durable", f"INFO: {facts.refused.get('info', '')}")
        return
    forgets = what_a_crash_forgets(facts.info, table.now())
    try:
        stand = bool(forgets) and table.has_denies_or_permits()
    except StoreUnavailable as error:
        said = printable(str(error), 100)
        yield not_looked_at("store.durable", f"{forgets}; whether any deny or permit stands: {said}")
        return
    if stand:
        mend = f"{APPEND}; denies = FILE for what must hold, and a scheduled pbs-policy export"
        yield warning("store.durable", f"there are denies or permits, and {forgets}", _CONF, mend)
    else:
        yield good("store.durable", "no deny or permit that a crash of Redis would take back")


def _check_replica(facts: StoreFacts, place: str) -> Iterator[Finding]:
    if facts.info is None:
        yield not_looked_at("store.replica", f"INFO: {facts.refused.get('info', '')}")
    elif facts.info.get("role", "master") == "master":
        yield good("store.replica", "this is a master", place)
    else:
        master = f"{facts.info.get('master_host')}:{facts.info.get('master_port')}"
        quiet = facts.info.get("master_last_io_seconds_ago", "?")
        link = facts.info.get("master_link_status", "unknown")
        seen = (
            f"this is a replica of {printable(master)} (link {link}, last heard of {quiet} s ago): writes are refused"
        )
        yield wrong("store.replica", seen, place, f"redis_url = redis://{printable(master)}/0")


def _check_exposure(facts: StoreFacts) -> Iterator[Finding]:
    """Whoever can write to Redis can permit relaying."""
    if facts.config is None:
        yield not_looked_at("store.exposure", f"CONFIG: {facts.refused.get('config', '')}")
        return
    bound = [item.lstrip("-") for item in facts.config.get("bind", "").split()]
    public = [item for item in bound or ["*"] if not _is_loopback(item)]
    rights = facts.default_rights
    open_door = rights.without_password if rights else not facts.config.get("requirepass")
    if facts.config.get("port", "6379") == "0" and facts.config.get("tls-port", "0") == "0":
        yield good("store.exposure", "Redis listens at a unix socket alone")
    elif public and open_door and facts.config.get("protected-mode", "yes") != "yes":
        seen = f"Redis listens at {' '.join(public)} without a password: whoever reaches it can permit relaying"
        yield wrong("store.exposure", seen, _CONF, "bind 127.0.0.1 -::1, or requirepass and redis_password_file")
    elif public and open_door:
        seen = f"Redis listens at {' '.join(public)} without a password; protected-mode alone keeps strangers out"
        yield warning("store.exposure", seen, _CONF, "bind 127.0.0.1 -::1, or requirepass and redis_password_file")
    else:
        where = f"at {' '.join(public)}, with a password" if public else "at loopback addresses alone"
        yield good("store.exposure", f"Redis listens {where}")


def _check_clock(facts: StoreFacts) -> Iterator[Finding]:
    if facts.ahead is None:
        yield not_looked_at("store.clock", f"TIME: {facts.refused.get('time', '')}")
    elif abs(facts.ahead) > _CLOCK_SECONDS:
        seen = f"Redis' clock is {facts.ahead:+.0f} s off ours: permissions end in time, listings show wrong ages"
        yield warning("store.clock", seen, "", "systemctl status systemd-timesyncd (or chrony, ntpd) on both hosts")
    else:
        yield good("store.clock", f"the clocks differ by {abs(facts.ahead):.1f} s; ends are by Redis' clock alone")


def check_rights(facts: StoreFacts, who: str, settings: Settings, place: str) -> Iterator[Finding]:
    """Whether the ACL user of `who` (the script, the service) may do more than that needs."""
    least = ("-@all", "+set") if who == "script" else ("-@all", "+get", "+mget", "+pttl")
    mend = _set_user(facts.user or "", "resetkeys", f"~{settings.key_prefix}*", *least)
    if facts.user is None or facts.rights is None:
        # It may not ask what it may do: that is what a user of few rights should be.
        yield good("store.rights", f"the {who}'s user may not look at rights: {_why(facts)}", place)
    elif facts.user == "default":
        yield good("store.rights", f"the {who} is Redis' default user: an ACL user of its own would be less", place)
    elif facts.rights.all_commands or facts.rights.all_keys:
        what = "do everything" if facts.rights.all_commands else "write to every key"
        seen = f"the {who}'s user {facts.user} may {what}: more than it needs, for whoever has its password"
        yield warning("store.rights", seen, place, mend)
    else:
        yield good("store.rights", f"the {who}'s user {facts.user} has limits", place)


def trial_write(settings: Settings) -> Command:
    """What the script's user tries: one key for a second, which no record is and permits nobody."""
    key = Keys(settings.key_prefix).login(f"192.0.2.{secrets.randbelow(254) + 1}", b"doctor")
    return (b"SET", key, b"doctor", b"PX", b"1000")


def check_write(redis: RedisClient, settings: Settings, place: str) -> Iterator[Finding]:
    """Whether the script's user may record a login."""
    try:
        redis.ask([trial_write(settings)])
    except StoreUnavailable as error:
        said = printable(str(error), 200)
        if not isinstance(error, StoreRefused):
            seen = f"Redis at {settings.redis_url} is unavailable to the script: {said}"
            mend = "redis_url, redis_user, redis_password_file in the script's settings"
            yield wrong("store.reachable", seen, place, mend)
            return
        user = settings.redis_user or "default"
        seen = f"the script's user {user} cannot record a login{_lack(said, settings)}: {said}"
        if missing_right(said, settings.key_prefix):
            mend = _set_user(user, f"~{settings.key_prefix}*", "+set", "+select")
        else:
            mend = next((mend for word, mend in _REFUSALS.items() if word in said), "see Redis' log")
        yield wrong("store.write", seen, place, mend)
    else:
        yield good("store.write", f"the script's user {settings.redis_user or 'default'} can record logins", place)


def check_read(table: LoginTable, settings: Settings, place: str) -> Iterator[Finding]:
    """Whether the service's user may do the two rounds of a relay check. Raises StoreUnavailable."""
    keys = table.keys
    try:
        table.read(keys.relay("192.0.2.1"))
        table.read([keys.deny("192.0.2.1")], [keys.login("192.0.2.1")])
        table.read([keys.probe])
    except StoreUnavailable as error:
        if not missing_right(str(error), settings.key_prefix):
            raise
        user = settings.redis_user or "default"
        said = printable(str(error), 200)
        seen = f"the service's user {user} cannot look logins up{_lack(said, settings)}: {said}"
        mend = _set_user(user, f"%R~{settings.key_prefix}*", "+get", "+mget", "+pttl", "+select")
        yield wrong("store.read", seen, place, mend)
    else:
        yield good("store.read", f"the service's user {settings.redis_user or 'default'} can look logins up", place)


def _set_user(user: str, *rules: str) -> str:
    return command_line("redis-cli", "ACL", "SETUSER", user, *rules)


def _lack(said: str, settings: Settings) -> str:
    right = missing_right(said, settings.key_prefix)
    return f", it lacks {right}" if right else ""


def check_ends(redis: RedisClient, settings: Settings) -> Iterator[Finding]:
    """Keys of ours without an end, in a sample, which somebody else wrote: the service honours denies of them, and
    no login or permit. And keys of denies that it cannot read."""
    known = Keys(settings.key_prefix)
    try:
        keys = _sample(redis, settings.key_prefix)
        ends = redis.ask([(b"PTTL", key) for key in keys])
        denying = [key for key in keys if key.startswith(known.denying)]
        values = redis.ask([(b"MGET", *denying), *[(b"PTTL", key) for key in denying]]) if denying else [()]
    except StoreUnavailable as error:
        for check in ("store.ends", "store.types"):
            yield not_looked_at(check, f"SCAN: {printable(str(error), 100)}")
        return
    endless = [key for key, left in zip(keys, ends, strict=True) if left == NO_END]
    holding = [key for key in endless if key.startswith(known.denying)]
    others = [key for key in endless if key not in set(holding)]
    others.sort(key=lambda key: not key.startswith((known.login_prefix, known.permit_prefix)))
    besides = f"; {len(holding)} of denies have none, {_shown(holding)}: these hold" if holding else ""
    if others:
        seen = f"{len(others)} of {len(keys)} keys have no end, {_shown(others)}: no such login or permit is honoured"
        delete = command_line("redis-cli", "DEL", about=_text(others[0]))
        yield warning("store.ends", seen + besides, "", f"find out who writes without EX, and: {delete}")
    else:
        yield good("store.ends", f"each of {len(keys) - len(holding)} keys has an end{besides}")
    yield _check_types(denying, *values)


def _check_types(keys: Sequence[bytes], values: Sequence[bytes | None], *left: int) -> Finding:
    """Of a key of another type MGET says None, as of one that is not there: the service sees no deny."""
    wrong_type = [
        key for key, value, milliseconds in zip(keys, values, left, strict=True)
        if value is None and milliseconds != GONE
    ]  # fmt: skip
    if not wrong_type:
        return good("store.types", f"each of {len(keys)} keys of denies is a string")
    seen = f"{len(wrong_type)} of {len(keys)} keys of denies are no string, {_shown(wrong_type)}: they deny nobody"
    return wrong("store.types", seen, "", "find out who writes them, and then pbs-policy deny WHO")


def _text(key: bytes) -> str:
    return key.decode("utf-8", "replace")


def _shown(keys: Sequence[bytes]) -> str:
    return f"{printable(_text(keys[0]))} is one"


def _sample(redis: RedisClient, prefix: str) -> list[bytes]:
    """Keys under `prefix`, MOST_KEYS at the most, from as many steps of SCAN as a table of that size takes."""
    pattern = escape_glob(prefix.encode()) + b"*"
    found: list[bytes] = []
    cursor = b"0"
    for _ in range(_STEPS):
        ((cursor, keys),) = redis.ask([scan_command(cursor, pattern, MOST_KEYS // _STEPS)])
        found += keys
        if cursor == b"0" or len(found) >= MOST_KEYS:
            break
    return found[:MOST_KEYS]


def _why(facts: StoreFacts) -> str:
    return facts.refused.get("user") or facts.refused.get("rights") or "no ACL"


def _is_loopback(text: str) -> bool:
    try:
        return ip_address(text).is_loopback
    except ValueError:
        return text == "localhost"
