"""The service's decision on one relay attempt, taken once and at leisure: no cap counts it."""

from __future__ import annotations

from typing import NamedTuple

from pbs_policy.address import ClientAddress, networks_of
from pbs_policy.decision.case import Case
from pbs_policy.decision.decide import decide
from pbs_policy.decision.denies import Denies
from pbs_policy.decision.rules import Decision, Rules, Trace, observed, refuse_unasked
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.postfix.protocol import Request
from pbs_policy.store.question import carry_out
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.networks import parse_lengths


class Enquiry(NamedTuple):
    """The relay attempt that an administrator asks about, and all that decides it."""

    table: LoginTable
    rules: Rules
    client: ClientAddress
    request: Request
    maps: SenderMaps | None = None
    denies: Denies | None = None


def check(enquiry: Enquiry) -> Decision:
    """What the service would answer now, in the same rounds and by the same rules.

    Raises StoreUnavailable where the service would answer that it cannot tell.
    """
    decision = refuse_unasked(enquiry.client, enquiry.denies)
    if decision is None:
        return trace(enquiry.table, make_case(enquiry))[0]
    return observed(decision) if enquiry.rules.observe_only else decision


def trace(table: LoginTable, case: Case) -> tuple[Decision, Trace]:
    """The same for an address that is not refused unasked, with what each rule said."""
    found, _ = table.read(case.keys)
    steps: Trace = []
    decision = carry_out(decide(case, found, steps), table.ask)
    return observed(decision) if case.rules.observe_only else decision, steps


def make_case(enquiry: Enquiry) -> Case:
    """The relay attempt as the service puts it together. Raises StoreUnavailable."""
    table, rules, client, request, maps, denies = enquiry
    (lengths,), _ = table.read([table.keys.permit_networks])
    networks = networks_of(client.text, parse_lengths(lengths))
    return Case(client, request, rules, table.keys, maps, networks, denies=denies, only_looks=True)
