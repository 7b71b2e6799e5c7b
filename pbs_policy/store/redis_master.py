"""Which Redis is the one that logins are written to: asked of the servers that `redis_url` names, as steps
without I/O. The service carries them out on its event loop (`redis_connector`), the command line on a socket
(`redis_client`).

Only a master is asked about logins: a replica may be behind, or cut off for long, and would let pass what was
revoked. That is seen from HELLO, which every user may say whatever its rights (ROLE and INFO need some).

- Several servers: the first that says that it is a master.
- Sentinel: the master that the first Sentinel names which knows it.
- Cluster: all keys are in one hash slot (`redis_url.in_one_slot`), so one server has them all. Any node names it
  when it is asked for a key that it does not have itself (MOVED): no table of slots is read, no right needed for it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeAlias

from pbs_policy.store.question import Command
from pbs_policy.store.redis_url import Login, Place, RedisUrl, written

ROLE: Command = (b"HELLO", b"2")

REPLICA = "it is a replica, which may be behind"

NO_ANSWER = "no answer"

_MOVED = re.compile(r"(?:MOVED|ASK) \d+ (\S*):([0-9]{1,5})$")
ELSEWHERE = frozenset(("MOVED", "ASK", "CLUSTERDOWN", "READONLY", "MASTERDOWN"))
"""The first words of errors that say that another server is the one to be asked, or will be."""


class MasterUnknown(Exception):
    """No server that could be asked is the master, or names it. The message says what the last one answered;
    `replicas` said that they are that."""

    def __init__(self, trouble: str, replicas: Sequence[Place] = ()) -> None:
        super().__init__(trouble)
        self.replicas = tuple(replicas)


class Step(NamedTuple):
    """A question for one place, on a connection that began with the commands of `login`, in `share` of the time that
    is left."""

    place: Place
    login: Sequence[Command]
    question: Command
    share: float


Outcome: TypeAlias = Any
"""The reply to a step's question, or the exception that came instead; its text ends with what Redis answered."""

Search: TypeAlias = Generator[Step, Outcome, Place]


def log_in(login: Login, db: int = 0) -> list[Command]:
    """What is said first on a connection."""
    commands: list[Command] = []
    if login.password:
        words = [each.encode("utf-8", "surrogateescape") for each in (login.user, login.password) if each]
        commands.append((b"AUTH", *words))
    if db:
        commands.append((b"SELECT", b"%d" % db))
    return commands


def without_password(text: str, commands: Sequence[Command]) -> str:
    """An error that was answered to one of `commands`: a server that knows no AUTH repeats what came with it."""
    for command in commands:
        if command[0] == b"AUTH" and command[-1][:8].decode("utf-8", "replace") in text:
            return "an error that repeats the password"
    return text


def is_replica(hello: Any) -> bool:
    """Whether the reply to ROLE is that of a replica."""
    if not isinstance(hello, list):
        return True  # whatever it is, it is not known to be a master
    roles = [value for name, value in zip(hello[::2], hello[1::2], strict=False) if name == b"role"]
    return any(role != b"master" for role in roles)


def is_elsewhere(error: str) -> bool:
    """Whether an error says that another server is the one to be asked, or will be."""
    return error.partition(" ")[0] in ELSEWHERE


def search(url: RedisUrl, places: Sequence[Place], login: Login, sentinel: Login, probe: Command) -> Search:
    """Find the master, asking `places` (those of `url`) in this order; the nodes of a Cluster by `probe`, a command
    with a key of the table. Returns its place, raises MasterUnknown."""
    trouble, replicas = "", []
    for number, place in enumerate(places):
        share = 1 / (len(places) - number + 1)  # the first may be the one that is gone, the master wants its own
        if url.master:
            question: Command = (b"SENTINEL", b"get-master-addr-by-name", url.master.encode())
            outcome = yield Step(place, log_in(sentinel), question, share)
            if not isinstance(outcome, Exception):
                if named := _named(outcome):
                    return named
                outcome = f"knows no master {url.master}"
        elif url.cluster:
            outcome = yield Step(place, log_in(login), probe, share)
            if not isinstance(outcome, Exception):
                return place
            moved = _MOVED.search(str(outcome))
            if moved and 0 < int(moved[2]) < 65536:
                return moved[1] or place[0], int(moved[2])
        else:
            outcome = yield Step(place, log_in(login), ROLE, share)
            if not isinstance(outcome, Exception):
                if not is_replica(outcome):
                    return place
                outcome = REPLICA
                replicas.append(place)
        name = url.path or written(place)
        said = str(outcome) or NO_ANSWER
        # A reason says more than none, and the Cluster's word for all of it more than that one node is down.
        if not trouble or not (said.startswith(NO_ANSWER) or "CLUSTERDOWN " in trouble):
            trouble = f"{'Sentinel ' if url.master else ''}{name}: {said}"
    raise MasterUnknown(trouble, replicas)


def _named(reply: Any) -> Place | None:
    """The place that a Sentinel's reply names, if it does."""
    if not isinstance(reply, list) or [type(each) for each in reply] != [bytes, bytes]:
        return None
    host, port = reply[0].decode("utf-8", "replace"), reply[1]
    return (host, int(port)) if host and re.fullmatch(b"[0-9]{1,5}", port) and 0 < int(port) < 65536 else None
