"""What Redis or Valkey says of itself: asked once, as far as the ACL user may ask, for the checks of `store`.

No password and no hash of one is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pbs_policy.log import printable
from pbs_policy.table import StoreUnavailable

if TYPE_CHECKING:
    from redis import Redis

Answer = TypeVar("Answer")


class Rights(NamedTuple):
    """An ACL user: whether it may use all commands, write to all keys, and be used without a password."""

    all_commands: bool
    all_keys: bool
    without_password: bool


@dataclass
class StoreFacts:
    """What Redis said; None where it may not be asked, with the reason under the same name in `refused`."""

    info: dict[str, Any] | None = None
    config: dict[str, str] | None = None
    user: str | None = None
    rights: Rights | None = None
    default_rights: Rights | None = None
    ahead: float | None = None
    refused: dict[str, str] = field(default_factory=dict)


def gather(redis: Redis) -> StoreFacts:
    """Ask Redis about itself. Raises StoreUnavailable where it cannot be asked at all."""
    facts = StoreFacts()

    def ask(name: str, question: Callable[[], Answer]) -> Answer | None:
        from redis import ConnectionError as ConnectionLost
        from redis import RedisError
        from redis import TimeoutError as NoAnswer

        try:
            return question()
        except (ConnectionLost, NoAnswer) as error:
            raise StoreUnavailable(str(error)) from error
        except (RedisError, NotImplementedError) as error:
            facts.refused[name] = printable(str(error), 100)
            return None

    facts.info = ask("info", lambda: dict(redis.info()))
    facts.config = ask("config", lambda: _config(redis))
    facts.user = ask("user", lambda: _text(redis.acl_whoami()))
    if facts.user is not None:
        name = facts.user
        facts.rights = ask("rights", lambda: _rights(redis, name))
        facts.default_rights = ask("default_rights", lambda: _rights(redis, "default"))
    asked = time.time()
    now = ask("time", redis.time)
    if now is not None:
        facts.ahead = now[0] + now[1] / 1e6 - (asked + time.time()) / 2
    return facts


def _config(redis: Redis) -> dict[str, str]:
    names = ("maxmemory", "maxmemory-policy", "bind", "protected-mode", "requirepass", "port", "tls-port", "save",
             "stop-writes-on-bgsave-error")  # fmt: skip
    found: dict[str, str] = {}
    for name in names:
        found |= {_text(key): _text(value) for key, value in redis.config_get(name).items()}
    if found.get("requirepass"):
        found["requirepass"] = "set"  # the password itself is nobody's business here
    return found


def _rights(redis: Redis, user: str) -> Rights:
    """What ACL GETUSER says; the hashes of its passwords are left behind."""
    said: dict[str, Any] = dict(redis.acl_getuser(user) or {})
    commands = {_text(each) for name in ("commands", "categories") for each in said.get(name) or []}
    flags = {_text(each) for each in said.get("flags") or []}
    keys = frozenset(_text(key) for key in said.get("keys") or [])
    may_all = "+@all" in commands or "allcommands" in flags
    return Rights(may_all, bool(keys & {"~*", "*", "%RW~*", "%W~*"}), {"on", "nopass"} <= flags)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
