"""The story that both demonstrations tell: refused, login, permitted, time passes, refused again.

A `World` says how a client logs in and how it tries to relay; the story says in which order, checks each outcome,
and shows what went over the wire.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from pbs_policy.demo.daemons import wait_until

TTL = 3
"""Seconds that a login counts in the demonstration; 30 minutes is the default elsewhere."""

CLIENTS = ("192.0.2.10", "2001:db8::10")
"""Documentation addresses (RFC 5737, RFC 3849): no real client has one, so none can be permitted by this."""

USER = "alice@example.com"

Say = Callable[[str], None]


class Seen(NamedTuple):
    """What one step showed: whether the client may relay, or is logged in; and the lines that were exchanged."""

    succeeded: bool
    lines: Sequence[str]


class World(Protocol):
    """Where the story takes place."""

    def attempt_relay(self, client_address: str) -> Seen:
        """One relay attempt of this client, whether it was permitted, and what was said."""

    def log_in(self, client_address: str) -> Seen:
        """One login of USER from this client, whether it succeeded, and what was said and recorded."""


def tell(world: World, say: Say) -> bool:
    """Tell the story for IPv4 and IPv6. Returns whether each step went as it should."""
    as_it_should = True

    def step(title: str, act: Callable[[str], Seen], expected: bool, outcome: str) -> None:
        nonlocal as_it_should
        say(f"\n{title}")
        for client_address in CLIENTS:
            seen = act(client_address)
            for line in seen.lines:
                say(f"    {line}")
            good = seen.succeeded == expected
            as_it_should = as_it_should and good
            say(f"  {'ok   ' if good else 'WRONG'} {client_address}: {outcome if good else 'not ' + outcome}")

    step("1. Nobody has logged in. The client tries to relay:", world.attempt_relay, False, "refused")
    began = time.monotonic()
    step(f"2. {USER} logs in from there:", world.log_in, True, "logged in")
    logged_in_at = time.monotonic()
    step("3. The client tries again:", world.attempt_relay, True, "permitted")

    def try_until_refused(client_address: str) -> Seen:
        seen = Seen(True, ())

        def is_refused() -> bool:
            nonlocal seen
            seen = world.attempt_relay(client_address)
            return not seen.succeeded

        wait_until(is_refused, seconds=TTL + 5)
        return seen

    step(f"4. Time passes; the ttl is {TTL} s here. The client tries on:", try_until_refused, False, "refused again")
    ended = time.monotonic()
    say(f"\nThe permission lapsed by itself, {ended - logged_in_at:.1f} s after the login.")
    # Not earlier than it was given for: the clocks of Redis and of this process may differ by a little. That it was
    # not much later is what has been waited for, however slow the machine is.
    return as_it_should and ended - began > TTL - 0.1
