"""What an administrator forbids, and for how long: `deny`, `undeny`, `denied`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import isinf

import click

from pbs_policy.cli.audit import audit
from pbs_policy.cli.completion import suggest_denied, suggest_who
from pbs_policy.cli.options import DURATION, TEXT
from pbs_policy.cli.output import FORMATS, Column, Progress, Row, format_options, left
from pbs_policy.cli.session import Session, say
from pbs_policy.cli.who import Who, parse_all, parse_who
from pbs_policy.command_line import command_line
from pbs_policy.decision.denies import Denies
from pbs_policy.duration import format_duration
from pbs_policy.log import printable
from pbs_policy.settings import Settings
from pbs_policy.store import persistence
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.table.keys import EVERYBODY
from pbs_policy.table.listing import Deny
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.permits import refuse_deny
from pbs_policy.table.rows import deny_row
from pbs_policy.table.users import write_user_name

NOTHING = 1
"""Exit status of `undeny` where one of them was not denied."""


@click.command()
@click.argument("given", metavar="ADDRESS|NETWORK|USER...|-", nargs=-1, shell_complete=suggest_who)
@click.option("--all", "is_all", is_flag=True, help="Everybody, in place of some.")
@click.option("--for", "seconds", default="24h", metavar="TIME", callback=DURATION, show_default=True,
              help="How long: 90s, 30m, 8h, 90d.")  # fmt: skip
@click.option("--reason", default="", metavar="TEXT", callback=TEXT, help="Why; `denied` and `check` show it.")
@click.option("--replace", is_flag=True, help="Also in place of a deny that lasts longer.")
@click.pass_obj
def deny(
    session: Session, given: tuple[str, ...], is_all: bool, seconds: int, reason: str, replace: bool
) -> None:
    """Refuse relaying to each ADDRESS, NETWORK or USER for a time, whatever logins and permits they have or get.

    With - they are read from standard input, one a line. It holds from the next request on, until it expires or
    `undeny` ends it; a deny that lasts longer stays as it is, unless --replace is given. Logins and permits stay, and
    count again afterwards: `revoke` takes them away. Mail whose sender is a denied user is refused as well. A user
    whose name has blanks or quotes is written user:NAME.

    \b
    Example:
      pbs-policy deny 192.0.2.7 198.51.100.0/24
      pbs-policy deny alice@example.com --for 7d --reason "password stolen"
      pbs-policy deny --all --for 1h
    """
    settings, table = session.open_table()
    whom = parse_all(given, lambda text: _deniable(settings, text), is_all=is_all)
    how_long = format_duration(seconds)
    with audit(settings) as tell:
        for each in whom:
            stays = _deny(table, each, reason, seconds, replace)
            if stays is None:
                tell("deny", **each.fields, **{"for": how_long}, reason=reason)
                click.echo(f"denied: {each} for {how_long}")
            else:
                still = "without an end" if isinf(stays) else f"for {format_duration(stays)} still"
                click.echo(f"denied already: {each} {still}; that stays as it is, --replace would shorten it")
    _hint_at_bare_logins(settings, table, whom)
    warn_of_crash(table)


def _deniable(settings: Settings, text: str) -> Who:
    """Whom `text` names, who can be denied. Raises as `parse_who`."""
    who = parse_who(settings, text)
    if who.user.startswith("@"):
        raise click.UsageError("a whole domain cannot be denied: deny its users, their addresses or networks")
    if who.target:
        refuse_deny(who.target)
    return who


def _deny(table: LoginTable, who: Who, reason: str, seconds: int, replace: bool) -> float | None:
    """How long a deny stays that lasts longer, where there is one."""
    if who.user:
        return table.deny_user(table.name(who.user), reason, seconds, replaces=replace)
    return table.deny(who.target, reason, seconds, replaces=replace)


def _hint_at_bare_logins(settings: Settings, table: LoginTable, whom: Sequence[Who]) -> None:
    """Say so where somebody is logged in under the local part alone: whether that is the denied user is known only
    where user_domain completes such names."""
    bare = {each.user.rpartition("@")[0].lower(): each for each in whom if "@" in each.user}
    if settings.user_domain or not bare:
        return
    progress = Progress()
    found = set()
    with suppress(StoreUnavailable):  # the deny stands: this is a hint
        entries = table.entries(progress=progress.add)
        found = {name for entry in entries if (name := entry.record.user.lower()) in bare}
    progress.clear()
    for name in sorted(found):
        deny_too = command_line("pbs-policy", "deny", about=write_user_name(name))
        whose = f"if that is {bare[name]}, set user_domain, or {deny_too}"
        say(f"a login as {printable(name)} may relay as before: {whose}")


def warn_of_crash(table: LoginTable) -> None:
    """Say so where Redis may forget what was just written."""
    if forgets := persistence.warn_of_crash(table.redis, table.now()):
        say(f"{forgets}. To keep it: {persistence.APPEND}")


@click.command()
@click.argument("given", metavar="ADDRESS|NETWORK|USER...|-", nargs=-1, shell_complete=suggest_denied)
@click.option("--all", "is_all", is_flag=True, help="End the deny of everybody (deny --all); no other.")
@click.pass_obj
def undeny(session: Session, given: tuple[str, ...], is_all: bool) -> int:
    """End the deny of each ADDRESS, NETWORK or USER, the administrator's and auto_deny's. With - they are read from
    standard input, one a line. It permits nothing: a login or permit has to. A deny that stands in the file of
    `denies` ends when its line is taken out.

    Exit status 1 where one of them was not denied.

    \b
    Example:
      pbs-policy undeny alice@example.com
    """
    settings, table = session.open_table()
    of_file = settings.load_denies()
    ended = []
    with audit(settings) as tell:
        for each in parse_all(given, lambda text: parse_who(settings, text), is_all=is_all):
            is_ended = table.undeny_user(table.name(each.user)) if each.user else table.undeny(each.target)
            ended.append(is_ended)
            if is_ended:
                tell("undeny", **each.fields)
            click.echo(f"no longer denied: {each}" if is_ended else f"not denied: {each}")
            for still in denies_against(table, of_file, each):
                say(still)
    return os.EX_OK if all(ended) else NOTHING


def denies_against(table: LoginTable, of_file: Denies | None, who: Who) -> Iterator[str]:
    """Which denies stand against all of `who`, and what ends each."""
    target, user, line = who.target, who.user, None
    if target:
        for each in [*([target.text] if table.is_denied(target) else ()), *table.denied_around(target)]:
            is_all = each == EVERYBODY
            ends = "pbs-policy undeny --all" if is_all else command_line("pbs-policy", "undeny", about=each)
            yield f"{name_of_denied(each)} is denied: {ends}"
        line = of_file and of_file.of_target(target)
    elif user:
        if table.is_user_denied(table.name(user)):
            yield f"{printable(user)} is denied: {command_line('pbs-policy', 'undeny', about=write_user_name(user))}"
        line = of_file and of_file.of_user(table.name(user))
    if line:
        yield f"{printable(line.target)} is denied by {line.place}: take that line out"


def name_of_denied(target: str) -> str:
    """Whom a deny of an address or network holds for, as it is shown."""
    return "everybody" if target == EVERYBODY else target


def _denied(row: Row) -> str:
    address: str | None = row["client_address"]
    return str(row["user"]) if address is None else name_of_denied(address)


_DENY_COLUMNS = (
    Column("kind"),
    Column("client_address", "DENIED", _denied),
    Column("user"),
    Column("expires_at", "LEFT", lambda row: left(row["expires_at"]) or "no end"),
    Column("by", "BY"),
    Column("reason", "REASON"),
)


@click.command()
@format_options
@click.pass_obj
def denied(session: Session, format_name: str) -> None:
    """Who is denied: addresses, networks and users, why, and for how long still.

    Everybody is the client_address "all" in JSON and TSV. A deny is an administrator's (`deny`),
    auto_deny's, or stands in the file of `denies`: then its line is named.

    \b
    Example:
      pbs-policy denied
      pbs-policy denied -o tsv | sort -k 2
    """
    settings, table = session.open_table()
    of_file = settings.load_denies() or ()
    with FORMATS[format_name](_DENY_COLUMNS) as output:
        for each in of_file:
            output.write(deny_row(Deny(each.kind, each.target, each.reason, None, each.place), time.time()))
        for deny in table.denies(progress=output.progress.add):
            output.write(deny_row(deny, time.time()))
