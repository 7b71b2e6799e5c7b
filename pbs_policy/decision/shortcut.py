"""The short way to nearly every OK: one login from the address, no rule that narrows it, and not one deny.

It asks in one round what the long way (`policy.decide`) would ask, and says OK or nothing: whatever else turns up,
the long way decides from the beginning. It is there for its speed alone: no procedure, no case, no candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

from pbs_policy.decision.case import Candidate, login_under
from pbs_policy.decision.policy import OK, Decision, Rules
from pbs_policy.store.question import Command
from pbs_policy.table.keys import Keys


def find_login(rules: Rules, keys: Keys, client: str, found: Sequence[bytes | None]) -> Candidate | None:
    """The login that is enough where nothing stands against it, given the values under `Keys.relay`."""
    permit, login = found
    if permit is not None or login is None or not rules.is_plain:
        return None
    return login_under(client, keys.login(client), login, rules.senders.user_domain)


def keys_against(keys: Keys, login: Candidate, names: Sequence[bytes]) -> list[bytes]:
    """Where everything stands that could stand against it; `names` are the sender's (`senders.own_names`)."""
    against = [keys.deny(login.target), keys.deny_everybody, keys.deny_networks, keys.deny_user(login.user)]
    for name in names:
        if name != login.user:
            against.append(keys.deny_user(name))
    return against


def commands_about(login: Candidate) -> list[Command]:
    """What tells how long it lasts."""
    return [(b"PTTL", login.key)]


def permit(login: Candidate, against: Sequence[bytes | None], left: int) -> Decision | None:
    """OK, or None where the long way has to be gone; `left` is Redis' PTTL in milliseconds."""
    if left <= 0 or against.count(None) < len(against):  # an empty value denies as well
        return None
    return Decision(OK, "login", login, left / 1000)
