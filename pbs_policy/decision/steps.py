"""The rules of the decision in words: what each sees of one permission, whether it refuses it, and what an
administrator can change. Whether a rule refuses is asked of `policy`; only the words are from here.

In the order of the decision; `explain` says which permission is followed, and what stands before and behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pbs_policy.address import networks_of
from pbs_policy.decision import policy
from pbs_policy.decision.caps import Count
from pbs_policy.decision.case import Candidate, Case
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.decision.senders import unquote_sender
from pbs_policy.duration import format_duration
from pbs_policy.log import printable
from pbs_policy.postfix.protocol import first
from pbs_policy.store.question import Question, carry_out
from pbs_policy.table.keys import EVERYBODY, GONE, NO_END
from pbs_policy.table.login_table import Deny, LoginTable
from pbs_policy.table.networks import parse_lengths
from pbs_policy.table.records import Record
from pbs_policy.table.users import names_of_user

Verdict = Literal["pass", "refuse", "not asked"]


class Step(NamedTuple):
    """What one rule saw and decided. `pass`: it does not stand in the way; `not asked`: one before it has refused.
    `change` is what lets it pass, `reason` the decision's for the refusal; `details` is one line each."""

    rule: str
    verdict: Verdict
    saw: str
    change: str = ""
    reason: str = ""
    details: tuple[str, ...] = ()


class Seen(NamedTuple):
    """What a relay attempt is judged by. `users` are those logged in from the address, as far as they are known."""

    table: LoginTable
    case: Case
    maps: SenderMaps | None
    last: Record | None
    users: Sequence[str]


def steps_of(seen: Seen, each: Candidate | None) -> list[Step]:
    """What the rules say of a permission, or of there being none, in the order in which they are asked."""
    refusal = policy.refuse(seen.case, each) if each else None
    reason = refusal.reason if refusal else ""
    return in_order([
        _senders(seen, each, reason), _services(seen, each, reason), _recipients(seen, each, reason),
        _tls(seen, reason), _denies(seen), _end(seen, each), _user_denies(seen, each), _caps(seen, each),
    ])  # fmt: skip


def in_order(steps: Sequence[Step]) -> list[Step]:
    """The same steps, where nothing is asked any more after the first that refuses."""
    refused = next((at for at, step in enumerate(steps) if step.verdict == "refuse"), len(steps))
    rest = [Step(step.rule, "not asked", step.saw, details=step.details) for step in steps[refused + 1 :]]
    return [*steps[: refused + 1], *rest]


def login_text(seen: Seen, record: Record, left: float | None) -> str:
    """`alice@example.com (pop3) 5m ago, 25m left`; `left` is seconds, None for a key without an end."""
    since = format_duration(seen.table.now() - record.login_at)
    user, service = printable(record.user) or "no user recorded", record.service or "service not recorded"
    return f"{user} ({service}) {since} ago, {left_text(left)}"


def left_text(left: float | None) -> str:
    """How long it lasts, in words; None for what has no end."""
    return "no end" if left is None else f"{format_duration(left)} left"


def _step(rule: str, saw: str, refuses: bool = False, change: str = "", reason: str = "") -> Step:
    return Step(rule, "refuse", saw, change, reason) if refuses else Step(rule, "pass", saw)


def _senders(seen: Seen, each: Candidate | None, refused: str) -> Step:
    request, names, match = seen.case.request, seen.case.names, seen.case.rules.senders.match
    sender = first(request, b"sender")
    shown = _text(sender) or "the null sender"
    if each and each.permit:
        senders = ", ".join(map(printable, each.permit.senders))
        return _step(
            "senders",
            f"{shown} sends, the permit is for {senders or 'any sender'}",
            refused == "sender_mismatch",
            f"give the permit for {each.target} anew with {shown} among its senders",
            "sender_mismatch",
        )
    if names is None:
        setting = "sender_match = off" if match == "off" else "null_sender = permit"
        return _step("senders", f"{shown} sends, {setting}")
    if each:
        return _step("senders", f"{shown} sends, {printable(each.record.user)} is logged in (sender_match = {match})")
    users = ", ".join(map(printable, seen.users[:3])) + (", ..." if len(seen.users) > 3 else "")
    looked_for = f", looked for {', '.join(map(_text, names))}" if names else ", whom no user can match"
    saw = f"{shown} sends{looked_for}; logged in: {users or 'nobody by name'} (sender_match = {match})"
    return _step("senders", saw, seen.last is not None, _admit(seen, sender), "sender_mismatch")


def _admit(seen: Seen, sender: bytes) -> str:
    """What lets a sender pass whom nobody who is logged in may use."""
    off = "set sender_match = off"
    if not sender:
        return f"set null_sender = permit, or {off}"
    if not seen.case.names:
        return f"have the client send from a full address such as alice@example.com, or {off}"
    if not seen.users:
        return f"record logins by the post-login script, which knows their users, or {off}"
    user_domain = seen.case.rules.senders.user_domain
    if any(not set(seen.case.names).isdisjoint(names_of_user(_bytes(user), user_domain)) for user in seen.users):
        # Of this domain, and not found under it: only a script that is told so records domains.
        return "let the post-login script read sender_match = domain too, in the settings file; the next login counts"
    user, entry = seen.users[0], _maps_entry(sender)
    if not entry or _text(_bytes(user)) != user or any(letter in user for letter in ', "'):
        return f"have the client send as {printable(user)}, or {off}"
    if seen.maps is None:
        return f"set sender_maps to a file with the line `{entry} {user}`, or {off}"
    if seen.maps.users([sender.lower()]):
        return f"add {user} to the line of {entry} in {seen.maps.file} (sender_maps), or {off}"
    return f"add the line `{entry} {user}` to {seen.maps.file} (sender_maps), or {off}"


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


def _services(seen: Seen, each: Candidate | None, refused: str) -> Step:
    services = " ".join(sorted(seen.case.rules.services))
    setting = f"services = {services}" if services else "any service counts"
    if each is None:
        return _step("services", setting)
    if each.permit:
        return _step("services", "a permit needs no login")
    service = each.record.service
    change = (
        f"add {service} to services, where the post-login script reads them too, or log in by one of {services}"
        if service
        else "record logins by the post-login script, which knows their service, or empty services"
    )
    saw = f"logged in by {service or 'a service not recorded'}, {setting}"
    return _step("services", saw, refused == "service_mismatch", change, "service_mismatch")


def _recipients(seen: Seen, each: Candidate | None, refused: str) -> Step:
    domains = each.permit.recipient_domains if each and each.permit else ()
    if each is None or not domains:
        return _step("recipients", "any recipient")
    recipient = first(seen.case.request, b"recipient")
    domain = _text(recipient.rpartition(b"@")[2]) if b"@" in recipient else "the recipient's domain"
    return _step(
        "recipients",
        f"to {_text(recipient) or 'nobody named'}, the permit is for {', '.join(map(printable, domains))}",
        refused == "recipient_mismatch",
        f"give the permit for {each.target} anew with {domain} among its recipient domains",
        "recipient_mismatch",
    )


def _tls(seen: Seen, refused: str) -> Step:
    if not seen.case.rules.require_tls:
        return _step("require_tls", "require_tls = no")
    version = first(seen.case.request, b"encryption_protocol")
    return _step(
        "require_tls",
        f"require_tls = yes, the session is {'encrypted' if version else 'not encrypted'}",
        refused == "no_tls",
        "have the client use STARTTLS, or set require_tls = no",
        "no_tls",
    )


def _denies(seen: Seen) -> Step:
    keys, client = seen.case.table_keys, seen.case.client
    (lengths,), _ = seen.table.read([keys.deny_networks])
    targets = [client, *networks_of(client, parse_lengths(lengths)), EVERYBODY]
    found = _read_denies(seen, "address", targets, [keys.deny(target) for target in targets])
    return _deny_step("denies", ", ".join(targets), found, "denied")


def _user_denies(seen: Seen, each: Candidate | None) -> Step:
    if each is None:
        return _step("user denies", "")
    own, mapped = policy.sender_names(seen.case)
    users = list(dict.fromkeys([*([each.user] if each.user else []), *own, *mapped]))
    if not users:
        return _step("user denies", "no user to deny")
    texts = [user.decode("utf-8", "surrogateescape") for user in users]
    found = _read_denies(seen, "user", texts, [seen.case.table_keys.deny_user(user) for user in users])
    denied = {deny.target.encode("utf-8", "surrogateescape") for deny in found}
    if each.user not in denied and not policy.is_sender_denied(own, mapped, denied):
        found = []  # of several users with this sender, some
    return _deny_step("user denies", ", ".join(map(printable, texts)), found, "denied_user")


def _read_denies(seen: Seen, kind: str, targets: Sequence[str], keys: Sequence[bytes]) -> list[Deny]:
    values, ends = seen.table.read(keys, keys)
    return [
        Deny(kind, target, value.decode("utf-8", "replace"), None if left == NO_END else left / 1000)
        for target, value, left in zip(targets, values, ends, strict=True)
        if value is not None
    ]


def _deny_step(rule: str, looked_for: str, found: Sequence[Deny], reason: str) -> Step:
    if not found:
        return _step(rule, f"none against {looked_for}")
    saw = "; ".join(
        f"{printable(each.target)} is denied: {printable(each.reason) or 'no reason given'}, {left_text(each.left)}"
        for each in found
    )
    commands = " and ".join(f"`pbs-policy allow {printable(each.target)}`" for each in found)
    return _step(rule, saw, True, commands, reason)


def _end(seen: Seen, each: Candidate | None) -> Step:
    if each is None:
        return _step("end", "")
    _, (left,) = seen.table.read((), [each.key])
    key = printable(each.key.decode("utf-8", "replace"))
    if left == NO_END:
        change = f"`pbs-policy revoke {each.target}`, and have whatever wrote {key} give it an end (SET ... EX)"
        return _step("end", f"{key} has none, and is not honoured", True, change, "key_without_end")
    if left <= 0:
        return _step("end", f"{key} has just ended", True, "log in again", nothing_left(seen))
    return _step("end", left_text(left / 1000))


def nothing_left(seen: Seen) -> str:
    """The reason where nothing else is left: somebody is logged in, and nobody whom the sender names; or nobody."""
    return "sender_mismatch" if seen.last and seen.case.names is not None else "no_login"


def _caps(seen: Seen, each: Candidate | None) -> Step:
    counts = policy.counts_of(seen.case, each) if each else []
    if each is None or not counts:
        return _step("caps", "none" if each else "")
    replies = seen.table.ask(
        Question((), [command for count in counts for command in ((b"SCARD", count.key), (b"PTTL", count.key))])
    ).replies
    full = [
        (count, left) for count, size, left in zip(counts, replies[::2], replies[1::2], strict=True)
        if size >= count.cap.limit
    ]  # fmt: skip
    saw = "; ".join(
        _count_text(count, size, left) for count, size, left in zip(counts, replies[::2], replies[1::2], strict=True)
    )
    refusal = carry_out(policy.refuse_over_cap(seen.case, each), seen.table.ask)
    change = " and ".join(_raise_cap(count, left, each) for count, left in full)
    return _step("caps", saw, refusal is not None, change, "cap")


def _count_text(count: Count, size: int, left: int) -> str:
    ends = "" if left == GONE else ", the period ends in " + format_duration(left / 1000)
    return f"{printable(count.what)}: {size} of {count.cap} recipients{ends}"


def _raise_cap(count: Count, left: int, each: Candidate) -> str:
    if each.permit and each.permit.cap:
        larger = f"give the permit for {each.target} anew with a larger cap"
    else:
        larger = f"raise max_recipients_per_{'address' if count.is_address else 'user'}"
    return f"wait {format_duration(left / 1000)}, or {larger}"


def _text(value: bytes) -> str:
    return printable(value.decode("utf-8", "replace"))


def _bytes(user: str) -> bytes:
    return user.encode("utf-8", "surrogateescape")
