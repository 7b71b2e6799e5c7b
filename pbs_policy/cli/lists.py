"""Who may relay now: `list` and `show`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from functools import partial
from ipaddress import ip_network
from itertools import chain, islice

import click

from pbs_policy.cli.completion import suggest_who
from pbs_policy.cli.output import FORMATS, Column, Output, Row, ago, format_options, left
from pbs_policy.cli.session import Session
from pbs_policy.cli.who import Who, parse_who
from pbs_policy.table.listing import is_within
from pbs_policy.table.login_table import Entry, LoginTable
from pbs_policy.table.records import WAYS
from pbs_policy.table.rows import entry_row

NO = 1
"""Exit status of `show` where there is nothing to show."""

SORT_LIMIT = 100_000
"""Entries that --sort reads and holds, 600 bytes each; `sort` has no bound and its own files."""


def _left(row: Row) -> str:
    return left(row["expires_at"]) or "NO END: not honoured"


def _service(row: Row) -> str:
    """`imap-report`, as the table has it: without a blank, which is none of a column's."""
    return f"{row['service']}-{row['recorded_by']}" if row["recorded_by"] in WAYS else row["service"] or ""


def _note(row: Row) -> str:
    """A permit's conditions and note, in the last column, where a blank is no ambiguity."""
    parts = [
        "from " + " ".join(row["senders"]) if row["senders"] else "",
        "to " + " ".join(row["recipient_domains"]) if row["recipient_domains"] else "",
        "at most " + row["cap"] if row["cap"] else "",
        row["note"] or "",
    ]
    return "; ".join(part for part in parts if part)


COLUMNS = (
    Column("kind"),
    Column("client_address", "CLIENT ADDRESS"),
    Column("user", "USER"),
    Column("service", "SERVICE", _service),
    Column("since", "SINCE", lambda row: ago(row["since"])),
    Column("expires_at", "LEFT", _left),
    Column("senders"),
    Column("recipient_domains"),
    Column("cap"),
    Column("note", "NOTE", _note),
    Column("recorded_by"),
)

_sort_option = click.option(
    "--sort", type=click.Choice(["address", "user", "left"]),
    help=f"Read all first, up to {SORT_LIMIT:,}.  [default: as Redis has them, while they are read]",
)  # fmt: skip


@click.command("list")
@format_options
@_sort_option
@click.pass_obj
def list_logins(session: Session, format_name: str, sort: str | None) -> None:
    """Who may relay now: every login and permit.

    A login is listed once for each user behind its address. They come while they are read, a million as well as
    one; one that changes meanwhile may be missed or come twice.

    \b
    Example:
      pbs-policy list --sort left
      pbs-policy list -o jsonl | jq -r .client_address
    """
    _, table = session.open_table()
    with FORMATS[format_name](COLUMNS) as output:
        _write(output, table.entries(progress=output.progress.add), sort)


@click.command()
@click.argument("who", metavar="ADDRESS|NETWORK|USER", shell_complete=suggest_who)
@format_options
@_sort_option
@click.pass_obj
def show(session: Session, who: str, format_name: str, sort: str | None) -> int:
    """The logins and permits of one client ADDRESS, of a NETWORK, or of one USER.

    Of an address or network, also the permits of wider networks that hold it. Exit status 1 where there are none.

    \b
    Example:
      pbs-policy show 192.0.2.7
      pbs-policy show alice@example.com --sort left
    """
    settings, table = session.open_table()
    whom = parse_who(settings, who)
    with FORMATS[format_name](COLUMNS) as output:
        _write(output, _entries(table, whom, output), sort)
    return os.EX_OK if output.count else NO


def _entries(table: LoginTable, whom: Who, output: Output) -> Iterator[Entry]:
    target, progress = whom.target, output.progress.add
    if target is None:
        return table.entries(user=whom.user, progress=progress)
    if target.length is None:
        entries = table.entries(target.text, progress=progress)
    else:
        entries = table.entries(is_meant=partial(is_within, outer=ip_network(target.text)), progress=progress)
    return chain(table.permits_around(target), entries)


def _write(output: Output, entries: Iterable[Entry], sort: str | None) -> None:
    for entry in _sorted(entries, sort) if sort else entries:
        output.write(entry_row(entry, time.time()))


def _sorted(entries: Iterable[Entry], by: str) -> list[Entry]:
    found = list(islice(entries, SORT_LIMIT + 1))
    if len(found) > SORT_LIMIT:
        message = f"more than {SORT_LIMIT:,} entries are too many for --sort: leave it out, or use -o tsv | sort"
        raise click.UsageError(message)
    if by == "left":
        return sorted(found, key=lambda entry: float("inf") if entry.left is None else entry.left)
    if by == "user":
        return sorted(found, key=lambda entry: (entry.record.user.lower(), _address_order(entry)))
    return sorted(found, key=lambda entry: (_address_order(entry), entry.record.user))


def _address_order(entry: Entry) -> tuple[int, int, int, str]:
    """IPv4 first, by number; a network before what lies in it; last what is no address."""
    try:
        network = ip_network(entry.target)
    except ValueError:
        return 9, 0, 0, entry.target
    return network.version, int(network.network_address), network.prefixlen, ""
