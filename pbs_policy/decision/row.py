"""One rule of a decision in words: what it saw, whether it refuses, and what an administrator can change. (The words
themselves: `words`, `sender_words`, `deny_words`.)"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pbs_policy.decision.rules import Step
from pbs_policy.duration import ago_at, format_duration
from pbs_policy.log import printable
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.records import Record


class Row(NamedTuple):
    """What one rule saw and decided. `pass`: it does not stand in the way; `not asked`: one before it has refused.
    `change` is what lets it pass, `reason` the decision's for the refusal; `details` is one line each."""

    rule: str
    verdict: Literal["pass", "refuse", "not asked"]
    saw: str
    change: str = ""
    reason: str = ""
    details: tuple[str, ...] = ()


def row(step: Step, saw: str, change: str = "") -> Row:
    """The row of a rule: what it saw, and where it refuses what to change."""
    if step.refusal is None:
        return Row(step.rule, "pass", saw)
    return Row(step.rule, "refuse", saw, change, step.refusal.reason)


def login_text(table: LoginTable, record: Record, left: float | None) -> str:
    """`alice@example.com (pop3, by script) 5m ago, 10:02, 25m left`; `left` is seconds, None for a key without an
    end."""
    since = ago_at(record.login_at, table.now())
    return f"{printable(record.user) or 'no user recorded'} ({record.how}) {since}, {left_text(left)}"


def left_text(left: float | None) -> str:
    """How long it lasts, in words; None for what has no end."""
    return "no end" if left is None else f"{format_duration(left)} left"
