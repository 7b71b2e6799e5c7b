"""One rule of a decision in words: what it saw, whether it refuses, and what an administrator can change. The rows of
the rules on denies and on senders stand here, all others and their order in `words`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from pbs_policy.command_line import command_line
from pbs_policy.decision.against import Against, read_against
from pbs_policy.decision.case import Case
from pbs_policy.decision.denies import FileDeny
from pbs_policy.decision.rules import DENIED, DENIED_USER, SENDER_UNCERTAIN, Decision, Step
from pbs_policy.decision.sender import justifies, names_to_match, shown, unquote_sender
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.duration import ago_at, format_duration
from pbs_policy.log import printable
from pbs_policy.postfix.protocol import first
from pbs_policy.store.question import carry_out
from pbs_policy.table.keys import EVERYBODY, GONE, NO_END
from pbs_policy.table.listing import encode
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.records import Record
from pbs_policy.table.users import names_of_user, write_user_name

_NAME_ONE = "name the sender, such as --sender alice@example.com"


class Row(NamedTuple):
    """What one rule saw and decided. `pass`: it does not stand in the way; `not asked`: one before it has refused.
    `change` is what lets it pass, `reason` the decision's for the refusal; `details` is one line each."""

    rule: str
    verdict: Literal["pass", "refuse", "not asked"]
    saw: str
    change: str = ""
    reason: str = ""
    details: tuple[str, ...] = ()


def row(step: Step, saw: str, change: str = "") -> Row:
    """The row of a rule: what it saw, and where it refuses what to change."""
    if step.refusal is None:
        return Row(step.rule, "pass", saw)
    return Row(step.rule, "refuse", saw, change, step.refusal.reason)


def login_text(table: LoginTable, record: Record, left: float | None) -> str:
    """`alice@example.com (pop3, by script) 5m ago, 10:02, 25m left`; `left` is seconds, None for a key without an
    end."""
    since = ago_at(record.login_at, table.now())
    return f"{printable(record.user) or 'no user recorded'} ({record.how}) {since}, {left_text(left)}"


def left_text(left: float | None) -> str:
    """How long it lasts, in words; None for what has no end."""
    return "no end" if left is None else f"{format_duration(left)} left"


# --- denies: which were looked for; or which refuse, why, how long, and what ends each


def deny_row(table: LoginTable, case: Case, step: Step) -> Row:
    """The row of a rule on denies: those of the address, a network that holds it, and everybody; or those of the user
    whose permission it is, and of the sender."""
    if step.rule == "denies":
        return _denies_row(table, step, (table.keys.deny_prefix, table.keys.auto_deny_prefix))
    if step.refusal is not None and step.refusal.reason == SENDER_UNCERTAIN.reason:
        sender = shown(first(case.request, b"sender"))
        saw = f"a user is denied, and {sender} could be another spelling of their name"
        return row(step, saw, "have the client send from a full address such as alice@example.com")
    of_file = [deny for user in sorted(step.saw.users) if case.denies and (deny := case.denies.of_user(user))]
    return _denies_row(table, step, (table.keys.deny_user_prefix,), of_file)


def deny_of_a_stranger(table: LoginTable, case: Case) -> Row | None:
    """The deny that stands against an attempt without login and permit. The service need not look for one; who wants
    to permit the client has to."""
    against = carry_out(read_against(case, ()), table.ask)
    if against.is_address_denied:
        return deny_row(table, case, Step("denies", None, DENIED, against))
    if against.is_sender_denied:
        return deny_row(table, case, Step("user denies", None, DENIED_USER, against))
    return None


def _denies_row(table: LoginTable, step: Step, prefixes: tuple[bytes, ...], of_file: Sequence[FileDeny] = ()) -> Row:
    """The denies that were looked for, or those that refuse."""
    against: Against = step.saw
    asked = [
        (shown(key.removeprefix(prefix)), key, value)
        for key, value in zip(against.asked, against.values, strict=True)
        for prefix in prefixes
        if key.startswith(prefix)
    ]
    asked.sort(key=lambda each: (each[0] == EVERYBODY, each[0]))
    if step.refusal is None:
        names = dict.fromkeys(name for name, _, _ in asked)
        return row(step, f"none against {', '.join(names)}" if names else "no user to deny")
    everybody = table.keys.deny_everybody
    named = write_user_name if step.rule == "user denies" else str
    found = [(name, key, value) for name, key, value in asked if value is not None]
    _, left = table.read((), [key for _, key, _ in found])
    said = [
        f"{'everybody' if key == everybody else name} is denied: {shown(value) or 'no reason given'}, {_left(time)}"
        for (name, key, value), time in zip(found, left, strict=True)
    ]
    ends = dict.fromkeys(
        "pbs-policy undeny --all" if key == everybody else command_line("pbs-policy", "undeny", about=named(name))
        for name, key, _ in found
    )
    changes = [*(f"`{each}`" for each in ends), *map(_taking_out, of_file)]
    return row(step, "; ".join([*said, *map(_line, of_file)]), " and ".join(changes))


def file_deny_row(deny: FileDeny, decision: Decision) -> Row:
    """A line of the file of denies that refuses the address without a question to the table."""
    return Row("denies", "refuse", _line(deny), _taking_out(deny), decision.reason)


def _line(deny: FileDeny) -> str:
    return f"{printable(deny.target)} is denied: {deny.reason or 'no reason given'}, {deny.place}"


def _taking_out(deny: FileDeny) -> str:
    file, _, line = deny.place.rpartition(":")
    return f"take line {line} out of {file}"


def _left(left: int) -> str:
    return "it has just ended" if left == GONE else left_text(None if left == NO_END else left / 1000)


# --- the sender: whom it was looked for as, and what lets it pass


def sender_row(case: Case, maps: SenderMaps | None, users: Sequence[str], step: Step) -> Row:
    """`users` are those who are logged in from the address, as far as they are known."""
    match, sender, each = case.rules.senders.match, first(case.request, b"sender"), step.of
    is_given = b"\nsender=" in case.request  # Postfix's have it, an administrator's question may not
    sends = f"{shown(sender) or 'the null sender'} sends" if is_given else "no sender given"
    if each and each.permit:
        permitted = ", ".join(map(printable, each.permit.senders))
        change = f"give the permit for {each.target} anew with {shown(sender)} among its senders"
        return row(step, f"{sends}, the permit is for {permitted or 'any sender'}", change if sender else _NAME_ONE)
    if case.names is None:
        as_null = "" if is_given or match == "off" else " (as the null sender's)"
        setting = "sender_match = off" if match == "off" else "null_sender = permit"
        return row(step, f"{sends}, {setting}{as_null}")
    if each:
        return row(step, f"{sends}, {printable(each.record.user)} is logged in (sender_match = {match})")
    known = ", ".join(map(printable, users[:3])) + (", ..." if len(users) > 3 else "")
    looked_for = f", looked for {', '.join(map(shown, case.names))}" if case.names else ", whom no user can match"
    saw = f"{sends}{looked_for if is_given else ''}; logged in: {known or 'nobody by name'} (sender_match = {match})"
    return row(step, saw, _admit(case, maps, users, sender) if is_given else _NAME_ONE)


def _admit(case: Case, maps: SenderMaps | None, users: Sequence[str], sender: bytes) -> str:
    """What lets a sender pass whom nobody who is logged in may use."""
    off, names = "set sender_match = off", case.names or ()
    if not sender:
        return f"set null_sender = permit, or {off}"
    if not names:
        return f"have the client send from a full address such as alice@example.com, or {off}"
    if not users:
        return f"record logins by the post-login script, which knows their users, or {off}"
    user_domain = case.rules.senders.user_domain
    if any(not set(names).isdisjoint(names_of_user(encode(user), user_domain)) for user in users):
        # Of this domain, and not found under it: only a script that is told so records domains.
        script = "let the post-login script read sender_match = domain too, in the settings file"
        return f"{script}; the next login counts"
    folding = replace(case.rules.senders, batv="fold")
    folded = names_to_match(sender, folding, maps)
    if any(justifies(folded, encode(user), folding) for user in users):
        return f"set batv = fold, which takes the sender's tag off, or {off}"
    user, entry = users[0], _maps_entry(sender)
    if not entry or shown(encode(user)) != user or any(letter in user for letter in ', "'):
        return f"have the client send as {printable(user)}, or {off}"
    if maps is None:
        return f"set sender_maps to a file with the line `{entry} {user}`, or {off}"
    if maps.users([sender.lower()]):
        return f"add {user} to the line of {entry} in {maps.file} (sender_maps), or {off}"
    return f"add the line `{entry} {user}` to {maps.file} (sender_maps), or {off}"


def _maps_entry(sender: bytes) -> str:
    """A sender as sender_maps writes it; empty where that is not certain."""
    local_part, _, domain = sender.rpartition(b"@")
    quoted = b'"' + local_part.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"@' + domain
    for entry in (sender, quoted):
        try:
            if unquote_sender(entry) == sender and shown(entry).encode() == entry:
                return shown(entry)
        except ValueError:
            continue
    return ""
