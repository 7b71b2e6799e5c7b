"""What an administrator gives and takes: `permit`, `revoke`, `denied`, `allow`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pbs_policy.cli.completion import suggest_denied, suggest_target, suggest_user, suggest_who
from pbs_policy.cli.output import FORMATS, Column, Progress, Row, format_options, left
from pbs_policy.cli.session import Session
from pbs_policy.cli.who import parse_one_or_all

if TYPE_CHECKING:
    from pbs_policy.address import Target
    from pbs_policy.cap import Cap
    from pbs_policy.cli.who import Who
    from pbs_policy.decision.denies import Denies
    from pbs_policy.table.login_table import LoginTable

T = TypeVar("T")

NO = 1
"""Exit status of `allow` where there was no deny."""


def _checked(parse: Callable[[str], T]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback of click that parses an option's value, or each of them; the ValueError becomes click's."""

    def callback(_: click.Context, parameter: click.Parameter, given: Any) -> Any:
        try:
            if isinstance(given, tuple):
                return tuple(parse(text) for text in given)
            return parse(given) if given is not None else None
        except ValueError as error:
            raise click.BadParameter(str(error), param=parameter) from None

    return callback


def _duration(text: str) -> int:
    from pbs_policy.duration import parse_duration

    return parse_duration(text)


def _cap(text: str) -> Cap:
    from pbs_policy.cap import Cap

    return Cap.parse(text)


def _text(text: str) -> str:
    from pbs_policy.table.permits import parse_text

    return parse_text(text)


def _user(text: str) -> str:
    from pbs_policy.table.permits import parse_user

    return parse_user(text)


def _sender(text: str) -> str:
    from pbs_policy.table.permits import parse_sender

    return parse_sender(text)


def _domain(text: str) -> str:
    from pbs_policy.table.permits import parse_domain

    return parse_domain(text)


@click.command()
@click.argument("who", metavar="ADDRESS|NETWORK", shell_complete=suggest_target)
@click.option("--user", metavar="USER", callback=_checked(_user), shell_complete=suggest_user,
              help="Whom it is for; shown in listings and logs, counted by max_recipients_per_user.")  # fmt: skip
@click.option("--sender", "senders", multiple=True, metavar="SENDER", callback=_checked(_sender),
              help="Only for this MAIL FROM, or @example.com for a domain's; may be repeated.")  # fmt: skip
@click.option("--recipient-domain", "domains", multiple=True, metavar="DOMAIN", callback=_checked(_domain),
              help="Only to recipients in this domain; may be repeated.")  # fmt: skip
@click.option("--cap", metavar="NUMBER/TIME", callback=_checked(_cap),
              help="At most so many recipients, such as 20/1h, in place of the settings' caps.")  # fmt: skip
@click.option("--for", "seconds", default="8h", metavar="TIME", callback=_checked(_duration), show_default=True,
              help="How long: 90s, 30m, 8h, 90d.")  # fmt: skip
@click.option("--note", default="", metavar="TEXT", callback=_checked(_text),
              help="What it is for; shown in listings.")  # fmt: skip
@click.pass_obj
def permit(
    session: Session,
    who: str,
    user: str | None,
    senders: tuple[str, ...],
    domains: tuple[str, ...],
    cap: Cap | None,
    seconds: int,
    note: str,
) -> None:
    """Let ADDRESS or NETWORK relay for a time without a login: for the printer that cannot log in at all.

    It ends by itself, by `revoke`, or by a new permit in its place; a deny outranks it. Refused are addresses that
    may never relay, and networks wider than /16 (IPv6: /32), which hold more than one organisation: an open relay.

    \b
    Example:
      pbs-policy permit 192.0.2.7 --for 90d --note scanner
      pbs-policy permit 192.0.2.0/28 --user scanners@example.com --sender @example.com --cap 20/1h
    """
    from pbs_policy.duration import format_duration
    from pbs_policy.table.records import Permit

    settings, table = session.open_table()
    target = settings.addresses.parse_target(who)
    senders, domains = tuple(dict.fromkeys(senders)), tuple(dict.fromkeys(domains))
    table.permit(target, Permit(int(table.now()), user or "", senders, domains, cap, note), seconds)
    obstacles = list(_denies_against(table, settings.load_denies(), target, user))
    if obstacles:
        click.echo(f"{target.text} is permitted for {format_duration(seconds)}, and may not relay while it is denied")
    else:
        click.echo(f"{target.text} may relay for {format_duration(seconds)}")
    for obstacle in obstacles:
        click.echo(f"pbs-policy: {obstacle}", err=True)
    _warn_of_crash(table)


def _denies_against(table: LoginTable, of_file: Denies | None, target: Target, user: str | None) -> Iterator[str]:
    """Which denies a permit of `target` does not get past, and what ends each."""
    from pbs_policy.command_line import command_line
    from pbs_policy.log import printable
    from pbs_policy.table.keys import EVERYBODY
    from pbs_policy.table.users import write_user_name

    names = [target.text] if table.is_denied(target) else []
    for each in [*names, *table.denied_around(target)]:
        allow = "pbs-policy allow --all" if each == EVERYBODY else command_line("pbs-policy", "allow", about=each)
        yield f"{_denied_name(each)} is denied: {allow}"
    name = table.name(user) if user else b""
    if user and name and table.is_user_denied(name):
        yield f"{printable(user)} is denied: {command_line('pbs-policy', 'allow', about=write_user_name(user))}"
    if of_file:
        for line in (of_file.of_target(target), of_file.of_user(name) if name else None):
            if line:
                yield f"{printable(line.target)} is denied by {line.place}: take that line out"


def _denied_name(target: str) -> str:
    from pbs_policy.table.keys import EVERYBODY

    return "everybody" if target == EVERYBODY else target


@click.command()
@click.argument("who", metavar="ADDRESS|NETWORK|USER", required=False, shell_complete=suggest_who)
@click.option("--all", "is_all", is_flag=True, help="Everybody's, in place of one.")
@click.option("--deny", "seconds", metavar="TIME", callback=_checked(_duration),
              help="And refuse whatever a later login or permit gives, for so long: 24h.")  # fmt: skip
@click.option("--reason", metavar="TEXT", callback=_checked(_text), help="Why, for `denied`; with --deny.")
@click.option("--replace", is_flag=True, help="Also in place of a deny that lasts longer; with --deny.")
@click.pass_obj
def revoke(
    session: Session, who: str | None, is_all: bool, seconds: int | None, reason: str | None, replace: bool
) -> None:
    """Take away what logins and permits give an ADDRESS, a NETWORK or a USER, from the next request on.

    Others who are logged in from the same address keep theirs when a USER is revoked. A new login permits again,
    unless it is denied: --deny comes first, and outranks every login and permit until it ends or `allow` ends it. A
    deny that lasts longer already stays as it is, unless --replace is given. A user whose name has blanks or quotes
    is written user:NAME.

    \b
    Example:
      pbs-policy revoke 192.0.2.7
      pbs-policy revoke alice@example.com --deny 24h --reason "password stolen"
      pbs-policy revoke --all --deny 1h
    """
    from math import isinf

    from pbs_policy.duration import format_duration
    from pbs_policy.log import printable

    if reason is not None and seconds is None:
        raise click.UsageError("--reason says why somebody is denied: it needs --deny TIME")
    if replace and seconds is None:
        raise click.UsageError("--replace is about a deny: it needs --deny TIME")
    settings, table = session.open_table()
    whom = parse_one_or_all(settings, who, is_all)
    name = printable(_name(whom))
    if seconds is not None:
        stays = _deny(table, whom, reason or "", seconds, replace)
        if stays is None:
            click.echo(f"denied: {name} for {format_duration(seconds)}")
            _warn_of_crash(table)
        else:
            how_long = "without an end" if isinf(stays) else f"for {format_duration(stays)} still"
            click.echo(f"denied already: {name} {how_long}; that stays as it is, --replace would shorten it")
    gone = _revoke(table, whom)
    if not gone:
        click.echo(f"nothing to revoke for {name}")
    for each in gone:
        click.echo(f"revoked: {printable(each)}" + ("" if whom is None or whom.target else f" for {name}"))
    if whom and not whom.target:
        _warn_of_nameless(table, name)
    if whom and whom.target and seconds is None:
        for wider in table.permits_around(whom.target):
            click.echo(f"{name} may still relay by the permit for {wider.target}: revoke that, or --deny", err=True)


def _deny(table: LoginTable, whom: Who | None, reason: str, seconds: int, replace: bool) -> float | None:
    """How long a deny stays that lasts longer, where there is one."""
    if whom is None or whom.target:
        return table.deny(whom.target if whom else None, reason, seconds, replaces=replace)
    if whom.user.startswith("@"):
        raise click.UsageError("a whole domain cannot be denied: deny its users, their addresses or networks")
    return table.deny_user(table.name(whom.user), reason, seconds, replaces=replace)


def _warn_of_crash(table: LoginTable) -> None:
    """Say so where Redis may forget what was just written."""
    from pbs_policy.store.persistence import APPEND, warn_of_crash

    forgets = warn_of_crash(table.redis, table.now())
    if forgets:
        click.echo(f"pbs-policy: {forgets}. To keep it: {APPEND}", err=True)


def _revoke(table: LoginTable, whom: Who | None) -> list[str]:
    progress = Progress()
    if whom is None:
        gone = table.revoke_all(progress.add)
    elif whom.target is None:
        gone = table.revoke_user(whom.user, progress.add)
    elif whom.target.length:
        gone = table.revoke_network(whom.target.text, progress.add)
    else:
        gone = table.revoke_address(whom.target.text, progress.add)
    progress.clear()
    return gone


def _warn_of_nameless(table: LoginTable, name: str) -> None:
    """Say so where logins tell no user: nobody knows whether they are this one's."""
    progress = Progress()
    entries = table.entries(progress=progress.add)
    count = sum(1 for each in entries if each.kind == "login" and not each.record.user)
    progress.clear()
    if count:
        logins = "1 login names no user and was" if count == 1 else f"{count:,} logins name no user and were"
        what_to_do = "revoke the address, which pbs-policy list shows"
        click.echo(f"pbs-policy: {logins} not touched; {name} may be among them: {what_to_do}", err=True)


def _name(whom: Who | None) -> str:
    target: Target | None = whom.target if whom else None
    return target.text if target else whom.user if whom else "everybody"


def _denied(row: Row) -> str:
    address: str | None = row["client_address"]
    return str(row["user"]) if address is None else _denied_name(address)


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

    Everybody is the client_address "all" in JSON and TSV. A deny is an administrator's (`revoke --deny`),
    auto_deny's, or stands in the file of `denies`: then its line is named.

    \b
    Example:
      pbs-policy denied
      pbs-policy denied -o tsv | sort -k 2
    """
    import time

    from pbs_policy.table.listing import Deny
    from pbs_policy.table.rows import deny_row

    settings, table = session.open_table()
    of_file = settings.load_denies() or ()
    with FORMATS[format_name](_DENY_COLUMNS) as output:
        for each in of_file:
            output.write(deny_row(Deny(each.kind, each.target, each.reason, None, each.place), time.time()))
        for deny in table.denies(progress=output.progress.add):
            output.write(deny_row(deny, time.time()))


@click.command()
@click.argument("who", metavar="ADDRESS|NETWORK|USER", required=False, shell_complete=suggest_denied)
@click.option("--all", "is_all", is_flag=True, help="End the deny of everybody (revoke --all --deny); no other.")
@click.pass_obj
def allow(session: Session, who: str | None, is_all: bool) -> int:
    """End the deny of an ADDRESS, a NETWORK or a USER, the administrator's and auto_deny's. It permits nothing: a
    login or permit has to. A deny that stands in the file of `denies` ends when its line is taken out.

    Exit status 1 where there was none.

    \b
    Example:
      pbs-policy allow alice@example.com
    """
    from pbs_policy.log import printable

    settings, table = session.open_table()
    of_file = settings.load_denies()
    whom = parse_one_or_all(settings, who, is_all)
    name = printable(_name(whom))
    target = whom.target if whom else None
    found = table.allow_user(table.name(whom.user)) if whom and not target else table.allow(target)
    click.echo(f"no longer denied: {name}" if found else f"not denied: {name}")
    for wider in table.denied_around(target) if target else ():
        click.echo(f"{name} is still denied by the deny of {_denied_name(wider)}", err=True)
    if whom and of_file:
        still = of_file.of_target(whom.target) if whom.target else of_file.of_user(table.name(whom.user))
        if still:
            click.echo(f"{name} is still denied by {still.place}: take that line out", err=True)
    return os.EX_OK if found else NO
