"""The decision: may this client address relay now?

Pure, and meant to be read by the administrator whose mail it concerns. Redis is asked by the caller, in two rounds,
because nearly every answer is DUNNO after the first:

1. `refuse_excluded`: addresses that may never relay are answered without asking Redis at all.
2. `weigh` the address' permit and login as they stand in the table: nothing there means DUNNO.
3. `confirm` what would be OK: the permission must have an end, and no deny may stand against it.

`unavailable` is the answer wherever Redis could not be asked. Nothing here ever says OK for want of knowledge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pbs_policy.address import ClientAddress
from pbs_policy.table import NO_END, Record, is_record, names_of_user, parse_record

OK = "OK"
DUNNO = "DUNNO"
DEFER = "DEFER_IF_REJECT 4.3.0 relay permission cannot be checked now, please try again"

SenderMatch = Literal["off", "domain", "address"]


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that the decision depends on; each is described in `settings`."""

    sender_match: SenderMatch = "off"
    on_unavailable: Literal["defer", "dunno"] = "defer"
    observe_only: bool = False


class Decision(NamedTuple):
    """What is answered, and why. `value` is that of the key that permitted, where one did; `would_be` is what the
    action had been without observe_only."""

    action: str
    reason: str
    value: bytes = b""
    would_be: str = ""

    @property
    def record(self) -> Record | None:
        """The login or permit that decided, read only when it is to be shown: most decisions never are."""
        return parse_record(self.value) if self.value else None


class Candidate(NamedTuple):
    """A permission that holds if its key has an end: `which` of the keys asked (`table.Keys.relay`), its value."""

    reason: Literal["login", "permit"]
    which: int
    value: bytes


NO_CLIENT_ADDRESS = Decision(DUNNO, "no_client_address")
NO_LOGIN = Decision(DUNNO, "no_login")
SENDER_MISMATCH = Decision(DUNNO, "sender_mismatch")
NO_END_OF_KEY = Decision(DUNNO, "key_without_end")
DENIED = Decision(DUNNO, "denied")


def refuse_excluded(client: ClientAddress) -> Decision:
    """The answer for an address that no login can permit (`client.excluded`), without asking the table."""
    return Decision(DUNNO, client.excluded)


def name_to_match(sender: bytes, rules: Rules) -> bytes:
    """Who must be logged in for mail from `sender`: a user, an `@domain`, or b"" where nobody can match.

    MAIL FROM is the client's word and proves nothing: a match narrows what an address' neighbours can do.
    """
    names = names_of_user(sender)
    if len(names) != 2:
        return b""  # the null sender, or no domain
    return names[0] if rules.sender_match == "address" else names[1]


def weigh(found: Sequence[bytes | None], rules: Rules) -> Decision | list[Candidate]:
    """Weigh what stands in the table under the keys of `table.Keys.relay`: permit, login, login of the sender."""
    if not any(found):
        return NO_LOGIN
    candidates = []
    if (value := found[0]) is not None and is_record(value):
        candidates.append(Candidate("permit", 0, value))
    which = 1 if rules.sender_match == "off" else 2
    value = found[which] if which < len(found) else None
    if value is not None and is_record(value):
        candidates.append(Candidate("login", which, value))
    if candidates:
        return candidates
    somebody = rules.sender_match != "off" and found[1] is not None and is_record(found[1])
    return SENDER_MISMATCH if somebody else NO_LOGIN


def confirm(candidates: Sequence[Candidate], left: Sequence[int], deny: bytes | None) -> Decision:
    """Settle `candidates`, given the milliseconds `left` of each one's key and the address' `deny`, if any."""
    if deny is not None:
        return DENIED
    for candidate, milliseconds in zip(candidates, left, strict=True):
        if milliseconds > 0:
            return Decision(OK, candidate.reason, candidate.value)
    return NO_END_OF_KEY if NO_END in left else NO_LOGIN


def unavailable(rules: Rules) -> Decision:
    """The answer where Redis cannot be asked: the client is to try again (450), or is refused like a stranger."""
    return Decision(DEFER if rules.on_unavailable == "defer" else DUNNO, "unavailable")


def observed(decision: Decision) -> Decision:
    """The same decision under observe_only: DUNNO to Postfix, the truth in the log."""
    return decision._replace(action=DUNNO, would_be=decision.action)
