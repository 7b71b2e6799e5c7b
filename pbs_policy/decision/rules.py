"""What a decision is made of: the settings that it depends on (`Rules`), its outcome (`Decision`), and every reason.

The rules themselves, in their order, are in `decide`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from pbs_policy.address import ClientAddress
from pbs_policy.cap import Cap
from pbs_policy.decision.candidate import Candidate
from pbs_policy.decision.denies import Denies
from pbs_policy.decision.sender import SenderRules
from pbs_policy.table.records import Record

OK = "OK"
DUNNO = "DUNNO"
DEFER = "DEFER_IF_REJECT 4.3.0 relay permission cannot be checked now, please try again"


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that the decision depends on; each is described in `settings`."""

    senders: SenderRules = field(default_factory=SenderRules)
    services: frozenset[str] = frozenset()
    require_tls: bool = False
    address_cap: Cap | None = None
    user_cap: Cap | None = None
    auto_deny: int = 0
    on_unavailable: Literal["defer", "dunno"] = "defer"
    observe_only: bool = False
    login_domains: frozenset[bytes] = frozenset()


class Decision(NamedTuple):
    """What is answered, and why. `by` is the login or permit that decided, where one did, and `left` the seconds it
    has left; `would_be` is what the action would have been without observe_only; `warning` is for the log, once."""

    action: str
    reason: str
    by: Candidate | None = None
    left: float = 0.0
    would_be: str = ""
    warning: str = ""

    @property
    def record(self) -> Record | None:
        """What the login or permit that decided says."""
        return self.by.record if self.by else None


NO_CLIENT_ADDRESS = Decision(DUNNO, "no_client_address")
NO_LOGIN = Decision(DUNNO, "no_login")
SENDER_MISMATCH = Decision(DUNNO, "sender_mismatch")
SERVICE_MISMATCH = Decision(DUNNO, "service_mismatch")
DOMAIN_MISMATCH = Decision(DUNNO, "domain_mismatch")
RECIPIENT_MISMATCH = Decision(DUNNO, "recipient_mismatch")
NO_TLS = Decision(DUNNO, "no_tls")
KEY_WITHOUT_END = Decision(DUNNO, "key_without_end")
USER_UNKNOWN = Decision(DUNNO, "user_unknown")
SENDER_UNCERTAIN = Decision(DUNNO, "sender_uncertain")
DENIED_USER = Decision(DUNNO, "denied_user")
OVER_CAP = Decision(DUNNO, "cap")
DENIED = Decision(DUNNO, "denied")

FARTHEST_FIRST = (
    NO_LOGIN, SENDER_MISMATCH, SERVICE_MISMATCH, DOMAIN_MISMATCH, RECIPIENT_MISMATCH, NO_TLS, KEY_WITHOUT_END,
    USER_UNKNOWN, SENDER_UNCERTAIN, DENIED_USER, OVER_CAP, DENIED,
)  # fmt: skip
"""The refusals. Where several permissions are refused, the reason is that of the one that came nearest to OK."""

_NEARNESS = {refusal.reason: nearness for nearness, refusal in enumerate(FARTHEST_FIRST)}


class Step(NamedTuple):
    """What one rule said of a login or permit, None: of there being none. `refusal` is None where the rule lets it
    pass; `saw` is what it looked at, besides the case."""

    rule: str
    of: Candidate | None
    refusal: Decision | None
    saw: Any = None


Trace: TypeAlias = list[Step]
"""What each rule said, in the order in which they were asked."""


def nearer(one: Decision, other: Decision) -> Decision:
    """The refusal that came nearer to OK, the first where both came as near."""
    return max(one, other, key=lambda each: _NEARNESS[each.reason])


def refuse_excluded(client: ClientAddress) -> Decision:
    """The answer for an address that no login can permit (`client.excluded`), without asking the table."""
    return Decision(DUNNO, client.excluded)


def refuse_unasked(client: ClientAddress, denies: Denies | None) -> Decision | None:
    """The answer that needs nothing from the table: the address can never relay, or the file of denies has it, which
    therefore holds also while Redis is away."""
    if client.excluded:
        return refuse_excluded(client)
    return DENIED if denies is not None and denies.of_address(client) else None


def unavailable(rules: Rules) -> Decision:
    """The answer where Redis cannot be asked: the client is to try again (450), or is refused like a stranger."""
    return Decision(DEFER if rules.on_unavailable == "defer" else DUNNO, "unavailable")


def observed(decision: Decision) -> Decision:
    """The same decision under observe_only: DUNNO to Postfix, the truth in the log."""
    return decision._replace(action=DUNNO, would_be=decision.action)
