"""The check of denies that version 0.1.0 wrote into Redis: it did not register them for what the service asks now."""

from __future__ import annotations

from collections.abc import Iterator

from pbs_policy.address import AddressError, ClientAddresses
from pbs_policy.doctor.finding import Finding, good, not_looked_at, warning
from pbs_policy.log import printable
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.table.keys import NO_END
from pbs_policy.table.listing import AUTO_DENY, Deny
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.networks import parse_lengths

_CHECK = "store.denies"
_SLACK = 60.0
"""Seconds that it may take to read a large table: by so much a deny may seem to outlast its registration."""


def check_denies(table: LoginTable) -> Iterator[Finding]:
    """Whether each deny is registered for as long as it lasts: a user's for the stricter rule on uncertain senders,
    a network's or IPv6 address' by its length. One without an expiry is not exported: `store.ends` names it."""
    keys = table.keys
    registers = (keys.user_denies, keys.deny_networks, keys.auto_deny_networks)
    try:
        denies = [deny for deny in table.denies() if deny.left is not None]
        # Read after the denies: whoever writes one meanwhile registers it first.
        (mark, *lengths), left = table.read(registers, registers)
    except StoreUnavailable as error:
        yield not_looked_at(_CHECK, f"SCAN: {printable(str(error), 100)}")
        return
    until = [float("inf") if each == NO_END else each / 1000 for each in left]
    of_administrators, of_auto_deny = map(parse_lengths, lengths)
    missing = []
    for deny in denies:
        if deny.kind == "user":
            is_registered = mark is not None and _lasts(until[0], deny)
        elif (length := _length(deny)) is None:
            is_registered = True
        elif deny.by == AUTO_DENY:
            is_registered = length in of_auto_deny and _lasts(until[2], deny)
        else:
            is_registered = length in of_administrators and _lasts(until[1], deny)
        if not is_registered:
            missing.append(deny)
    if missing:
        first = printable(missing[0].target)
        seen = (
            f"{len(missing)} of {len(denies)} denies in Redis, {first} is one, were not registered when they were "
            "written: they may miss a sender that Postfix rewrites, or another ipv6_prefix"
        )
        yield warning(_CHECK, seen, "", "pbs-policy export FILE && pbs-policy import --replace FILE")
    else:
        yield good(_CHECK, f"each of {len(denies)} denies is registered")


def _lasts(until: float, deny: Deny) -> bool:
    """Whether a key that has `until` seconds left is there, and for as long as `deny`."""
    return until > 0 and until + _SLACK >= (deny.left or 0)


def _length(deny: Deny) -> tuple[int, int] | None:
    """The length by which a deny is found; None where it needs none, or names what nobody asks for."""
    try:
        target = ClientAddresses().parse_target(deny.target)
    except AddressError:
        return None
    return target.deny_length if target.text == deny.target else None
