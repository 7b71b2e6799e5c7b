"""The decision: may this client relay this message now?

Meant to be read by the administrator whose mail it concerns. Nothing here talks to Redis: `decide` is a procedure
that yields questions (`question`), and nearly always there is no need to run it. The rules, in this order:

1. An address that may never relay is refused without asking (`refuse_excluded`).
2. What is asked first: permits for the address and its networks, the logins from it (`Case.keys`). Nothing there
   means DUNNO, which is the answer to nearly every stranger.
3. A permit must hold for this sender and recipient domain; a login must be of a service that counts (`services`)
   and, with sender_match, of a user whom the sender names. With require_tls the session must be encrypted.
4. What is left is confirmed in a second round: it must have an end, and no deny of address, network or user may
   stand against it; nor one of the user whom the envelope sender names, at whoever's login.
5. Last, the caps: what would be OK is counted (`caps`), and may be one recipient too many.

The first permission for which all of it holds is the answer: permits come before logins, narrower before wider.
Where none does, the reason is that of the permission that came nearest. Nothing here ever says OK for want of
knowledge; `unavailable` is the answer wherever Redis could not be asked.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from pbs_policy.address import ClientAddress, networks_of
from pbs_policy.cap import Cap
from pbs_policy.decision import caps
from pbs_policy.decision.caps import Count
from pbs_policy.decision.case import Candidate, Case, find_permissions, login_under
from pbs_policy.decision.senders import SenderRules, names_to_match, own_names
from pbs_policy.postfix.protocol import first, only
from pbs_policy.store.question import Procedure, Question
from pbs_policy.table.keys import NO_END
from pbs_policy.table.networks import parse_lengths
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
    is_plain: bool = field(init=False)
    """Whether any login with time left is enough, where no deny stands against it."""

    def __post_init__(self) -> None:
        narrowing = (self.senders.match != "off", self.services, self.require_tls, self.address_cap, self.user_cap)
        object.__setattr__(self, "is_plain", not any(narrowing))


class Decision(NamedTuple):
    """What is answered, and why. `by` is the login or permit that decided, where one did, and `left` the seconds it
    has left; `would_be` is what the action had been without observe_only; `warning` is for the log, once."""

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
_SERVICE_MISMATCH = Decision(DUNNO, "service_mismatch")
_SENDER_MISMATCH = Decision(DUNNO, "sender_mismatch")
_RECIPIENT_MISMATCH = Decision(DUNNO, "recipient_mismatch")
_NO_TLS = Decision(DUNNO, "no_tls")
KEY_WITHOUT_END = Decision(DUNNO, "key_without_end")
_DENIED_USER = Decision(DUNNO, "denied_user")
_DENIED = Decision(DUNNO, "denied")
_CAP = Decision(DUNNO, "cap")

_FARTHEST_FIRST = (
    NO_LOGIN, _SENDER_MISMATCH, _SERVICE_MISMATCH, _RECIPIENT_MISMATCH, _NO_TLS, KEY_WITHOUT_END, _DENIED_USER, _CAP
)  # fmt: skip
_NEARNESS = {refusal.reason: nearness for nearness, refusal in enumerate(_FARTHEST_FIRST)}


def refuse_excluded(client: ClientAddress) -> Decision:
    """The answer for an address that no login can permit (`client.excluded`), without asking the table."""
    return Decision(DUNNO, client.excluded)


def unavailable(rules: Rules) -> Decision:
    """The answer where Redis cannot be asked: the client is to try again (450), or is refused like a stranger."""
    return Decision(DEFER if rules.on_unavailable == "defer" else DUNNO, "unavailable")


def observed(decision: Decision) -> Decision:
    """The same decision under observe_only: DUNNO to Postfix, the truth in the log."""
    return decision._replace(action=DUNNO, would_be=decision.action)


def decide(case: Case, found: Sequence[bytes | None]) -> Procedure[Decision]:
    """The decision on `case`, given the values `found` under its `keys`."""
    nearest, candidates = weigh(case, found)
    nearest, decision, denied = yield from _confirm(case, nearest, candidates)
    own = _own_names(case) if denied and decision is None else ()
    weighed = {each.user for each in candidates}
    keys = [case.table_keys.login(case.client, name) for name in own if name not in weighed]
    if keys:
        # A denied user was the last to log in; the sender may have been here before, and is asked for by name.
        values, _ = yield Question(keys)
        domain = case.rules.senders.user_domain
        logins = [login_under(case.client, key, value, domain) for key, value in zip(keys, values, strict=True)]
        candidates = [each for each in logins if each is not None and refuse(case, each) is None]
        nearest, decision, _ = yield from _confirm(case, nearest, candidates)
    return decision or nearest


def _own_names(case: Case) -> tuple[bytes, ...]:
    """The sender's own names, where he may have logged in before a denied user of this address or domain did."""
    if case.rules.senders.match == "address" or case.names == ():
        return ()
    return names_to_match(only(case.request, b"sender"), replace(case.rules.senders, match="address"), None) or ()


def weigh(case: Case, found: Sequence[bytes | None]) -> tuple[Decision, list[Candidate]]:
    """Of what stands in the table: the candidates of which the rules refuse none, best first; and the refusal of the
    one that came nearest."""
    somebody, held = find_permissions(case, found)
    nearest = _SENDER_MISMATCH if somebody and case.names is not None else NO_LOGIN
    candidates = []
    for each in held:
        refusal = refuse(case, each)
        if refusal is None:
            candidates.append(each)
        else:
            nearest = _nearer(nearest, refusal)
    return nearest, candidates


def refuse(case: Case, each: Candidate) -> Decision | None:
    """What the rules that need not ask say against a candidate."""
    permit, rules = each.permit, case.rules
    if permit is not None:
        if permit.senders and not _is_among(only(case.request, b"sender"), permit.senders, rules.senders):
            return _SENDER_MISMATCH
        if permit.recipient_domains:
            _, at, domain = only(case.request, b"recipient").rpartition(b"@")
            domains = {wanted.encode("utf-8", "surrogateescape") for wanted in permit.recipient_domains}
            if not at or domain.lower() not in domains:
                return _RECIPIENT_MISMATCH
    elif rules.services and each.record.service not in rules.services:
        return _SERVICE_MISMATCH
    if rules.require_tls and not only(case.request, b"encryption_protocol"):
        return _NO_TLS
    return None


def _is_among(sender: bytes, senders: Sequence[str], rules: SenderRules) -> bool:
    wanted = {name.encode("utf-8", "surrogateescape") for name in senders}
    names = [names_to_match(sender, replace(rules, match=match), None) for match in ("address", "domain")]
    return any(not wanted.isdisjoint(each or ()) for each in names)


def _confirm(
    case: Case, nearest: Decision, candidates: Sequence[Candidate]
) -> Procedure[tuple[Decision, Decision | None, Set[bytes]]]:
    """The nearest refusal; the decision, where one of `candidates` permits or a deny ends it all; the users among
    them who are denied."""
    denied: set[bytes] = set()
    if not candidates:
        return nearest, None, denied
    keys = case.table_keys
    own, mapped = sender_names(case)
    users = [*{each.user for each in candidates if each.user}.union(own, mapped)]
    denies = [keys.deny(case.client), keys.deny_everybody, keys.deny_networks]
    denies += [keys.deny_user(user) for user in users]
    values, ends = yield Question(denies, [(b"PTTL", each.key) for each in candidates])
    is_nobodys = False  # the sender: nobody's login lets it through
    if values.count(None) < len(values):  # seldom
        if values[0] is not None or values[1] is not None or (yield from _is_network_denied(case, values[2])):
            return nearest, _DENIED, denied
        named = {user for user, value in zip(users, values[3:], strict=True) if value is not None}
        is_nobodys = is_sender_denied(own, mapped, named)
        denied.update(each.user for each in candidates if each.user in named)
    for each, left in zip(candidates, ends, strict=True):
        if left == NO_END:
            nearest = _nearer(nearest, KEY_WITHOUT_END)
        elif each.user in denied:
            nearest = _nearer(nearest, _DENIED_USER._replace(by=each))
        elif is_nobodys:
            nearest = _nearer(nearest, _DENIED_USER)
        elif left > 0:
            refusal = yield from refuse_over_cap(case, each)
            if refusal is None:
                reason = "permit" if each.permit else "login"
                return nearest, Decision(OK, reason, each, left / 1000), denied
            nearest = _nearer(nearest, refusal)
    return nearest, None, denied


def sender_names(case: Case) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """The users whom the envelope sender names: by itself, and by the sender maps where they are asked."""
    own = own_names(only(case.request, b"sender"), case.rules.senders)
    return own, [name for name in case.names or () if name not in own and not name.startswith(b"@")]


def is_sender_denied(own: Sequence[bytes], mapped: Sequence[bytes], denied: Set[bytes]) -> bool:
    """Whether a deny holds against the sender itself: who is denied may not pass for a neighbour's message in his own
    name. Of several users with one sender, all must be denied."""
    return not denied.isdisjoint(own) or (bool(mapped) and all(name in denied for name in mapped))


def _is_network_denied(case: Case, lengths: bytes | None) -> Procedure[bool]:
    networks = [case.table_keys.deny(each) for each in networks_of(case.client, parse_lengths(lengths))]
    values, _ = (yield Question(networks)) if networks else ((), ())
    return any(value is not None for value in values)


def refuse_over_cap(case: Case, each: Candidate) -> Procedure[Decision | None]:
    """What the caps say against a candidate, once it is counted, or looked at (`Case.only_looks`)."""
    counts = counts_of(case, each)
    if not counts:
        return None
    who = caps.member(first(case.request, b"instance"), only(case.request, b"recipient"))
    verdict = yield from (caps.peek(counts, who) if case.only_looks else caps.count(counts, who))
    over = verdict.over
    if over is None:
        return None
    warning = f"{over.what} is over its cap of {over.cap} recipients" if verdict.is_first else ""
    rules = case.rules
    if verdict.is_twice and over.is_address and rules.auto_deny and not rules.observe_only:
        reason = f"over twice its cap of {over.cap}"
        deny = case.table_keys.deny(case.client)
        yield Question((), [(b"SET", deny, reason.encode(), b"EX", b"%d" % rules.auto_deny)])
        warning = f"{over.what} is {reason} recipients: denied (auto_deny)"
    return _CAP._replace(by=each, warning=warning)


def counts_of(case: Case, each: Candidate) -> list[Count]:
    """What a candidate is counted by: a permit's own cap, or the address and the user by the settings' caps."""
    if each.permit is not None and each.permit.cap is not None:
        return [_count(case, "permit", each.target.encode(), each.permit.cap)]
    counts = []
    if case.rules.address_cap:
        counts.append(_count(case, "address", case.client.encode(), case.rules.address_cap))
    if case.rules.user_cap and each.user:
        counts.append(_count(case, "user", each.user, case.rules.user_cap))
    return counts


def _count(case: Case, kind: str, name: bytes, cap: Cap) -> Count:
    what = f"{kind} {name.decode('utf-8', 'replace')}"
    return Count(what, cap, *case.table_keys.counted(kind.encode() + b":" + name), is_address=kind == "address")


def _nearer(one: Decision, other: Decision) -> Decision:
    return max(one, other, key=lambda each: _NEARNESS[each.reason])
