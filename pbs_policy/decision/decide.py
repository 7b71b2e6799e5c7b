"""The decision: may this client relay this message now?

This page is for the administrator whose mail it concerns. `decide` takes every login and permit that may be the
answer through the rules below, in their order. A rule says yes (None), or refuses and says why. The first login or
permit that no rule refuses is the answer: permits come before logins, narrower before wider. Where every one is
refused, the reason is that of the one that came nearest to OK. Nothing here says OK for want of knowledge.

Nothing here talks to Redis either: `decide` yields questions (`store.question`). Its caller asks what a decision
begins with (`Case.keys`); where nothing stands there, `decide_at_once` knows the answer to nearly every stranger.
What can refuse is read together with the time that each permission has left (`against`). Only the caps come later,
since they count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from pbs_policy.decision.against import NOTHING, Against, read_against
from pbs_policy.decision.candidate import Candidate
from pbs_policy.decision.caps import counts_of, refuse_over_cap
from pbs_policy.decision.case import Case, find_own_logins, find_permissions
from pbs_policy.decision.rules import (
    DENIED,
    DENIED_USER,
    DOMAIN_MISMATCH,
    KEY_WITHOUT_END,
    NO_LOGIN,
    NO_TLS,
    OK,
    RECIPIENT_MISMATCH,
    SENDER_MISMATCH,
    SENDER_UNCERTAIN,
    SERVICE_MISMATCH,
    USER_UNKNOWN,
    Decision,
    Step,
    Trace,
    nearer,
)
from pbs_policy.decision.sender import is_among, is_certain, is_within
from pbs_policy.postfix.protocol import only
from pbs_policy.store.question import Procedure
from pbs_policy.table.keys import NO_END
from pbs_policy.table.users import domain_of


def decide_at_once(found: Sequence[bytes | None]) -> Decision | None:
    """The answer where nothing stands under the keys that are asked first: nearly always."""
    return None if any(found) else NO_LOGIN


def decide(case: Case, found: Sequence[bytes | None], trace: Trace | None = None) -> Procedure[Decision]:
    """The decision on `case`, given the values `found` under its `keys`; what each rule said goes into `trace`."""
    permits, logins, last = find_permissions(case, found)
    held = permits + logins
    nearest = SENDER_MISMATCH if last is not None and case.names is not None else NO_LOGIN
    if trace is not None:
        trace.append(Step("permits", None, None, permits))
        trace.append(Step("logins", last, NO_LOGIN if nearest is NO_LOGIN and not held else None))
        if nearest is SENDER_MISMATCH and not held:
            trace.append(Step("senders", None, nearest))
    weighed: set[bytes] = set()
    while held:
        standing, is_for_its_user = [], False
        for each in held:
            refusal = _ask_rules(_FROM_THE_REQUEST, case, each, NOTHING, trace)
            if refusal is None:
                standing.append(each)
            else:
                nearest = nearer(nearest, refusal)
        if not standing:
            break
        against = yield from read_against(case, standing)
        for each in standing:
            refusal = _ask_rules(_FROM_THE_TABLE, case, each, against, trace)
            if refusal is None and (counts := counts_of(case, each)):
                refusal = yield from refuse_over_cap(case, each, counts, trace)
            if refusal is None:
                return Decision(OK, "permit" if each.permit else "login", each, against.left[each.key] / 1000)
            nearest = nearer(nearest, refusal)
            is_for_its_user |= refusal.reason == USER_UNKNOWN.reason or each.user in against.users
        weighed.update(each.user for each in standing if not each.permit)
        held = (yield from find_own_logins(case, weighed)) if is_for_its_user else []
    return nearest


# --- the rules. A login has matched its sender already: it was looked for under the names that the sender permits.


def _senders(case: Case, each: Candidate, _: Against) -> Decision | None:
    """A permit is for these envelope senders."""
    permit = each.permit
    if permit is None or not permit.senders:
        return None
    return None if is_among(only(case.request, b"sender"), permit.senders, case.rules.senders) else SENDER_MISMATCH


def _services(case: Case, each: Candidate, _: Against) -> Decision | None:
    """A login counts if it is of one of these services."""
    services = case.rules.services
    return SERVICE_MISMATCH if services and not each.permit and each.record.service not in services else None


def _domains(case: Case, each: Candidate, _: Against) -> Decision | None:
    """A login counts if its user is known, and of one of these domains."""
    domains = case.rules.login_domains
    is_out = domains and not each.permit and domain_of(each.user) not in domains
    return DOMAIN_MISMATCH if is_out else None


def _recipients(case: Case, each: Candidate, _: Against) -> Decision | None:
    """A permit is for recipients of these domains."""
    permit = each.permit
    if permit is None or not permit.recipient_domains:
        return None
    return None if is_within(only(case.request, b"recipient"), permit.recipient_domains) else RECIPIENT_MISMATCH


def _require_tls(case: Case, _each: Candidate, _: Against) -> Decision | None:
    """The session is encrypted where that is required."""
    return NO_TLS if case.rules.require_tls and not only(case.request, b"encryption_protocol") else None


def _denies(_: Case, _each: Candidate, against: Against) -> Decision | None:
    """No deny stands against the address, a network that holds it, or everybody."""
    return DENIED if against.is_address_denied else None


def _end(_: Case, each: Candidate, against: Against) -> Decision | None:
    """The permission has time left, and will end."""
    left = against.left[each.key]
    if left > 0:
        return None
    return KEY_WITHOUT_END if left == NO_END else NO_LOGIN


def _user(case: Case, each: Candidate, against: Against) -> Decision | None:
    """A login says whose it is, where users are counted or any is denied: it could be theirs."""
    if each.user or each.permit or not (case.rules.user_cap or against.is_any_user_denied):
        return None
    return USER_UNKNOWN


def _user_denies(case: Case, each: Candidate, against: Against) -> Decision | None:
    """Neither the user whose permission it is nor the one whom the envelope sender names is denied. While any user
    is, it must be certain whom the sender names: Postfix may send the message on in another name."""
    if each.user in against.users:
        return DENIED_USER._replace(by=each)
    if against.is_sender_denied:
        return DENIED_USER
    if against.is_any_user_denied and not is_certain(only(case.request, b"sender")):
        return SENDER_UNCERTAIN
    return None


_Rule: TypeAlias = Callable[[Case, Candidate, Against], Decision | None]
_FROM_THE_REQUEST: tuple[tuple[str, _Rule], ...] = (
    ("senders", _senders), ("services", _services), ("domains", _domains), ("recipients", _recipients),
    ("require_tls", _require_tls),
)  # fmt: skip
_FROM_THE_TABLE: tuple[tuple[str, _Rule], ...] = (
    ("denies", _denies), ("end", _end), ("user", _user), ("user denies", _user_denies),
)  # fmt: skip


def _ask_rules(
    rules: Sequence[tuple[str, _Rule]], case: Case, each: Candidate, against: Against, trace: Trace | None
) -> Decision | None:
    """The first refusal, None where every one of these rules says yes."""
    for name, rule in rules:
        refusal = rule(case, each, against)
        if trace is not None:
            trace.append(Step(name, each, refusal, against))
        if refusal is not None:
            return refusal
    return None
