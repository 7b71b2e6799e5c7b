"""A decision in words, rule by rule, for `pbs-policy check`: what each rule saw, whether it refuses, and what an
administrator can change. (One rule, and the words of `senders` and of denies: `row`.)

Whether a rule refuses is said by the trace of `decide`, and by nothing here. The rows follow one permission through
the rules: the one that is the answer, or whose refusal is. What only serves to be shown (who else is logged in, how
long a deny lasts) is read afterwards. Nothing is counted, nothing written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from pbs_policy.address import ClientAddress
from pbs_policy.command_line import command_line
from pbs_policy.decision import check
from pbs_policy.decision.candidate import Candidate
from pbs_policy.decision.caps import Count, Verdict
from pbs_policy.decision.case import Case
from pbs_policy.decision.check import Enquiry
from pbs_policy.decision.row import (
    Row,
    deny_of_a_stranger,
    deny_row,
    file_deny_row,
    left_text,
    login_text,
    row,
    sender_row,
)
from pbs_policy.decision.rules import DENIED, DENIED_USER, NO_LOGIN, OK, Decision, Rules, Step, refuse_unasked
from pbs_policy.decision.sender import shown
from pbs_policy.duration import format_duration
from pbs_policy.log import printable
from pbs_policy.postfix.protocol import first
from pbs_policy.table.keys import GONE, NO_END
from pbs_policy.table.login_table import Entry, StoreUnavailable
from pbs_policy.table.records import Permit
from pbs_policy.table.users import domain_of

MOST_OTHERS = 10
"""Users behind an address who are named; of the rest their number."""

ORDER = (
    "address", "permits", "logins", "senders", "services", "domains", "recipients", "require_tls", "denies",
    "end", "user", "user denies", "caps", "observe_only", "answer",
)  # fmt: skip
"""The rules, as they are asked."""

_EXCLUDED = {
    "never_record": "take its network out of never_record, for the post-login script too",
    "loopback": "nothing: let a webmail submit by SMTP AUTH, or list the mail host in mynetworks",
}
_NOT_A_CLIENT = "nothing: no client comes from there; have its own address passed on (PROXY protocol, XCLIENT)"


class Explanation(NamedTuple):
    """The decision, and one row for each rule of ORDER. `deny` is the row of the deny that decides, if one does.
    `others` are further users logged in from the address, the latest first, at most
    MOST_OTHERS; `more` is how many besides, None where Redis does not let us list them."""

    client: ClientAddress
    decision: Decision
    rows: tuple[Row, ...] = ()
    deny: Row | None = None
    others: tuple[Entry, ...] = ()
    more: int | None = 0


def explain(enquiry: Enquiry, *, is_brief: bool = False) -> Explanation:
    """What the service would answer now, and what each rule saw; where it `is_brief` without the rows, for which the
    names of all keys are looked at.

    Raises StoreUnavailable, and ProtocolError where the request names an attribute twice that counts.
    """
    client, denies = enquiry.client, enquiry.denies
    if refuse_unasked(client, denies):
        decision = check.check(enquiry)
        of_file = denies.of_address(client) if denies and not client.excluded else None
        deny = file_deny_row(of_file, decision) if of_file else None
        rows = [_address(client), *([deny] if deny else []), _answer(decision)]
        return Explanation(client, decision, _in_order(rows), deny)
    words = _Words(enquiry)
    return Explanation(client, words.decision, deny=words.deny) if is_brief else words.explanation()


def _in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """A row for each rule, those that were not asked too."""
    asked = {row.rule: row for row in rows}
    return tuple(asked.get(rule, Row(rule, "not asked", "")) for rule in ORDER)


class _Words:
    """The words for one decision and its trace."""

    def __init__(self, enquiry: Enquiry) -> None:
        self._table = enquiry.table
        self._maps = enquiry.maps
        self._client = enquiry.client
        self._case: Case = check.make_case(enquiry)
        self.decision, self._trace = check.trace(enquiry.table, self._case)
        self._refusals = [(step, step.refusal.reason) for step in self._trace if step.refusal is not None]
        self._followed = self._find_followed()
        self._last: Candidate | None = next(step.of for step in self._trace if step.rule == "logins")
        self._permits: Sequence[Candidate] = next(step.saw for step in self._trace if step.rule == "permits")
        self._login = self._followed if self._followed and not self._followed.permit else self._last
        self.deny = self._find_deny()

    def _find_followed(self) -> Candidate | None:
        """The permission that is the answer, or whose refusal is."""
        if OK in (self.decision.action, self.decision.would_be):
            return self.decision.by
        asked = (step.of for step, why in self._refusals if why == self.decision.reason and step.rule != "logins")
        return next(asked, None)

    def _find_deny(self) -> Row | None:
        reason = self.decision.reason
        if reason == NO_LOGIN.reason and not self._login and not self._followed:
            return deny_of_a_stranger(self._table, self._case)
        if reason not in (DENIED.reason, DENIED_USER.reason):
            return None
        return deny_row(self._table, self._case, next(step for step, why in self._refusals if why == reason))

    @cached_property
    def _left(self) -> Mapping[bytes, int]:
        keys = [each.key for each in (*self._permits, *([self._login] if self._login else []))]
        return dict(zip(keys, self._table.read((), keys)[1], strict=True)) if keys else {}

    @cached_property
    def _entries(self) -> tuple[list[Entry], str]:
        """The users logged in from the address, the latest first; and why they cannot be listed, where that is so:
        the service's own ACL user may read what is asked for by name, and not SCAN."""
        try:
            entries = [entry for entry in self._table.entries(self._case.client) if entry.kind == "login"]
        except StoreUnavailable as error:
            return [], str(error)
        return sorted(entries, key=lambda entry: (-entry.record.login_at, entry.record.user)), ""

    def explanation(self) -> Explanation:
        entries, trouble = self._entries
        own = self._table.name(self._login.record.user) if self._login else None
        others = [entry for entry in entries if self._table.name(entry.record.user) != own]
        named = tuple(others[:MOST_OTHERS])
        more = None if trouble else len(others) - len(named)
        phrase: dict[str, Callable[[Step], Row]] = {
            "senders": self._senders, "services": self._services, "domains": self._domains,
            "recipients": self._recipients, "require_tls": self._require_tls, "end": self._end, "user": self._user,
            "denies": self._denies, "user denies": self._denies, "caps": self._caps,
        }  # fmt: skip
        rows = [_address(self._client), self._permits_row(), self._logins_row(named, more)]
        followed = self._followed and self._followed.key
        asked = (step for step in self._trace if step.rule in phrase and (step.of and step.of.key) == followed)
        rows += [phrase[step.rule](step) for step in asked]
        if OK in (self.decision.action, self.decision.would_be):
            if rows[-1].rule != "caps":
                rows.append(Row("caps", "pass", "none"))
            rows.append(_observe_only(self._case.rules))
        rows.append(_answer(self.decision))
        return Explanation(self._client, self.decision, _in_order(rows), self.deny, named, more)

    def _permits_row(self) -> Row:
        case, lines = self._case, []
        for each in self._permits:
            left = self._left[each.key]
            lasts = f"{shown(each.key)} has no end" if left == NO_END else left_text(left / 1000)
            why = next((f" ({why})" for step, why in self._refusals if step.of == each), "")
            lines.append(f"{each.target}: {_permit_text(each.permit)}; {lasts}{why}")
        saw = f"{len(lines) or 'none'} {'of' if lines else 'for'} {', '.join((case.client, *case.networks))}"
        (value,), _ = self._table.read(case.keys[:1])
        if value is not None and not any(each.target == case.client for each in self._permits):
            lines.append(f"{case.client}: what stands there is no permit, and is not honoured")
        return Row("permits", "pass", saw, details=tuple(lines))

    def _logins_row(self, others: Sequence[Entry], more: int | None) -> Row:
        """The login that is followed, or the last one; and who else is behind the address, a line each."""
        table, client = self._table, self._case.client
        lines = [f"also {login_text(table, entry.record, entry.left)}" for entry in others]
        if more is None:
            lines.append(f"who else is logged in from there cannot be listed: {printable(self._entries[1])}")
        elif more:
            lines.append(f"and {more} more")
        details = tuple(lines)
        if self._login:
            left = self._left[self._login.key]
            saw = login_text(table, self._login.record, None if left < 0 else left / 1000)
            return Row("logins", "pass", saw, details=details)
        saw = f"nobody has logged in from {client}, or it is too long ago"
        if self._followed or self.decision.reason != "no_login":
            return Row("logins", "pass", saw, details=details)
        permit = command_line("pbs-policy", "permit", about=client)
        change = f"log in to POP3 or IMAP from {client}, or `{permit}`"
        if self.deny:
            details, change = (*details, f"besides, {self.deny.saw}"), f"{self.deny.change}, and then {change}"
        return Row("logins", "refuse", saw, change, "no_login", details)

    def _denies(self, step: Step) -> Row:
        return deny_row(self._table, self._case, step)

    def _senders(self, step: Step) -> Row:
        return sender_row(self._case, self._maps, self._users(), step)

    def _users(self) -> list[str]:
        """Those logged in from the address, as far as they are known."""
        users = [entry.record.user for entry in self._entries[0] if entry.record.user]
        last = self._last.record.user if self._last else ""
        return [last, *users] if last and last not in users else users

    def _services(self, step: Step) -> Row:
        services = " ".join(sorted(self._case.rules.services))
        setting = f"services = {services}" if services else "any service counts"
        if not step.of or step.of.permit:
            return row(step, "a permit needs no login")
        service = step.of.record.service
        change = (
            f"add {service} to services, where the post-login script reads them too, or log in by one of {services}"
            if service
            else "record logins by the post-login script, which knows their service, or empty services"
        )
        return row(step, f"logged in by {service or 'a service not recorded'}, {setting}", change)

    def _domains(self, step: Step) -> Row:
        domains = " ".join(sorted(map(shown, self._case.rules.login_domains)))
        setting = f"login_domains = {domains}" if domains else "users of any domain count"
        if not step.of or step.of.permit:
            return row(step, "a permit needs no login")
        user = step.of.user
        domain = shown(domain_of(user))
        change = (
            f"if {domain} is a domain of yours, add it to login_domains, where the post-login script reads it too"
            if domain
            else "set user_domain, which completes users without a domain"
            if user
            else "record logins by the post-login script, which knows their users, or empty login_domains"
        )
        return row(step, f"{shown(user) or 'a user not recorded'} is logged in, {setting}", change)

    def _recipients(self, step: Step) -> Row:
        domains = step.of.permit.recipient_domains if step.of and step.of.permit else ()
        if not step.of or not domains:
            return row(step, "any recipient")
        recipient = first(self._case.request, b"recipient")
        domain = shown(recipient.rpartition(b"@")[2]) if b"@" in recipient else "the recipient's domain"
        to = f"to {shown(recipient)}" if recipient else "no recipient given"
        saw = f"{to}, the permit is for {', '.join(map(printable, domains))}"
        change = f"give the permit for {step.of.target} anew with {domain} among its recipient domains"
        return row(step, saw, change if recipient else "name the recipient, such as --recipient bob@example.net")

    def _require_tls(self, step: Step) -> Row:
        if not self._case.rules.require_tls:
            return row(step, "require_tls = no")
        version = first(self._case.request, b"encryption_protocol")
        saw = f"require_tls = yes, the session is {'encrypted' if version else 'not encrypted'}"
        return row(step, saw, "have the client use STARTTLS, or set require_tls = no")

    def _user(self, step: Step) -> Row:
        each = step.of
        if each is None or each.permit or each.user:
            return row(step, shown(each.user) if each and each.user else "none recorded")
        why = "a cap counts users" if self._case.rules.user_cap else "a user is denied, who could be this one"
        saw = f"the login does not say whose it is, and {why}" if step.refusal else "none recorded"
        return row(step, saw, "record logins by the post-login script, which knows their users")

    def _end(self, step: Step) -> Row:
        if step.of is None:
            return row(step, "")
        left, key = step.saw.left[step.of.key], shown(step.of.key)
        if left == NO_END:
            revoke = f"`{command_line('pbs-policy', 'revoke', about=step.of.target)}`"
            change = f"{revoke}, and have whatever wrote {key} give it an end (SET ... EX)"
            return row(step, f"{key} has none, and is not honoured", change)
        return row(step, left_text(left / 1000) if left > 0 else f"{key} has just ended", "log in again")

    def _caps(self, step: Step) -> Row:
        counts: list[Count] = step.saw[0]
        verdict: Verdict = step.saw[1]
        looked_at = list(zip(counts, verdict.sizes, verdict.left, strict=True))
        saw = "; ".join(_count_text(*each) for each in looked_at)
        full = [(count, left) for count, size, left in looked_at if size >= count.cap.limit]
        return row(step, saw, " and ".join(_raise_cap(count, left, step.of) for count, left in full))


def _address(client: ClientAddress) -> Row:
    if not client.excluded:
        return Row("address", "pass", client.text)
    change = _EXCLUDED.get(client.excluded, _NOT_A_CLIENT)
    return Row("address", "refuse", f"{client.text} may never relay: {client.excluded}", change, client.excluded)


def _observe_only(rules: Rules) -> Row:
    if rules.observe_only:
        return Row("observe_only", "refuse", "observe_only = yes: DUNNO always", "set observe_only = no")
    return Row("observe_only", "pass", "observe_only = no")


def _answer(decision: Decision) -> Row:
    if decision.action == OK:
        saw = "OK: the service permits it; other restrictions may still refuse it, and `pbs-policy doctor` names them"
        return Row("answer", "pass", saw)
    saw = f"{decision.action}: Postfix goes on to its next restriction, reject_unauth_destination"
    return Row("answer", "refuse", saw, reason=decision.reason)


def _permit_text(permit: Permit | None) -> str:
    if permit is None:
        return ""
    parts = [
        f"for {permit.user}" if permit.user else "",
        f"senders {', '.join(permit.senders)}" if permit.senders else "",
        f"recipients in {', '.join(permit.recipient_domains)}" if permit.recipient_domains else "",
        f"cap {permit.cap}" if permit.cap else "",
        permit.note,
    ]
    return printable("; ".join(part for part in parts if part) or "no conditions")


def _count_text(count: Count, size: int, left: int) -> str:
    ends = "" if left == GONE else ", the period ends in " + format_duration(left / 1000)
    return f"{printable(count.what)}: {size} of {count.cap} recipients{ends}"


def _raise_cap(count: Count, left: int, each: Candidate | None) -> str:
    if each and each.permit and each.permit.cap:
        larger = f"give the permit for {each.target} anew with a larger cap"
    else:
        larger = f"raise max_recipients_per_{'address' if count.is_address else 'user'}"
    return f"wait {format_duration(left / 1000)}, or {larger}"
