"""Checks of what is done with Redis: whether the service may look logins up and the script record one, and whether
the keys that are there are such as the service honours. One key is written, for a second, that permits nobody.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pbs_policy.address import AddressError, ClientAddresses
from pbs_policy.command_line import command_line
from pbs_policy.doctor.finding import Finding, check, good, warning, wrong
from pbs_policy.doctor.store import set_user
from pbs_policy.log import printable
from pbs_policy.settings import Settings
from pbs_policy.store.bulk import escape_glob, scan_command
from pbs_policy.store.connect import connect_by
from pbs_policy.store.errors import StoreRefused, StoreUnavailable
from pbs_policy.store.question import Command
from pbs_policy.store.redis_url import Place, written
from pbs_policy.store.replies import missing_right
from pbs_policy.table.keys import GONE, NO_END, Keys
from pbs_policy.table.listing import AUTO_DENY, Deny
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.networks import parse_lengths

if TYPE_CHECKING:
    from pbs_policy.store.connect import RedisClient

MOST_KEYS = 10_000
"""How many keys are looked at: a sample of a large table."""

_STEPS = 20  # round trips of SCAN, also where other programs' keys are in between
_SLACK = 60.0
"""Seconds that it may take to read a large table: by so much a deny may seem to outlast its registration."""

_NOT_MASTER = "redis_url has to name the master, or the Sentinels that know it"
_AS_WHOM = "redis_user and redis_password_file in the script's settings"
_REFUSALS = {
    "OOM": "raise maxmemory, or give the logins a Redis of their own",
    "READONLY": _NOT_MASTER,
    "read only replica": _NOT_MASTER,
    "MISCONF": "see Redis' log: it cannot save, so it takes no writes (disk full, no permission on dir)",
    "NOREPLICAS": "start the replicas, or lower min-replicas-to-write",
    "LOADING": "wait until Redis has loaded its data, and look again",
    "NOAUTH": _AS_WHOM,
    "WRONGPASS": _AS_WHOM,
}
"""What helps where Redis refuses a write for another reason than rights, by what it says."""


@check("store.places")
def check_places(settings: Settings, place: str) -> Iterator[Finding]:
    """Where redis_url names several servers, each is asked for the master by itself: one that is down is not noticed
    while another answers, until that one is needed."""
    url = settings.redis_url
    what, masters, silent = "Sentinels" if url.master else "nodes", set[Place](), False
    for each in url.places if url.names_master else ():
        try:
            masters.add(connect_by(replace(settings, redis_url=replace(url, places=(each,)))).find_master())
        except StoreUnavailable as error:
            silent = True
            seen = f"{written(each)} is of no use now: {printable(str(error), 200)}"
            yield warning(seen, place, "start it, or take it out of redis_url")
    names = " and ".join(map(written, sorted(masters)))
    if len(masters) > 1:
        mend = "a failover may be under way: look again; otherwise redis_url names servers of two sites"
        yield wrong(f"the {what} are not of one mind, these are masters: {names}", place, mend)
    elif masters and not silent:
        yield good(f"each of {len(url.places)} {what} answers; the master is {names}", place)


def trial_write(settings: Settings) -> Command:
    """What the script's user tries: one key for a second, which no record is and permits nobody."""
    key = Keys(settings.key_prefix).login(f"192.0.2.{secrets.randbelow(254) + 1}", b"doctor")
    return (b"SET", key, b"doctor", b"PX", b"1000")


@check("store.write")
def check_write(redis: RedisClient, settings: Settings, place: str) -> Finding:
    """Whether the script's user may record a login."""
    user = settings.redis_user or "default"
    try:
        redis.ask([trial_write(settings)])
    except StoreRefused as error:
        said = printable(str(error), 200)
        if missing_right(said, settings.key_prefix):
            mend = set_user(user, f"~{settings.key_prefix}*", "+set", "+select")
        else:
            mend = next((mend for word, mend in _REFUSALS.items() if word in said), "see Redis' log")
        return wrong(f"the script's user {user} cannot record a login{_lack(said, settings)}", place, mend)
    except StoreUnavailable as error:
        seen = f"Redis at {settings.redis_url} is unavailable to the script: {printable(str(error), 200)}"
        mend = "redis_url, redis_user, redis_password_file in the script's settings"
        if "Permission denied" in str(error):
            mend = "extra_groups = GROUP (the socket's) in Dovecot's service, which gives the script no other group"
        return replace(wrong(seen, place, mend), check="store.reachable")
    return good(f"the script's user {user} can record logins", place)


def check_read(table: LoginTable, settings: Settings, place: str) -> Iterator[Finding]:
    """Whether the service's user may do the two rounds of a relay check. Raises StoreUnavailable."""
    keys, user = table.keys, settings.redis_user or "default"
    try:
        table.read(keys.relay("192.0.2.1"))
        table.read([keys.deny("192.0.2.1")], [keys.login("192.0.2.1")])
        table.read([keys.probe])
        found = good(f"the service's user {user} can look logins up", place)
    except StoreUnavailable as error:
        said = printable(str(error), 200)
        if not missing_right(said, settings.key_prefix):
            raise
        seen = f"the service's user {user} cannot look logins up{_lack(said, settings)}"
        mend = set_user(user, f"%R~{settings.key_prefix}*", "+get", "+mget", "+pttl", "+select")
        found = wrong(seen, place, mend)
    yield replace(found, check="store.read")


def _lack(said: str, settings: Settings) -> str:
    right = missing_right(said, settings.key_prefix)
    return f", it lacks {right}: {said}" if right else f": {said}"


def check_keys(redis: RedisClient, settings: Settings) -> Iterator[Finding]:
    """Keys that somebody else wrote: without an expiry, of which the service honours denies, and no login or permit;
    and denies that it cannot read."""
    sample: list[bytes] = []
    yield from _check_ends(redis, settings, sample)
    if sample:
        yield from _check_types(redis, [key for key in sample if key.startswith(Keys(settings.key_prefix).denying)])


@check("store.ends")
def _check_ends(redis: RedisClient, settings: Settings, keys: list[bytes]) -> Finding:
    """The keys that are looked at are appended to `keys`."""
    known = Keys(settings.key_prefix)
    keys += _sample(redis, settings.key_prefix)
    ends = redis.ask([(b"PTTL", key) for key in keys])
    endless = [key for key, left in zip(keys, ends, strict=True) if left == NO_END]
    holding = [key for key in endless if key.startswith(known.denying)]
    others = [key for key in endless if key not in set(holding)]
    others.sort(key=lambda key: not key.startswith((known.login_prefix, known.permit_prefix)))
    besides = f"; {len(holding)} of denies have none, {_shown(holding)}: these hold" if holding else ""
    if not others:
        return good(f"each of {len(keys) - len(holding)} keys has an end{besides}")
    seen = f"{len(others)} of {len(keys)} keys have no end, {_shown(others)}: no such login or permit is honoured"
    delete = command_line("redis-cli", "DEL", about=_text(others[0]))
    return warning(f"{seen}{besides}", "", f"find out who writes without EX, and: {delete}")


@check("store.types")
def _check_types(redis: RedisClient, keys: Sequence[bytes]) -> Finding:
    """Of a key of another type MGET says None, as of one that is not there: the service sees no deny."""
    values, *left = redis.ask([(b"MGET", *keys), *[(b"PTTL", key) for key in keys]]) if keys else [()]
    wrong_type = [
        key for key, value, milliseconds in zip(keys, values, left, strict=True)
        if value is None and milliseconds != GONE
    ]  # fmt: skip
    if not wrong_type:
        return good(f"each of {len(keys)} keys of denies is a string")
    seen = f"{len(wrong_type)} of {len(keys)} keys of denies are no string, {_shown(wrong_type)}: they deny nobody"
    return wrong(seen, "", "find out who writes them, and then pbs-policy deny WHO")


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


@check("store.denies")
def check_denies(table: LoginTable) -> Finding:
    """Whether each deny is registered for as long as it lasts, which version 0.1.0 did not do: a user's for the
    stricter rule on uncertain senders, a network's or IPv6 address' by its length. One without an expiry is not
    exported: `store.ends` names it."""
    keys = table.keys
    registers = (keys.user_denies, keys.deny_networks, keys.auto_deny_networks)
    denies = [deny for deny in table.denies() if deny.left is not None]
    # Read after the denies: whoever writes one meanwhile registers it first.
    (mark, *lengths), left = table.read(registers, registers)
    until = [float("inf") if each == NO_END else each / 1000 for each in left]
    of_users: set[tuple[int, int] | None] = {None} if mark is not None else set()
    registered = (of_users, *map(parse_lengths, lengths))

    def is_registered(deny: Deny) -> bool:
        length = None if deny.kind == "user" else _length(deny)
        if deny.kind != "user" and length is None:
            return True
        register = 0 if deny.kind == "user" else 2 if deny.by == AUTO_DENY else 1
        # There, and for as long as the deny.
        lasts = until[register] > 0 and until[register] + _SLACK >= (deny.left or 0)
        return length in registered[register] and lasts

    missing = [deny for deny in denies if not is_registered(deny)]
    if not missing:
        return good(f"each of {len(denies)} denies is registered")
    seen = (
        f"{len(missing)} of {len(denies)} denies in Redis, {printable(missing[0].target)} is one, were not registered"
        " when they were written: they may miss a sender that Postfix rewrites, or another ipv6_prefix"
    )
    return warning(seen, "", "pbs-policy export FILE && pbs-policy import --replace FILE")


def _length(deny: Deny) -> tuple[int, int] | None:
    """The length by which a deny is found; None where it needs none, or names what nobody asks for."""
    try:
        target = ClientAddresses().parse_target(deny.target)
    except AddressError:
        return None
    return target.deny_length if target.text == deny.target else None
