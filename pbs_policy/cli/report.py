"""`pbs-policy report`: who still depends on POP-before-SMTP, so that a site knows whom to move to SMTP AUTH."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import click

from pbs_policy.cli.options import DURATION
from pbs_policy.cli.output import FORMATS, Column, counted, show_table
from pbs_policy.cli.session import Session
from pbs_policy.duration import ago_at, write_duration
from pbs_policy.log import printable
from pbs_policy.settings.sources import SettingsError
from pbs_policy.table.rows import write_time
from pbs_policy.table.usage import MOST_PAIRS, OTHERS, Use, read_uses

SINCE = 7 * 86_400
"""Seconds that are looked back where --since is absent: who sends at all sends within a week."""

_NUMBERS = ("RECIPIENTS", "FOREIGN SENDERS", "LAST USE")
_NAMES = ("user", "client_address", "recipients", "foreign_senders", "last_use_at")


@click.command()
@click.option("--since", metavar="TIME", callback=DURATION,
              help="How far to look back: 1d, 4w.  [default: 7d, or usage_kept where that is less]")  # fmt: skip
@click.option("--as", "setting", type=click.Choice(["domain", "address"]),
              help="Which sender_match would refuse a foreign sender.  [default: that of the settings, or domain]",
              )  # fmt: skip
@click.option("--addresses", "by_address", is_flag=True, help="One line for each user and client address.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text: one object for each user and address.")
@click.pass_obj
def report(session: Session, since: int | None, setting: str | None, by_address: bool, as_json: bool) -> None:
    """Who still relays by POP-before-SMTP, and has to be moved to SMTP AUTH before it can go.

    One line for each user, who relayed most first: the address used most, the recipients, and how many of them had
    a foreign sender (MAIL FROM), which sender_match would refuse. Where several users share an address, mail is of
    the one whom its sender names, if they are logged in there. What remains has a line for the address, without a
    user. Days are UTC and counted whole, the first one too. With observe_only it is what would have been relayed.

    \b
    Example:
      pbs-policy report --since 4w --as address
      pbs-policy report --json | jq -r '.[].user // empty' | sort -u
    """
    settings, table = session.open_table()
    kept = settings.usage_kept
    if not kept:
        raise SettingsError(["usage_kept = 0: uses are not kept, so there is nothing to report; set it to 30d, say"])
    if since is None:
        since = min(SINCE, kept)
    elif since > kept:
        message = f"uses are kept for {write_duration(kept)} (usage_kept)"
        raise click.BadParameter(message, param_hint="'--since'")
    now = time.time()
    uses = list(read_uses(table.redis, settings.key_prefix, now - since, now))
    setting = setting or ("address" if settings.sender_match == "address" else "domain")
    if setting == "address":
        uses = [use._replace(foreign_senders=use.foreign_senders + use.foreign_mailboxes) for use in uses]
    uses.sort(key=lambda use: (-use.recipients, use.user, use.client_address))
    others = [use for use in uses if (use.client_address, use.user) == OTHERS]
    known = [use for use in uses if use not in others]
    if as_json:
        with FORMATS["json"]([Column(name) for name in _NAMES]) as output:
            for use in (*known, *others):
                output.write(_as_row(use, is_known=use not in others))
        return
    day = time.strftime("%Y-%m-%d 00:00 UTC", time.gmtime(now - since))
    if not uses:
        click.echo(f"nobody has relayed by POP-before-SMTP since {day}")
        return
    if known:
        headings = ("USER", "CLIENT ADDRESS" if by_address else "ADDRESSES", *_NUMBERS)
        groups = [[use] for use in known] if by_address else _by_user(known)
        show_table([headings, *(_row(group, now) for group in groups)], numbers=(2, 3))
    for use in others:
        click.echo(
            f"others, beyond {MOST_PAIRS:,} users and addresses on one day: {counted(use.recipients, 'recipient')}, "
            f"{use.foreign_senders} with a foreign sender, last {ago_at(use.last_use, now)}"
        )
    click.echo(_summary(known, others, day))
    if any(use.foreign_senders for use in uses):
        click.echo(f"foreign senders: those that sender_match = {setting} would refuse")


def _by_user(uses: Iterable[Use]) -> list[list[Use]]:
    """The uses of each user, and of each address whose user is not known, most recipients first throughout."""
    groups: dict[tuple[str, str], list[Use]] = {}
    for use in uses:
        groups.setdefault((use.user, "" if use.user else use.client_address), []).append(use)
    return sorted(groups.values(), key=lambda group: -sum(use.recipients for use in group))


def _row(group: Sequence[Use], now: float) -> tuple[str, ...]:
    more = f" and {len(group) - 1:,} more" if len(group) > 1 else ""
    return (
        printable(group[0].user) or "-",
        printable(group[0].client_address) + more,
        f"{sum(use.recipients for use in group):,}",
        f"{sum(use.foreign_senders for use in group):,}",
        ago_at(max(use.last_use for use in group), now),
    )


def _summary(known: Sequence[Use], others: Sequence[Use], day: str) -> str:
    users = {use.user for use in known if use.user}
    unknown = {use.client_address for use in known if not use.user}
    addresses = {use.client_address for use in known}
    line = f"{counted(len(users), 'user')} at {counted(len(addresses), 'address', 'addresses')}"
    if unknown:
        line += f" ({len(unknown)} without a known user)"
    if others:
        line += " and others"
    recipients = sum(use.recipients for use in (*known, *others))
    return f"{line}: {counted(recipients, 'recipient')} since {day}"


def _as_row(use: Use, *, is_known: bool) -> dict[str, Any]:
    """What was summed as others has null for the address too."""
    return {
        "user": use.user or None,
        "client_address": use.client_address if is_known else None,
        "recipients": use.recipients,
        "foreign_senders": use.foreign_senders,
        "last_use_at": write_time(use.last_use),
    }
