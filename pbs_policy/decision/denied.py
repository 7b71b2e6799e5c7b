"""Who of many is denied: by their address, a network that holds it, everybody's deny, or as a user under any name
that a deny may have. It is for whoever keeps logins alive; of one relay attempt `against` reads the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pbs_policy.address import ClientAddress
from pbs_policy.decision.against import network_denies
from pbs_policy.decision.denies import Denies
from pbs_policy.decision.sender import SenderRules, denied_names
from pbs_policy.store.question import Procedure, Question
from pbs_policy.table.keys import Keys
from pbs_policy.table.users import complete_user


class Denied(NamedTuple):
    """Whether each login is denied, and what stands under the further keys, read in one moment of the table."""

    logins: list[bool]
    values: dict[bytes, bytes | None]


def read_denied(
    keys: Keys,
    rules: SenderRules,
    logins: Sequence[tuple[ClientAddress, bytes]],
    denies: Denies | None,
    further: Sequence[bytes] = (),
) -> Procedure[Denied]:
    """Read what stands against these addresses and their users. A user without a name is denied while anybody is, as
    for the service."""
    names = [denied_names(complete_user(user, rules.user_domain), rules) for _, user in logins]
    lengths = keys.deny_networks, keys.auto_deny_networks
    against = [
        [*keys.against(client.text)[3:], *map(keys.deny_user, own)]
        for (client, _), own in zip(logins, names, strict=True)
    ]
    asked: dict[bytes, None] = {}
    unasked = [*lengths, keys.user_denies, *further, *(key for each in against for key in each)]
    while unasked:
        # In a second round networks are denied, of which lengths is known now: all is read anew, together with them.
        asked |= dict.fromkeys(unasked)
        answer = yield Question(list(asked))
        values = dict(zip(asked, answer.values, strict=True))
        unasked = []
        if values[lengths[0]] or values[lengths[1]]:
            for each, (client, _) in zip(against, logins, strict=True):
                around = network_denies(keys, client, *map(values.get, lengths))
                each += around
                unasked += [key for key in around if key not in asked]
    is_any_user_denied = values[keys.user_denies] is not None or (denies is not None and denies.has_users)
    denied = [
        (not own and is_any_user_denied)
        or any(values[key] is not None for key in each)
        or (denies is not None and bool(denies.of_address(client) or denies.of_users(own)))
        for (client, _), own, each in zip(logins, names, against, strict=True)
    ]
    return Denied(denied, values)
