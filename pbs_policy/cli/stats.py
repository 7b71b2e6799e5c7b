"""`pbs-policy stats`: how often the service decided what, since it started, in the last hour and the last day."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from pbs_policy.bars import has_blocks, plot
from pbs_policy.cli.output import show_json, show_table
from pbs_policy.cli.session import Session
from pbs_policy.duration import format_duration
from pbs_policy.log import printable
from pbs_policy.service.stats import Minute, ServiceState, read_minutes, read_services
from pbs_policy.table.rows import write_time

_HOUR = 60  # minutes
_HALF_HOUR = 30  # minutes of a column in the plot of the day
_HEIGHT = 4  # lines of a plot
_ACTIONS = ("OK", "DUNNO", "DEFER_IF_REJECT")
_NUMBERS = ("since start", "last hour", "last day")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text, with every minute that had a decision.")
@click.pass_obj
def stats(session: Session, as_json: bool) -> None:
    """How often the services decided what, and which of them run: since they started, in the last hour, the last day.

    Numbers of all services that share this Redis are summed; they write them every 5 seconds. "Since start" is what
    those that run now have decided. A plot's columns are a minute, or half an hour, the newest on the right.

    \b
    Example:
      pbs-policy stats
      pbs-policy stats --json | jq '.last_hour["OK login"]'
    """
    _, table = session.open_table()
    minutes = read_minutes(table.redis, table.keys, table.now())
    services = read_services(table.redis, table.keys, minutes)
    if as_json:
        _show_json(minutes, services)
    else:
        _show(minutes, services, table.now())


def _totals(minutes: Sequence[Minute], services: Sequence[ServiceState]) -> tuple[Counter[str], ...]:
    """In the order of _NUMBERS."""
    counted = (services, minutes[-_HOUR:], minutes)
    return tuple(sum((each.counts for each in some), Counter()) for some in counted)


def _show(minutes: Sequence[Minute], services: Sequence[ServiceState], now: float) -> None:
    _show_services(services, now)
    totals = _totals(minutes, services)
    if not any(totals):
        click.echo("nothing was decided in the last day")
        return
    click.echo()
    _show_totals(totals)
    decisions = [minute.counts.total() for minute in minutes]
    halves = [sum(decisions[start : start + _HALF_HOUR]) for start in range(0, len(decisions), _HALF_HOUR)]
    if any(decisions[-_HOUR:]):
        _show_plot(f"decisions a minute, last hour, most {max(decisions[-_HOUR:]):,}:", decisions[-_HOUR:])
    _show_plot(f"decisions in half an hour, last day, most {max(halves):,}:", halves)


def _show_services(services: Sequence[ServiceState], now: float) -> None:
    if not services:
        click.echo("no service has written its numbers in the last 15 s: none runs, or Redis does not allow it")
        return
    rows = [("HOST", "PID", "VERSION", "RUNS FOR", "CLIENTS", "RECONNECTS", "DECISIONS")]
    rows += [
        (
            printable(each.host), str(each.pid), printable(each.version), format_duration(now - each.started),
            f"{each.connections:,}", f"{max(0, each.redis_connections - 1):,}", f"{each.counts.total():,}",
        )
        for each in services
    ]  # fmt: skip
    show_table(rows, numbers=range(4, 7))


def _show_totals(totals: Sequence[Counter[str]]) -> None:
    """A row for each action and reason, the commonest of each action first, and the sum."""
    names = sorted(set().union(*totals), key=lambda name: (_rank(name), -totals[-1][name], name))
    rows = [("ACTION", "REASON", *(each.upper() for each in _NUMBERS))]
    for name in names:
        action, _, reason = name.partition(" ")
        rows.append((action, reason, *(f"{total[name]:,}" for total in totals)))
    rows.append(("all", "", *(f"{total.total():,}" for total in totals)))
    show_table(rows, numbers=range(2, 5))


def _rank(name: str) -> int:
    action = name.partition(" ")[0]
    return _ACTIONS.index(action) if action in _ACTIONS else len(_ACTIONS)


def _show_plot(title: str, numbers: Sequence[int]) -> None:
    click.echo(f"\n{title}")
    for line in plot(numbers, _HEIGHT, blocks=has_blocks(sys.stdout.encoding)):
        click.echo(f"  |{line}".rstrip())


def _show_json(minutes: Sequence[Minute], services: Sequence[ServiceState]) -> None:
    numbers: dict[str, Any] = {
        "services": [
            {
                "host": each.host,
                "pid": each.pid,
                "version": each.version,
                "since": write_time(each.started),
                "connections": each.connections,
                "redis_connections": each.redis_connections,
                "counts": each.counts,
            }
            for each in services
        ],
        **{name.replace(" ", "_"): total for name, total in zip(_NUMBERS, _totals(minutes, services), strict=True)},
        "minutes": [
            {"since": write_time(each.begins), "counts": each.counts} for each in minutes if each.counts
        ],
    }
    show_json(numbers)
