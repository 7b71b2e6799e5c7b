"""Caps: how many recipients an address or user may have relayed in a period, counted in Redis for all servers.

What is counted is a set: a recipient of a message (`instance` and `recipient`) is a member, so that one that Postfix
asks about twice counts once, and gets the same answer again. The period begins with the first member, and the set
ends with it. One over the cap is taken out again and noted in a second set, which says when to warn (the first) and
when twice the cap is reached; it takes no more members than the first, so both are bounded.

Two servers that ask at the same moment may both be refused the last place; neither is given one too many, unless both
ask about the same recipient of the same message at once, which no waiting smtpd does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from pbs_policy.cap import Cap
from pbs_policy.store.question import Command, Procedure, Question
from pbs_policy.table.keys import NO_END


class Count(NamedTuple):
    """One cap on one client address, user or permit (`what`): the keys of its two sets."""

    what: str
    cap: Cap
    key: bytes
    over_key: bytes
    is_address: bool = False


class Verdict(NamedTuple):
    """`over` is the cap that refuses, None where all let it through. `is_first`: of this period; `is_twice`: more
    were refused by now than the cap lets through."""

    over: Count | None = None
    is_first: bool = False
    is_twice: bool = False


def member(instance: bytes, recipient: bytes) -> bytes:
    """What stands for a recipient of a message: a 64-bit number, which Redis keeps in 8 bytes.

    Postfix 2.1 and newer send an instance; without one nothing is known to be the same twice.
    """
    if not instance:
        return b"%d" % (int.from_bytes(os.urandom(8)) >> 1)  # importing secrets takes 5 ms
    digest = blake2b(instance + b"\0" + recipient, digest_size=8).digest()
    return b"%d" % int.from_bytes(digest, signed=True)


def peek(counts: Sequence[Count], who: bytes) -> Procedure[Verdict]:
    """What `count` would say of the recipient `who`, without counting it."""
    commands = [command for each in counts for command in ((b"SCARD", each.key), (b"SISMEMBER", each.key, who))]
    replies = (yield Question((), commands)).replies
    sizes = [size + (not is_member) for size, is_member in zip(replies[::2], replies[1::2], strict=True)]
    return Verdict(next((each for each, size in zip(counts, sizes, strict=True) if size > each.cap.limit), None))


def count(counts: Sequence[Count], who: bytes) -> Procedure[Verdict]:
    """Count the recipient `who` (`member`), unless a cap refuses it; then it is counted by none of them."""
    commands: list[Command] = []
    for each in counts:
        commands += [
            (b"SADD", each.key, who), (b"SCARD", each.key), (b"PTTL", each.key), (b"SCARD", each.over_key)
        ]  # fmt: skip
    replies = (yield Question((), commands)).replies
    seen = [replies[at : at + 4] for at in range(0, len(replies), 4)]
    # Also where `who` was a member before: it may have been added by this very question, on a connection since lost.
    refusing = [size > each.cap.limit for each, (_, size, _, _) in zip(counts, seen, strict=True)]
    mend: list[Command] = []
    for each, (added, _, left, over_size), refuses in zip(counts, seen, refusing, strict=True):
        if left == NO_END:
            # Of a set that is new; or whoever made it was cut off before this.
            mend.append((b"PEXPIRE", each.key, b"%d" % (each.cap.period * 1000)))
        if added and any(refusing):
            mend.append((b"SREM", each.key, who))
        if refuses and over_size <= each.cap.limit:
            mend.append((b"SADD", each.over_key, who))
            mend.append((b"PEXPIRE", each.over_key, b"%d" % (left if left > 0 else each.cap.period * 1000)))
    mended = (yield Question((), mend)).replies if mend else ()
    noted = {command[1] for command, reply in zip(mend, mended, strict=True) if command[0] == b"SADD" and reply}
    for each, (*_, over_size), refuses in zip(counts, seen, refusing, strict=True):
        if refuses:
            is_new = each.over_key in noted
            return Verdict(each, is_first=is_new and over_size == 0, is_twice=over_size + is_new > each.cap.limit)
    return Verdict()
