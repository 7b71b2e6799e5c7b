"""What stands against relaying: read in one round, together with the time that each permission has left.

A permission that is read before or after the denies could be one that never stood without its deny: Redis may take a
batch in two pieces, and somebody may empty the table and put it back in between. So each permission is read again by
the command that reads the denies, which is one moment of the table. Where a first look says that networks are denied,
everything is read once more together with those networks' denies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

from pbs_policy.address import ClientAddress
from pbs_policy.decision.candidate import Candidate
from pbs_policy.decision.case import Case
from pbs_policy.decision.sender import denied_names
from pbs_policy.store.question import Procedure, Question
from pbs_policy.table.keys import GONE, Keys
from pbs_policy.table.networks import parse_lengths


class Against(NamedTuple):
    """What was read in the last round. `values` are those under the keys `asked`; `left` is the milliseconds of each
    permission, by its key, and GONE where it did not stand when the denies were read; `users` are those who are
    denied, among all whom the attempt concerns; and `is_any_user_denied`, whomever it concerns."""

    asked: Sequence[bytes] = ()
    values: Sequence[bytes | None] = ()
    left: Mapping[bytes, int] = {}
    is_address_denied: bool = False
    users: Set[bytes] = frozenset()
    is_sender_denied: bool = False
    is_any_user_denied: bool = False


NOTHING = Against()
"""Where nothing was read yet."""


def read_against(case: Case, standing: Sequence[Candidate]) -> Procedure[Against]:
    """Read what stands against the permissions that are left, and how long each of them lasts."""
    keys = case.table_keys
    senders = case.rules.senders
    own, mapped = case.sender_names()
    if not senders.user_domain:  # alice, who logs in without a domain, could be alice@example.com
        own = [*own, *[name.partition(b"@")[0] for name in own]]
    users = [*own, *mapped]
    for each in standing:
        users += [name for name in denied_names(each.user, senders) if name not in users]
    asked = keys.against(case.client)
    first_user = len(asked)
    asked += [keys.deny_user_prefix + name for name in users]
    last_user = len(asked)
    first_other = last_user + len(standing)
    asked += [each.key for each in standing]
    commands = [(b"PTTL", each.key) for each in standing]
    values, left = yield Question(asked, commands)
    while (values[0] or values[1]) and (
        unasked := [each for each in network_denies(keys, case.client_address, *values[:2]) if each not in asked]
    ):
        # Networks are denied: of which lengths is known now. Everything is read anew, together with them.
        asked = [*asked, *unasked]
        values, left = yield Question(asked, commands)
    stood = zip(asked[last_user:first_other], values[last_user:first_other], left, strict=True)
    times = {key: time if value is not None else GONE for key, value, time in stood}
    if case.denies is None and values[:last_user].count(None) == last_user:  # nearly always
        return Against(asked, values, times)
    denied = {user for user, value in zip(users, values[first_user:last_user], strict=True) if value is not None}
    if case.denies is not None:
        denied |= case.denies.of_users(users)
    for each in standing:
        if not denied.isdisjoint(denied_names(each.user, case.rules.senders)):
            denied.add(each.user)
    is_any_denied = bool(denied) or values[2] is not None or (case.denies is not None and case.denies.has_users)
    is_address_denied = any(value is not None for value in (*values[3:first_user], *values[first_other:]))
    is_sender_denied = _is_sender_denied(own, mapped, denied)
    return Against(asked, values, times, is_address_denied, denied, is_sender_denied, is_any_denied)


def network_denies(keys: Keys, client: ClientAddress, lengths: bytes | None, auto: bytes | None) -> list[bytes]:
    """The keys of a client's denies by the lengths in use: of an administrator's, and of auto_deny's."""
    names = client.names_denied
    return [*map(keys.deny, names(parse_lengths(lengths))), *map(keys.auto_deny, names(parse_lengths(auto)))]


def _is_sender_denied(own: Sequence[bytes], mapped: Sequence[bytes], denied: Set[bytes]) -> bool:
    """Whether a deny holds against the sender itself: who is denied may not pass for a neighbour's message in their
    own name. Of several users with one sender, all must be denied."""
    return not denied.isdisjoint(own) or (bool(mapped) and denied >= set(mapped))
