"""The service's decision on one client address, taken once and at leisure: what `pbs-policy check` shows."""

from __future__ import annotations

from typing import NamedTuple

from pbs_policy import policy
from pbs_policy.address import ClientAddress
from pbs_policy.policy import Decision, Rules
from pbs_policy.table import LoginTable


class Outcome(NamedTuple):
    """The decision, and how many seconds a permission that decided has left (0.0 where none did)."""

    decision: Decision
    left: float = 0.0


def check(table: LoginTable, rules: Rules, client: ClientAddress, sender: str = "") -> Outcome:
    """What the service would answer `client` now for mail from `sender`, in the same rounds and by the same rules.

    Raises StoreUnavailable where the service would answer that it cannot tell.
    """
    outcome = _check(table, rules, client, sender)
    return outcome._replace(decision=policy.observed(outcome.decision)) if rules.observe_only else outcome


def _check(table: LoginTable, rules: Rules, client: ClientAddress, sender: str) -> Outcome:
    if client.excluded:
        return Outcome(policy.refuse_excluded(client))
    name = b""
    if rules.sender_match != "off":
        name = policy.name_to_match(sender.encode("utf-8", "surrogateescape"), rules)
    keys = table.keys.relay(client.text, name)
    found, _ = table.read(keys)
    weighed = policy.weigh(found, rules)
    if isinstance(weighed, Decision):
        return Outcome(weighed)
    (deny,), left = table.read([table.keys.deny(client.text)], [keys[candidate.which] for candidate in weighed])
    decision = policy.confirm(weighed, left, deny)
    permitted = decision.action == policy.OK
    return Outcome(decision, next(each for each in left if each > 0) / 1000 if permitted else 0.0)
