"""A decision in words, rule by rule, for `pbs-policy check`: what each rule saw, whether it refuses, and what an
administrator can change.

Whether a rule refuses is said by the trace of `decide`, and by nothing here. The rows follow one permission through
the rules: the one that is the answer, or whose refusal is. What only serves to be shown (who else is logged in, how
long a deny lasts) is read afterwards. Nothing is counted, nothing written.

It is longer than other files because every rule has its words here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from pbs_policy.address import ClientAddress
from pbs_policy.command_line import command_line
from pbs_policy.decision import check
from pbs_policy.decision.against import Against, read_against
from pbs_policy.decision.candidate import Candidate
from pbs_policy.decision.caps import Count, Verdict
from pbs_policy.decision.case import Case
from pbs_policy.decision.denies import Denies, FileDeny
from pbs_policy.decision.rules import DENIED, OK, SENDER_UNCERTAIN, Decision, Rules, Step, Trace, refuse_unasked
from pbs_policy.decision.sender import unquote_sender
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.duration import format_duration
from pbs_policy.log import printable
from pbs_policy.postfix.protocol import Request, first
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.store.question import carry_out
from pbs_policy.table.keys import EVERYBODY, GONE, NO_END
from pbs_policy.table.login_table import Entry, LoginTable
from pbs_policy.table.records import Permit, Record
from pbs_policy.table.users import domain_of, names_of_user, write_user_name

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


class Row(NamedTuple):
    """What one rule saw and decided. `pass`: it does not stand in the way; `not asked`: one before it has refused.
    `change` is what lets it pass, `reason` the decision's for the refusal; `details` is one line each."""

    rule: str
    verdict: Literal["pass", "refuse", "not asked"]
    saw: str
    change: str = ""
    reason: str = ""
    details: tuple[str, ...] = ()


class Explanation(NamedTuple):
    """The decision, and one row for each rule of ORDER. `others` are further users logged in from the address, the
    latest first, at most MOST_OTHERS; `more` is how many besides, None where Redis does not let us list them."""

    client: ClientAddress
    decision: Decision
    rows: tuple[Row, ...]
    others: tuple[Entry, ...] = ()
    more: int | None = 0


def explain(
    table: LoginTable,
    rules: Rules,
    client: ClientAddress,
    request: Request,
    maps: SenderMaps | None = None,
    denies: Denies | None = None,
) -> Explanation:
    """What the service would answer `client` now to `request`, and what each rule saw.

    Raises StoreUnavailable, and ProtocolError where `request` names an attribute twice that counts.
    """
    if refuse_unasked(client, denies):
        decision = check.check(table, rules, client, request, maps, denies)
        of_file = denies.of_address(client) if denies and not client.excluded else None
        rows = [_address(client), *([_file_deny(of_file, decision)] if of_file else []), _answer(decision)]
        return Explanation(client, decision, _in_order(rows))
    case = check.make_case(table, rules, client, request, maps, denies)
    decision, trace = check.trace(table, case)
    return _Words(table, case, maps, trace, decision).explanation(client)


def _in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """A row for each rule, those that were not asked too."""
    asked = {row.rule: row for row in rows}
    return tuple(asked.get(rule, Row(rule, "not asked", "")) for rule in ORDER)


class _Words:
    """The words for one decision and its trace."""

    def __init__(
        self, table: LoginTable, case: Case, maps: SenderMaps | None, trace: Trace, decision: Decision
    ) -> None:
        self._table = table
        self._case = case
        self._maps = maps
        self._trace = trace
        self._decision = decision
        self._followed = self._find_followed()
        self._last = next(step.of for step in trace if step.rule == "logins")
        self._permits = next(step.saw for step in trace if step.rule == "permits")
        login = self._followed if self._followed and not self._followed.permit else self._last
        self._login = login
        self._left = self._read_left([each.key for each in (*self._permits, *([login] if login else []))])
        self._entries, self._trouble = self._read_entries()

    def _find_followed(self) -> Candidate | None:
        """The permission that is the answer, or whose refusal is."""
        if OK in (self._decision.action, self._decision.would_be):
            return self._decision.by
        refusals = (step for step in self._trace if step.refusal is not None and step.rule != "logins")
        return next((step.of for step in refusals if step.refusal.reason == self._decision.reason), None)  # type: ignore[union-attr]  # as just seen

    def _read_left(self, keys: Sequence[bytes]) -> Mapping[bytes, int]:
        return dict(zip(keys, self._table.read((), keys)[1], strict=True)) if keys else {}

    def _read_entries(self) -> tuple[list[Entry], str]:
        """The users logged in from the address, the latest first; and why they cannot be listed, where that is so:
        the service's own ACL user may read what is asked for by name, and not SCAN."""
        try:
            entries = [entry for entry in self._table.entries(self._case.client) if entry.kind == "login"]
        except StoreUnavailable as error:
            return [], str(error)
        return sorted(entries, key=lambda entry: (-entry.record.login_at, entry.record.user)), ""

    def explanation(self, client: ClientAddress) -> Explanation:
        shown = self._table.name(self._login.record.user) if self._login else None
        others = [entry for entry in self._entries if self._table.name(entry.record.user) != shown]
        named = tuple(others[:MOST_OTHERS])
        more = None if self._trouble else len(others) - len(named)
        phrase = {
            "senders": self._senders, "services": self._services, "domains": self._domains,
            "recipients": self._recipients, "require_tls": self._require_tls, "denies": self._denies,
            "end": self._end, "user": self._user, "user denies": self._user_denies, "caps": self._caps,
        }  # fmt: skip
        rows = [_address(client), self._permits_row(), self._logins_row(named, more)]
        rows += [
            phrase[step.rule](step) for step in self._trace if step.rule in phrase and self._is_followed(step.of)
        ]
        if OK in (self._decision.action, self._decision.would_be):
            if rows[-1].rule != "caps":
                rows.append(Row("caps", "pass", "none"))
            rows.append(_observe_only(self._case.rules))
        rows.append(_answer(self._decision))
        return Explanation(client, self._decision, _in_order(rows), named, more)

    def _is_followed(self, of: Candidate | None) -> bool:
        return (of and of.key) == (self._followed and self._followed.key)

    def _permits_row(self) -> Row:
        case = self._case
        lines = [
            f"{each.target}: {_permit_text(each.permit)}; {self._left_of(each)}{self._refusal_of(each)}"
            for each in self._permits
        ]
        looked_for = ", ".join((case.client, *case.networks))
        return Row(
            "permits",
            "pass",
            f"{len(lines)} of {looked_for}" if lines else f"none for {looked_for}",
            details=(*lines, *self._what_is_no_permit()),
        )

    def _what_is_no_permit(self) -> Iterable[str]:
        (value,), _ = self._table.read(self._case.keys[:1])
        if value is not None and not any(each.target == self._case.client for each in self._permits):
            yield f"{self._case.client}: what stands there is no permit, and is not honoured"

    def _left_of(self, each: Candidate) -> str:
        left = self._left[each.key]
        return f"{_text(each.key)} has no end" if left == NO_END else left_text(left / 1000)

    def _refusal_of(self, each: Candidate) -> str:
        refusals = (step.refusal for step in self._trace if step.of == each and step.refusal)
        refusal = next(refusals, None)
        return f" ({refusal.reason})" if refusal else ""

    def _logins_row(self, others: Sequence[Entry], more: int | None) -> Row:
        """The login that is followed, or the last one; and who else is behind the address, a line each."""
        table, client = self._table, self._case.client
        lines = [f"also {login_text(table, entry.record, entry.left)}" for entry in others]
        if more is None:
            lines.append(f"who else is logged in from there cannot be listed: {printable(self._trouble)}")
        elif more:
            lines.append(f"and {more} more")
        details = tuple(lines)
        if self._login:
            left = self._left[self._login.key]
            saw = login_text(table, self._login.record, None if left < 0 else left / 1000)
            return Row("logins", "pass", saw, details=details)
        saw = f"nobody has logged in from {client}, or it is too long ago"
        if self._followed or self._decision.reason != "no_login":
            return Row("logins", "pass", saw, details=details)
        permit = command_line("pbs-policy", "permit", about=client)
        change = f"log in to POP3 or IMAP from {client}, or `{permit}`"
        deny = self._deny_of_a_stranger()
        if deny:  # which the service need not look for where nobody is logged in
            details, change = (*details, f"besides, {deny.saw}"), f"{deny.change}, and then {change}"
        return Row("logins", "refuse", saw, change, "no_login", details)

    def _deny_of_a_stranger(self) -> Row | None:
        against = carry_out(read_against(self._case, ()), self._table.ask)
        return self._denies(Step("denies", None, DENIED, against)) if against.is_address_denied else None

    def _senders(self, step: Step) -> Row:
        case, each = self._case, step.of
        match, sender = case.rules.senders.match, first(case.request, b"sender")
        shown = _text(sender) or "the null sender"
        if each and each.permit:
            senders = ", ".join(map(printable, each.permit.senders))
            change = f"give the permit for {each.target} anew with {shown} among its senders"
            return _row(step, f"{shown} sends, the permit is for {senders or 'any sender'}", change)
        if case.names is None:
            setting = "sender_match = off" if match == "off" else "null_sender = permit"
            return _row(step, f"{shown} sends, {setting}")
        if each:
            user = printable(each.record.user)
            return _row(step, f"{shown} sends, {user} is logged in (sender_match = {match})")
        names, logged_in = case.names, self._users()
        users = ", ".join(map(printable, logged_in[:3])) + (", ..." if len(logged_in) > 3 else "")
        looked_for = f", looked for {', '.join(map(_text, names))}" if names else ", whom no user can match"
        saw = f"{shown} sends{looked_for}; logged in: {users or 'nobody by name'} (sender_match = {match})"
        return _row(step, saw, self._admit(sender))

    def _users(self) -> list[str]:
        """Those logged in from the address, as far as they are known."""
        users = [entry.record.user for entry in self._entries if entry.record.user]
        last = self._last.record.user if self._last else ""
        return [last, *users] if last and last not in users else users

    def _admit(self, sender: bytes) -> str:
        """What lets a sender pass whom nobody who is logged in may use."""
        off, names, users = "set sender_match = off", self._case.names or (), self._users()
        if not sender:
            return f"set null_sender = permit, or {off}"
        if not names:
            return f"have the client send from a full address such as alice@example.com, or {off}"
        if not users:
            return f"record logins by the post-login script, which knows their users, or {off}"
        user_domain = self._case.rules.senders.user_domain
        if any(not set(names).isdisjoint(names_of_user(_bytes(user), user_domain)) for user in users):
            # Of this domain, and not found under it: only a script that is told so records domains.
            script = "let the post-login script read sender_match = domain too, in the settings file"
            return f"{script}; the next login counts"
        user, entry, maps = users[0], _maps_entry(sender), self._maps
        if not entry or _text(_bytes(user)) != user or any(letter in user for letter in ', "'):
            return f"have the client send as {printable(user)}, or {off}"
        if maps is None:
            return f"set sender_maps to a file with the line `{entry} {user}`, or {off}"
        if maps.users([sender.lower()]):
            return f"add {user} to the line of {entry} in {maps.file} (sender_maps), or {off}"
        return f"add the line `{entry} {user}` to {maps.file} (sender_maps), or {off}"

    def _services(self, step: Step) -> Row:
        services = " ".join(sorted(self._case.rules.services))
        setting = f"services = {services}" if services else "any service counts"
        if not step.of or step.of.permit:
            return _row(step, "a permit needs no login")
        service = step.of.record.service
        change = (
            f"add {service} to services, where the post-login script reads them too, or log in by one of {services}"
            if service
            else "record logins by the post-login script, which knows their service, or empty services"
        )
        return _row(step, f"logged in by {service or 'a service not recorded'}, {setting}", change)

    def _domains(self, step: Step) -> Row:
        domains = " ".join(sorted(map(_text, self._case.rules.login_domains)))
        setting = f"login_domains = {domains}" if domains else "users of any domain count"
        if not step.of or step.of.permit:
            return _row(step, "a permit needs no login")
        user = step.of.user
        domain = _text(domain_of(user))
        change = (
            f"if {domain} is a domain of yours, add it to login_domains, where the post-login script reads it too"
            if domain
            else "set user_domain, which completes users without a domain"
            if user
            else "record logins by the post-login script, which knows their users, or empty login_domains"
        )
        return _row(step, f"{_text(user) or 'a user not recorded'} is logged in, {setting}", change)

    def _recipients(self, step: Step) -> Row:
        domains = step.of.permit.recipient_domains if step.of and step.of.permit else ()
        if not step.of or not domains:
            return _row(step, "any recipient")
        recipient = first(self._case.request, b"recipient")
        domain = _text(recipient.rpartition(b"@")[2]) if b"@" in recipient else "the recipient's domain"
        saw = f"to {_text(recipient) or 'nobody named'}, the permit is for {', '.join(map(printable, domains))}"
        change = f"give the permit for {step.of.target} anew with {domain} among its recipient domains"
        return _row(step, saw, change)

    def _require_tls(self, step: Step) -> Row:
        if not self._case.rules.require_tls:
            return _row(step, "require_tls = no")
        version = first(self._case.request, b"encryption_protocol")
        saw = f"require_tls = yes, the session is {'encrypted' if version else 'not encrypted'}"
        return _row(step, saw, "have the client use STARTTLS, or set require_tls = no")

    def _user(self, step: Step) -> Row:
        each = step.of
        if each is None or each.permit or each.user:
            return _row(step, _text(each.user) if each and each.user else "none recorded")
        why = "a cap counts users" if self._case.rules.user_cap else "a user is denied, who could be this one"
        saw = f"the login does not say whose it is, and {why}" if step.refusal else "none recorded"
        return _row(step, saw, "record logins by the post-login script, which knows their users")

    def _denies(self, step: Step) -> Row:
        keys = self._table.keys
        return self._deny_row(step, (keys.deny_prefix, keys.auto_deny_prefix))

    def _user_denies(self, step: Step) -> Row:
        of_file = [deny for user in sorted(step.saw.users) if (deny := self._of_file(user))]
        return self._deny_row(step, (self._table.keys.deny_user_prefix,), of_file)

    def _of_file(self, user: bytes) -> FileDeny | None:
        return self._case.denies.of_user(user) if self._case.denies else None

    def _deny_row(self, step: Step, prefixes: tuple[bytes, ...], of_file: Sequence[FileDeny] = ()) -> Row:
        """The denies that were looked for, or those that refuse."""
        against: Against = step.saw
        if step.refusal is not None and step.refusal.reason == SENDER_UNCERTAIN.reason:
            sender = _text(first(self._case.request, b"sender"))
            saw = f"a user is denied, and {sender} could be another spelling of their name"
            return _row(step, saw, "have the client send from a full address such as alice@example.com")
        asked = [
            (_without(prefixes, key), key, value)
            for key, value in zip(against.asked, against.values, strict=True)
            if key.startswith(prefixes)
        ]
        asked.sort(key=lambda each: (each[0] == EVERYBODY, each[0]))
        if step.refusal is None:
            names = dict.fromkeys(name for name, _, _ in asked)
            return _row(step, f"none against {', '.join(names)}" if names else "no user to deny")
        everybody = self._table.keys.deny_everybody
        named = write_user_name if step.rule == "user denies" else str
        found = [(name, key, value) for name, key, value in asked if value is not None]
        left = self._read_left([key for _, key, _ in found])
        said = [
            f"{'everybody' if key == everybody else name} is denied: {_text(value) or 'no reason given'}, "
            f"{_left_of_deny(left[key])}"
            for name, key, value in found
        ]
        allowed = dict.fromkeys(
            "pbs-policy undeny --all" if key == everybody else command_line("pbs-policy", "undeny", about=named(name))
            for name, key, _ in found
        )
        said += map(_file_deny_text, of_file)
        changes = [*(f"`{each}`" for each in allowed), *map(_taking_out, of_file)]
        return _row(step, "; ".join(said), " and ".join(changes))

    def _end(self, step: Step) -> Row:
        if step.of is None:
            return _row(step, "")
        left, key = step.saw.left[step.of.key], _text(step.of.key)
        if left == NO_END:
            revoke = f"`{command_line('pbs-policy', 'revoke', about=step.of.target)}`"
            change = f"{revoke}, and have whatever wrote {key} give it an end (SET ... EX)"
            return _row(step, f"{key} has none, and is not honoured", change)
        return _row(step, left_text(left / 1000) if left > 0 else f"{key} has just ended", "log in again")

    def _caps(self, step: Step) -> Row:
        counts: list[Count] = step.saw[0]
        verdict: Verdict = step.saw[1]
        looked_at = list(zip(counts, verdict.sizes, verdict.left, strict=True))
        saw = "; ".join(_count_text(*each) for each in looked_at)
        full = [(count, left) for count, size, left in looked_at if size >= count.cap.limit]
        return _row(step, saw, " and ".join(_raise_cap(count, left, step.of) for count, left in full))


def login_text(table: LoginTable, record: Record, left: float | None) -> str:
    """`alice@example.com (pop3, by script) 5m ago, 25m left`; `left` is seconds, None for a key without an end."""
    since = format_duration(table.now() - record.login_at)
    return f"{printable(record.user) or 'no user recorded'} ({record.how}) {since} ago, {left_text(left)}"


def left_text(left: float | None) -> str:
    """How long it lasts, in words; None for what has no end."""
    return "no end" if left is None else f"{format_duration(left)} left"


def _row(step: Step, saw: str, change: str = "") -> Row:
    if step.refusal is None:
        return Row(step.rule, "pass", saw)
    return Row(step.rule, "refuse", saw, change, step.refusal.reason)


def _address(client: ClientAddress) -> Row:
    if not client.excluded:
        return Row("address", "pass", client.text)
    change = _EXCLUDED.get(client.excluded, _NOT_A_CLIENT)
    return Row("address", "refuse", f"{client.text} may never relay: {client.excluded}", change, client.excluded)


def _file_deny(deny: FileDeny, decision: Decision) -> Row:
    return Row("denies", "refuse", _file_deny_text(deny), _taking_out(deny), decision.reason)


def _file_deny_text(deny: FileDeny) -> str:
    return f"{printable(deny.target)} is denied: {deny.reason or 'no reason given'}, {deny.place}"


def _taking_out(deny: FileDeny) -> str:
    file, _, line = deny.place.rpartition(":")
    return f"take line {line} out of {file}"


def _without(prefixes: tuple[bytes, ...], key: bytes) -> str:
    return _text(next(key.removeprefix(each) for each in prefixes if key.startswith(each)))


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


def _maps_entry(sender: bytes) -> str:
    """A sender as sender_maps writes it; empty where that is not certain."""
    local_part, _, domain = sender.rpartition(b"@")
    quoted = b'"' + local_part.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"@' + domain
    for entry in (sender, quoted):
        try:
            if unquote_sender(entry) == sender and _text(entry).encode() == entry:
                return _text(entry)
        except ValueError:
            continue
    return ""


def _left_of_deny(left: int) -> str:
    return "it has just ended" if left == GONE else left_text(None if left == NO_END else left / 1000)


def _count_text(count: Count, size: int, left: int) -> str:
    ends = "" if left == GONE else ", the period ends in " + format_duration(left / 1000)
    return f"{printable(count.what)}: {size} of {count.cap} recipients{ends}"


def _raise_cap(count: Count, left: int, each: Candidate | None) -> str:
    if each and each.permit and each.permit.cap:
        larger = f"give the permit for {each.target} anew with a larger cap"
    else:
        larger = f"raise max_recipients_per_{'address' if count.is_address else 'user'}"
    return f"wait {format_duration(left / 1000)}, or {larger}"


def _text(value: bytes) -> str:
    return printable(value.decode("utf-8", "replace"))


def _bytes(user: str) -> bytes:
    return user.encode("utf-8", "surrogateescape")
