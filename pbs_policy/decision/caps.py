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

from pbs_policy import log
from pbs_policy.address import Target
from pbs_policy.cap import Cap
from pbs_policy.decision.candidate import Candidate
from pbs_policy.decision.case import Case
from pbs_policy.decision.rules import NO_LOGIN, OVER_CAP, Decision, Step, Trace
from pbs_policy.postfix.protocol import first, only
from pbs_policy.store.question import Command, Procedure, Question
from pbs_policy.table.keys import NO_END
from pbs_policy.table.networks import parse_lengths, serialise_lengths


class Count(NamedTuple):
    """One cap on one client address, user or permit (`what`): the keys of its two sets."""

    what: str
    cap: Cap
    key: bytes
    over_key: bytes
    is_address: bool = False


class Verdict(NamedTuple):
    """`over` is the cap that refuses, None where all let it through. `is_first`: of this period; `is_twice`: more
    were refused by now than the cap lets through. `sizes` and `left`, of a look: how many each has counted, and the
    milliseconds until its period ends. `has_ended`: the permission, by the same round that counted."""

    over: Count | None = None
    is_first: bool = False
    is_twice: bool = False
    sizes: Sequence[int] = ()
    left: Sequence[int] = ()
    has_ended: bool = False


def refuse_over_cap(
    case: Case, each: Candidate, counts: Sequence[Count], trace: Trace | None
) -> Procedure[Decision | None]:
    """What the caps say against a permission, once it is counted, or looked at (`Case.only_looks`)."""
    who = member(first(case.request, b"instance"), only(case.request, b"recipient"))
    verdict = yield from (peek(counts, who, each.key) if case.only_looks else count(counts, who, each.key))
    refusal = NO_LOGIN if verdict.has_ended else None
    if verdict.over is not None:
        refusal = yield from _refuse(case, each, verdict.over, verdict)
    if trace is not None:
        trace.append(Step("caps", each, refusal, (counts, verdict)))
    return refusal


def _refuse(case: Case, each: Candidate, over: Count, verdict: Verdict) -> Procedure[Decision]:
    """The refusal, with the warning where it is the first; and the deny of an address that is far over its cap."""
    warning = f"{over.what} is over its cap of {over.cap} recipients" if verdict.is_first else ""
    rules = case.rules
    if verdict.is_twice and over.is_address and rules.auto_deny and not rules.observe_only:
        reason = f"over twice its cap of {over.cap}"
        yield from _deny(case, reason.encode())
        warning = f"{over.what} is {reason} recipients: denied (auto_deny)"
    return OVER_CAP._replace(by=each, warning=warning)


def _deny(case: Case, reason: bytes) -> Procedure[None]:
    """Deny the address, beside whatever an administrator denies; an IPv6 address after the length it is found by."""
    keys, seconds = case.table_keys, case.rules.auto_deny
    commands: list[Command] = [(b"SET", keys.auto_deny(case.client), reason, b"EX", b"%d" % seconds)]
    length = Target(case.client).deny_length
    if length:
        values, (left,) = yield Question([keys.auto_deny_networks], [(b"PTTL", keys.auto_deny_networks)])
        lengths = serialise_lengths(parse_lengths(values[0]) | {length})
        longest = b"%d" % max(seconds + 2, left // 1000)
        end = () if left == NO_END and values[0] is not None else (b"EX", longest)
        commands.insert(0, (b"SET", keys.auto_deny_networks, lengths, *end))
    yield Question((), commands)


def counts_of(case: Case, each: Candidate) -> Sequence[Count]:
    """What a permission is counted by: a permit's own cap, or the address and the user by the settings' caps."""
    if each.permit is not None and each.permit.cap is not None:
        return [_count(case, "permit", each.target.encode(), each.permit.cap)]
    if not (case.rules.address_cap or case.rules.user_cap):
        return ()
    counts = []
    if case.rules.address_cap:
        counts.append(_count(case, "address", case.client.encode(), case.rules.address_cap))
    if case.rules.user_cap and each.user:
        counts.append(_count(case, "user", each.user, case.rules.user_cap))
    return counts


def _count(case: Case, kind: str, name: bytes, cap: Cap) -> Count:
    what = f"{kind} {log.value(name.decode('utf-8', 'replace'))}"
    return Count(what, cap, *case.table_keys.counted(kind.encode() + b":" + name), is_address=kind == "address")


def member(instance: bytes, recipient: bytes) -> bytes:
    """What stands for a recipient of a message: a 64-bit number, which Redis keeps in 8 bytes.

    Postfix 2.1 and newer send an instance; without one nothing is known to be the same twice.
    """
    if not instance:
        return b"%d" % (int.from_bytes(os.urandom(8)) >> 1)  # importing secrets takes 5 ms
    digest = blake2b(instance + b"\0" + recipient, digest_size=8).digest()
    return b"%d" % int.from_bytes(digest, signed=True)


def peek(counts: Sequence[Count], who: bytes, permission: bytes) -> Procedure[Verdict]:
    """What `count` would say of the recipient `who`, without counting it."""
    commands: list[Command] = []
    for each in counts:
        commands += [(b"SCARD", each.key), (b"SISMEMBER", each.key, who), (b"PTTL", each.key)]
    *replies, time_left = (yield Question((), [*commands, (b"PTTL", permission)])).replies
    sizes, members, left = replies[::3], replies[1::3], replies[2::3]
    looked_at = zip(counts, sizes, members, strict=True)
    over = next((each for each, size, is_member in looked_at if size + (not is_member) > each.cap.limit), None)
    return Verdict(over, sizes=sizes, left=left, has_ended=time_left <= 0)


def count(counts: Sequence[Count], who: bytes, permission: bytes) -> Procedure[Verdict]:
    """Count the recipient `who` (`member`), unless a cap refuses it; then it is counted by none of them. How long
    the `permission` lasts is read in the same round: else an emptied table could pass for a cap with room."""
    commands: list[Command] = []
    for each in counts:
        commands += [
            (b"SADD", each.key, who), (b"SCARD", each.key), (b"PTTL", each.key), (b"SCARD", each.over_key)
        ]  # fmt: skip
    *replies, time_left = (yield Question((), [*commands, (b"PTTL", permission)])).replies
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
    return Verdict(has_ended=time_left <= 0)
