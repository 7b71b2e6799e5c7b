"""The service's decision on one relay attempt, taken once and at leisure: no cap counts it."""

from __future__ import annotations

from pbs_policy.address import ClientAddress, networks_of
from pbs_policy.decision import policy
from pbs_policy.decision.case import Case
from pbs_policy.decision.policy import Decision, Rules
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.postfix.protocol import Request
from pbs_policy.store.question import carry_out
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.networks import parse_lengths


def check(
    table: LoginTable, rules: Rules, client: ClientAddress, request: Request, maps: SenderMaps | None = None
) -> Decision:
    """What the service would answer `client` now to `request`, in the same rounds and by the same rules.

    Raises StoreUnavailable where the service would answer that it cannot tell.
    """
    if client.excluded:
        decision = policy.refuse_excluded(client)
    else:
        case = make_case(table, rules, client, request, maps)
        found, _ = table.read(case.keys)
        decision = carry_out(policy.decide(case, found), table.ask)
    return policy.observed(decision) if rules.observe_only else decision


def make_case(
    table: LoginTable, rules: Rules, client: ClientAddress, request: Request, maps: SenderMaps | None = None
) -> Case:
    """The relay attempt as the service puts it together. Raises StoreUnavailable."""
    (lengths,), _ = table.read([table.keys.permit_networks])
    networks = networks_of(client.text, parse_lengths(lengths))
    return Case(client, request, rules, table.keys, maps, networks, only_looks=True)
