"""Which replies a command of the hot path can have. What is none of them was not Redis' reply to that command: the
bytes were changed on their way, or replies are shifted, and then the next reply is somebody else's as well. So a
connection that gave one is of no further use (`Impossible`). An error is a reply like any other, if Redis knows it.
What an ACL user lacks is found in the words in which Redis (6.2 to 8) and Valkey refuse it.
"""

from __future__ import annotations

import re
from typing import Any

from pbs_policy.store.question import Command

ELSEWHERE = frozenset(("MOVED", "ASK", "CLUSTERDOWN", "READONLY", "MASTERDOWN"))
"""The first words of errors that say that another server is the one to be asked, or will be."""

_ERRORS = ELSEWHERE | {
    "BUSY", "CROSSSLOT", "ERR", "LOADING", "MISCONF", "NOAUTH", "NOPERM", "NOREPLICAS", "OOM", "TRYAGAIN",
    "WRONGTYPE",
}  # fmt: skip
"""The first words of errors that Redis and Valkey answer to commands of these kinds."""

_MOST = 1 << 63
_ANY_COUNT = range(_MOST)
_YES_OR_NO = range(2)
_NUMBERS = {
    b"EXPIRE": _YES_OR_NO,
    b"HINCRBY": range(-_MOST, _MOST),
    b"HLEN": _ANY_COUNT,
    b"HSET": _ANY_COUNT,
    b"PEXPIRE": _YES_OR_NO,
    b"PTTL": range(-2, _MOST),
    b"PUBLISH": _ANY_COUNT,
    b"SADD": _ANY_COUNT,
    b"SCARD": _ANY_COUNT,
    b"SISMEMBER": _YES_OR_NO,
    b"SREM": _ANY_COUNT,
}
"""The numbers that a command can answer. One that is not here answers OK."""

_IS_VALUE = frozenset((bytes, type(None))).issuperset

_WHAT = "no reply that Redis can give"

_match_command = re.compile(r".*\bNOPERM .*'([A-Za-z|-]+)' command").match
_match_thing = re.compile(r".*\bNOPERM .*\b(key|channel)s?\b").match


def is_elsewhere(error: str) -> bool:
    """Whether an error says that another server is the one to be asked, or will be."""
    return error.partition(" ")[0] in ELSEWHERE


def missing_right(said: str, prefix: str) -> str:
    """What an ACL user lacks, as ACL SETUSER has it: `+pttl`, `~pbs:*`; "" where `said` is no such refusal."""
    if command := _match_command(said):
        return f"+{command[1].lower()}"
    if thing := _match_thing(said):
        return f"~{prefix}*" if thing[1] == "key" else f"&{prefix}events"
    return ""


class Impossible(Exception):
    """A reply that its command cannot have."""


class Elsewhere(Exception):
    """Another server is the one to be asked for the values."""


def check_values(values: Any, count: int) -> bool:
    """Whether `values` are the reply to MGET with so many keys, and not an error. Raises Impossible, Elsewhere."""
    if type(values) is not list:
        is_given = _check_error(b"MGET", values)
        if is_elsewhere(str(values)):
            raise Elsewhere(str(values))
        return is_given
    if len(values) != count or not _IS_VALUE(map(type, values)):
        raise Impossible(f"{_WHAT} to MGET: another list than that of its values")
    return True


def check_reply(command: Command, reply: Any) -> bool:
    """Whether `reply` is one to `command`, and not an error. Raises Impossible."""
    name = command[0]
    numbers = _NUMBERS.get(name)
    # A boolean of RESP3 is no number, which isinstance would take it for.
    if type(reply) is int and numbers is not None and reply in numbers:
        return True
    if reply == b"OK" and numbers is None:
        return True
    return _check_error(name, reply)


def _check_error(name: bytes, reply: Any) -> bool:
    if isinstance(reply, Exception) and str(reply).partition(" ")[0] in _ERRORS:
        return False
    kind = "an error that it does not know" if isinstance(reply, Exception) else type(reply).__name__
    raise Impossible(f"{_WHAT} to {name.decode()}: {kind}")
