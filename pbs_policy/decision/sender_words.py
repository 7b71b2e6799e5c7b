"""The sender of a decision in words: whom it was looked for as, and what lets it pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pbs_policy.decision.case import Case
from pbs_policy.decision.row import Row, row
from pbs_policy.decision.rules import Step
from pbs_policy.decision.sender import justifies, names_to_match, shown, unquote_sender
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.log import printable
from pbs_policy.postfix.protocol import first
from pbs_policy.table.listing import encode
from pbs_policy.table.users import names_of_user

_NAME_ONE = "name the sender, such as --sender alice@example.com"


def is_sender_given(case: Case) -> bool:
    """Whether the request names a sender: Postfix's always do, an administrator's question may leave it out."""
    return b"\nsender=" in case.request


def senders(case: Case, maps: SenderMaps | None, users: Sequence[str], step: Step) -> Row:
    """`users` are those who are logged in from the address, as far as they are known."""
    match, sender, each = case.rules.senders.match, first(case.request, b"sender"), step.of
    is_given = is_sender_given(case)
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
