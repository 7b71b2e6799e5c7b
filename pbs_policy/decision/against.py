"""What stands against relaying: read in one round, together with the time that each permission has left.

A permission that was read before the denies could be one that never stood without its deny. So where a first look
says that networks are denied, everything is read once more together with those networks' denies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

from pbs_policy.address import networks_of
from pbs_policy.decision.candidate import Candidate
from pbs_policy.decision.case import Case
from pbs_policy.store.question import Procedure, Question
from pbs_policy.table.networks import Lengths, parse_lengths


class Against(NamedTuple):
    """What was read in the last round. `values` are those under the keys `asked`; `left` is the milliseconds of each
    permission, by its key; `users` are those who are denied, among all whom the attempt concerns."""

    asked: Sequence[bytes] = ()
    values: Sequence[bytes | None] = ()
    left: Mapping[bytes, int] = {}
    is_address_denied: bool = False
    users: Set[bytes] = frozenset()
    is_sender_denied: bool = False


NOTHING = Against()
"""Where nothing was read yet."""


def read_against(case: Case, standing: Sequence[Candidate]) -> Procedure[Against]:
    """Read what stands against the permissions that are left, and how long each of them lasts."""
    keys = case.table_keys
    own, mapped = case.sender_names()
    users = [*own, *mapped]
    for each in standing:
        if each.user and each.user not in users:
            users.append(each.user)
    asked = [keys.deny_networks, keys.deny(case.client), keys.deny_everybody, *map(keys.deny_user, users)]
    commands = [(b"PTTL", each.key) for each in standing]
    values, left = yield Question(asked, commands)
    lengths: Lengths = frozenset()
    while values[0] is not None and not (known := parse_lengths(values[0])) <= lengths:
        # Networks are denied: of which lengths is known now. Everything is read anew, together with them.
        lengths |= known
        networks = networks_of(case.client, lengths)
        asked = [*asked[: 3 + len(users)], *map(keys.deny, networks)]
        values, left = yield Question(asked, commands)
    times = {each.key: milliseconds for each, milliseconds in zip(standing, left, strict=True)}
    if values.count(None) == len(values):  # nearly always
        return Against(asked, values, times)
    last_user = 3 + len(users)
    denied = {user for user, value in zip(users, values[3:last_user], strict=True) if value is not None}
    is_address_denied = any(value is not None for value in (*values[1:3], *values[last_user:]))
    return Against(asked, values, times, is_address_denied, denied, _is_sender_denied(own, mapped, denied))


def _is_sender_denied(own: Sequence[bytes], mapped: Sequence[bytes], denied: Set[bytes]) -> bool:
    """Whether a deny holds against the sender itself: who is denied may not pass for a neighbour's message in their
    own name. Of several users with one sender, all must be denied."""
    return not denied.isdisjoint(own) or (bool(mapped) and denied >= set(mapped))
