"""How logins and permits are shown: a table for people, JSON for programs, both written as the entries come."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import click

from pbs_policy.duration import format_duration
from pbs_policy.log import printable
from pbs_policy.table import Entry

_SORTED_UP_TO = 10_000  # entries: a longer list begins at once, in Redis' order, and is never held whole

_HEADINGS = ("CLIENT ADDRESS", "USER", "SERVICE", "SINCE", "LEFT")


def show_entries(entries: Iterable[Entry], *, as_json: bool) -> int:
    """Print `entries`, by address where they are few enough to sort. Returns how many there were."""
    rest = iter(entries)
    first = sorted(islice(rest, _SORTED_UP_TO + 1), key=lambda entry: (entry.client_address, entry.record.user))
    if not first and not as_json:
        return 0
    return (_show_json if as_json else _show_table)(first, rest)


def entry_as_json(entry: Entry) -> dict[str, Any]:
    """One entry in the names of the login table; `left` is seconds, null for a key without an end."""
    return {
        "kind": entry.kind,
        "client_address": entry.client_address,
        "user": entry.record.user_text,
        "service": entry.record.service,
        "login_at": entry.record.login_at,
        "left": None if entry.left is None else round(entry.left),
    }


def _show_json(first: list[Entry], rest: Iterator[Entry]) -> int:
    count = 0
    click.echo("[", nl=False)
    for count, entry in enumerate(chain(first, rest), 1):
        click.echo(("," if count > 1 else "") + "\n  " + json.dumps(entry_as_json(entry)), nl=False)
    click.echo("\n]" if count else "]")
    return count


def _show_table(first: list[Entry], rest: Iterator[Entry]) -> int:
    now = time.time()
    rows = [_row(entry, now) for entry in first]
    widths = [max(len(row[column]) for row in [_HEADINGS, *rows]) for column in range(len(_HEADINGS))]
    lines = 0
    for row in chain([_HEADINGS], rows, (_row(entry, now) for entry in rest)):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
        lines += 1
    return lines - 1


def _row(entry: Entry, now: float) -> tuple[str, ...]:
    since = format_duration(now - entry.record.login_at) + " ago"
    left = "NO END: not honoured" if entry.left is None else format_duration(entry.left)
    user = printable(entry.record.user) or "-"
    return printable(entry.client_address), user, entry.record.service or "-", since, left
