"""What Redis or Valkey says of itself: asked once, as far as the ACL user may ask, for the checks of `store`.

No password and no hash of one is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pbs_policy.log import printable
from pbs_policy.store.errors import StoreRefused
from pbs_policy.store.persistence import read_info

if TYPE_CHECKING:
    from pbs_policy.store.connect import RedisClient

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
    facts.user = ask("user", lambda: _text(redis.ask([(b"ACL", b"WHOAMI")])[0]))
    if facts.user is not None:
        name = facts.user
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
        found |= _pairs(reply)
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


def _pairs(reply: Sequence[bytes]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in zip(reply[::2], reply[1::2], strict=True)}


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
