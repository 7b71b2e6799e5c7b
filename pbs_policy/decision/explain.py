"""Why the service would answer a relay attempt as it would, rule by rule, for `pbs-policy check`.

The answer is `check.check`'s. The steps follow one permission through the rules: the one that is the answer, or whose
refusal is. Everything is read once, so answer and steps are of the same moment. Nothing is counted, nothing written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pbs_policy.address import ClientAddress
from pbs_policy.decision import policy
from pbs_policy.decision.case import Candidate, Case, find_permissions
from pbs_policy.decision.check import check, make_case
from pbs_policy.decision.policy import Decision, Rules
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.decision.steps import Seen, Step, in_order, login_text, nothing_left, steps_of
from pbs_policy.log import printable
from pbs_policy.postfix.protocol import Request, first
from pbs_policy.store.question import Answer, Command, Question
from pbs_policy.table.login_table import Entry, LoginTable, StoreUnavailable
from pbs_policy.table.records import Permit, parse_record
from pbs_policy.table.users import complete_user

MOST_OTHERS = 10
"""Users behind an address who are named; of the rest their number."""

ORDER = (
    "address", "permits", "logins", "senders", "services", "recipients", "require_tls", "denies", "end",
    "user denies", "caps", "observe_only", "answer",
)  # fmt: skip
"""The rules, as they are asked."""

_EXCLUDED = {
    "never_record": "take its network out of never_record, for the post-login script too",
    "loopback": "nothing: let a webmail submit by SMTP AUTH, or list the mail host in mynetworks",
}
_NOT_A_CLIENT = "nothing: no client comes from there; have its own address passed on (PROXY protocol, XCLIENT)"


class Explanation(NamedTuple):
    """The decision, and one step for each rule of ORDER. `others` are further users logged in from the address, the
    latest first, at most MOST_OTHERS; `more` is how many besides, None where Redis does not let us list them."""

    client: ClientAddress
    decision: Decision
    steps: tuple[Step, ...]
    others: tuple[Entry, ...] = ()
    more: int | None = 0


def explain(
    table: LoginTable, rules: Rules, client: ClientAddress, request: Request, maps: SenderMaps | None = None
) -> Explanation:
    """What the service would answer `client` now to `request`, and what each rule saw.

    Raises StoreUnavailable, and ProtocolError where `request` names an attribute twice that counts.
    """
    once = _ReadOnce(table, rules.senders.user_domain)
    decision = check(once, rules, client, request, maps)
    if client.excluded:
        return Explanation(client, decision, _steps_of_excluded(client, decision))
    case = make_case(once, rules, client, request, maps)
    found, _ = once.read(case.keys)
    last = parse_record(found[1]) if found[1] is not None else None
    entries, trouble = _logins(once, client)
    users = [entry.record.user for entry in entries if entry.record.user]
    if last and last.user and last.user not in users:
        users.insert(0, last.user)
    seen = Seen(once, case, maps, last, users)
    held = _permissions(once, case, found)
    ways = [(each, steps_of(seen, each)) for each in held]
    followed, way = next(
        ((each, way) for each, way in ways if _outcome(each, way) == decision.reason), (None, steps_of(seen, None))
    )
    others = [entry for entry in entries if once.name(entry.record.user) != _shown_user(once, followed, seen)]
    shown = tuple(others[:MOST_OTHERS])
    more = None if trouble else len(others) - len(shown)
    login = _login(seen, followed)._replace(details=_others_in_words(seen, shown, more, trouble))
    steps = in_order([_address(client), _permits(case, found[0], ways), login, *way, _observe_only(rules)])
    return Explanation(client, decision, (*steps, _answer(decision)), shown, more)


class _ReadOnce(LoginTable):
    """The table as it is when first asked: what was read once is not read again."""

    def __init__(self, table: LoginTable, user_domain: str) -> None:
        super().__init__(table.redis, table.keys.prefix.decode(), user_domain=user_domain, now=table.now)
        self._values: dict[bytes, bytes | None] = {}
        self._replies: dict[Command, Any] = {}

    def ask(self, question: Question) -> Answer:
        keys = [key for key in question.keys if key not in self._values]
        commands = [command for command in question.commands if command not in self._replies]
        if keys or commands:
            answer = super().ask(Question(keys, commands))
            self._values.update(zip(keys, answer.values, strict=True))
            self._replies.update(zip(commands, answer.replies, strict=True))
        replies = [self._replies[command] for command in question.commands]
        return Answer([self._values[key] for key in question.keys], replies)


def _permissions(table: LoginTable, case: Case, found: list[bytes | None]) -> list[Candidate]:
    """What the decision finds, and last the sender's own login, which it asks for where the last user is denied."""
    _, held = find_permissions(case, found)
    own = complete_user(first(case.request, b"sender"), case.rules.senders.user_domain)
    if own and own not in {each.user for each in held}:
        key = case.table_keys.login(case.client, own)
        (value,), _ = table.read([key])
        if value is not None and parse_record(value):
            held.append(Candidate(key, case.client, value, own))
    return held


def _outcome(each: Candidate, way: list[Step]) -> str:
    """The decision's reason, were there no other permission."""
    refused = next((step.reason for step in way if step.verdict == "refuse"), "")
    return refused or ("permit" if each.permit else "login")


def _logins(table: LoginTable, client: ClientAddress) -> tuple[list[Entry], str]:
    """The users logged in from the address, the latest first; and why they cannot be listed, where that is so: the
    service's own ACL user may read what is asked for by name, and not SCAN."""
    try:
        entries = [entry for entry in table.entries(client.text) if entry.kind == "login"]
    except StoreUnavailable as error:
        return [], str(error)
    return sorted(entries, key=lambda entry: (-entry.record.login_at, entry.record.user)), ""


def _shown_user(table: LoginTable, followed: Candidate | None, seen: Seen) -> bytes | None:
    """Whose login the step on logins is about."""
    record = followed.record if followed and not followed.permit else seen.last
    return table.name(record.user) if record else None


def _address(client: ClientAddress) -> Step:
    if not client.excluded:
        return Step("address", "pass", client.text)
    change = _EXCLUDED.get(client.excluded, _NOT_A_CLIENT)
    return Step("address", "refuse", f"{client.text} may never relay: {client.excluded}", change, client.excluded)


def _steps_of_excluded(client: ClientAddress, decision: Decision) -> tuple[Step, ...]:
    rest = [Step(rule, "not asked", "") for rule in ORDER[1:-1]]
    return (_address(client), *rest, _answer(decision))


def _permits(case: Case, value: bytes | None, ways: list[tuple[Candidate, list[Step]]]) -> Step:
    lines = [
        f"{each.target}: {_permit_text(each.permit)}; {_left_of(way)}{_refusal_of(each, way)}"
        for each, way in ways
        if each.permit
    ]
    looked_for = ", ".join((case.client, *case.networks))
    saw = f"{len(lines)} of {looked_for}" if lines else f"none for {looked_for}"
    if value is not None and not any(each.permit and each.target == case.client for each, _ in ways):
        lines.append(f"{case.client}: what stands there is no permit, and is not honoured")
    return Step("permits", "pass", saw, details=tuple(lines))


def _permit_text(permit: Permit) -> str:
    parts = [
        f"for {permit.user}" if permit.user else "",
        f"senders {', '.join(permit.senders)}" if permit.senders else "",
        f"recipients in {', '.join(permit.recipient_domains)}" if permit.recipient_domains else "",
        f"cap {permit.cap}" if permit.cap else "",
        permit.note,
    ]
    return printable("; ".join(part for part in parts if part) or "no conditions")


def _left_of(way: list[Step]) -> str:
    return next(step.saw for step in way if step.rule == "end")


def _refusal_of(each: Candidate, way: list[Step]) -> str:
    outcome = _outcome(each, way)
    return "" if outcome in ("permit", "login") else f" ({outcome})"


def _login(seen: Seen, followed: Candidate | None) -> Step:
    """The login that is followed, or the last one."""
    login = followed if followed and not followed.permit else None
    record, key = (login.record, login.key) if login else (seen.last, seen.case.keys[1])
    if record is not None:
        _, (left,) = seen.table.read((), [key])
        return Step("logins", "pass", login_text(seen, record, None if left < 0 else left / 1000))
    client = seen.case.client
    saw = f"nobody has logged in from {client}, or it is too long ago"
    if followed or nothing_left(seen) != "no_login":
        return Step("logins", "pass", saw)
    change = f"log in to POP3 or IMAP from {client}, or `pbs-policy permit {client}`"
    return Step("logins", "refuse", saw, change, "no_login")


def _others_in_words(seen: Seen, others: tuple[Entry, ...], more: int | None, trouble: str) -> tuple[str, ...]:
    """Who else is behind the address, a line each."""
    lines = [f"also {login_text(seen, entry.record, entry.left)}" for entry in others]
    if more is None:
        lines.append(f"who else is logged in from there cannot be listed: {printable(trouble)}")
    elif more:
        lines.append(f"and {more} more")
    return tuple(lines)


def _observe_only(rules: Rules) -> Step:
    if rules.observe_only:
        return Step("observe_only", "refuse", "observe_only = yes: DUNNO always", "set observe_only = no")
    return Step("observe_only", "pass", "observe_only = no")


def _answer(decision: Decision) -> Step:
    if decision.action == policy.OK:
        return Step("answer", "pass", "OK: Postfix accepts the recipient")
    saw = f"{decision.action}: Postfix goes on to its next restriction, reject_unauth_destination"
    return Step("answer", "refuse", saw, reason=decision.reason)
