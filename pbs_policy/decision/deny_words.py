"""The denies of a decision in words: which were looked for; or which refuse, why, how long, and what ends each."""

from __future__ import annotations

from collections.abc import Sequence

from pbs_policy.command_line import command_line
from pbs_policy.decision.against import Against, read_against
from pbs_policy.decision.case import Case
from pbs_policy.decision.denies import FileDeny
from pbs_policy.decision.row import Row, left_text, row
from pbs_policy.decision.rules import DENIED, DENIED_USER, SENDER_UNCERTAIN, Decision, Step
from pbs_policy.decision.sender import shown
from pbs_policy.log import printable
from pbs_policy.postfix.protocol import first
from pbs_policy.store.question import carry_out
from pbs_policy.table.keys import EVERYBODY, GONE, NO_END
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.users import write_user_name


def row_of(table: LoginTable, case: Case, step: Step) -> Row:
    """The row of a rule on denies: those of the address, a network that holds it, and everybody; or those of the user
    whose permission it is, and of the sender."""
    if step.rule == "denies":
        return _row(table, step, (table.keys.deny_prefix, table.keys.auto_deny_prefix))
    if step.refusal is not None and step.refusal.reason == SENDER_UNCERTAIN.reason:
        sender = shown(first(case.request, b"sender"))
        saw = f"a user is denied, and {sender} could be another spelling of their name"
        return row(step, saw, "have the client send from a full address such as alice@example.com")
    of_file = [deny for user in sorted(step.saw.users) if case.denies and (deny := case.denies.of_user(user))]
    return _row(table, step, (table.keys.deny_user_prefix,), of_file)


def deny_of_a_stranger(table: LoginTable, case: Case) -> Row | None:
    """The deny that stands against an attempt without login and permit. The service need not look for one; who wants
    to permit the client has to."""
    against = carry_out(read_against(case, ()), table.ask)
    if against.is_address_denied:
        return row_of(table, case, Step("denies", None, DENIED, against))
    if against.is_sender_denied:
        return row_of(table, case, Step("user denies", None, DENIED_USER, against))
    return None


def _row(table: LoginTable, step: Step, prefixes: tuple[bytes, ...], of_file: Sequence[FileDeny] = ()) -> Row:
    """The denies that were looked for, or those that refuse."""
    against: Against = step.saw
    asked = [
        (_without(prefixes, key), key, value)
        for key, value in zip(against.asked, against.values, strict=True)
        if key.startswith(prefixes)
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


def file_deny(deny: FileDeny, decision: Decision) -> Row:
    """A line of the file of denies that refuses the address without a question to the table."""
    return Row("denies", "refuse", _line(deny), _taking_out(deny), decision.reason)


def _line(deny: FileDeny) -> str:
    return f"{printable(deny.target)} is denied: {deny.reason or 'no reason given'}, {deny.place}"


def _taking_out(deny: FileDeny) -> str:
    file, _, line = deny.place.rpartition(":")
    return f"take line {line} out of {file}"


def _left(left: int) -> str:
    return "it has just ended" if left == GONE else left_text(None if left == NO_END else left / 1000)


def _without(prefixes: tuple[bytes, ...], key: bytes) -> str:
    return shown(next(key.removeprefix(each) for each in prefixes if key.startswith(each)))
