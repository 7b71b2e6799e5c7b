"""What an administrator gives and takes: `permit`, `revoke`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from ipaddress import ip_network

import click

from pbs_policy.address import Target
from pbs_policy.cap import Cap
from pbs_policy.cli.audit import audit
from pbs_policy.cli.completion import suggest_target, suggest_user, suggest_who
from pbs_policy.cli.connected import SessionLogins
from pbs_policy.cli.denies import denies_against, warn_of_crash
from pbs_policy.cli.options import DURATION, TEXT, parsed_by
from pbs_policy.cli.output import Progress
from pbs_policy.cli.session import Session, say
from pbs_policy.cli.who import Who, parse_all, parse_each, parse_who
from pbs_policy.duration import format_duration
from pbs_policy.log import printable
from pbs_policy.settings import Settings
from pbs_policy.table.login_table import LoginTable, Seen
from pbs_policy.table.permits import parse_domain, parse_sender, parse_user, refuse_permit
from pbs_policy.table.records import Permit

NOTHING = 1
"""Exit status of `revoke` where there was nothing to revoke for one of them."""


@click.command()
@click.argument("given", metavar="ADDRESS|NETWORK...|-", nargs=-1, required=True, shell_complete=suggest_target)
@click.option("--user", metavar="USER", callback=parsed_by(parse_user), shell_complete=suggest_user,
              help="Whom it is for; shown in listings and logs, counted by max_recipients_per_user.")  # fmt: skip
@click.option("--sender", "senders", multiple=True, metavar="SENDER",
              callback=parsed_by(parse_sender),
              help="Only for this MAIL FROM, or @example.com for a domain's; may be repeated.")  # fmt: skip
@click.option("--recipient-domain", "domains", multiple=True, metavar="DOMAIN",
              callback=parsed_by(parse_domain),
              help="Only to recipients in this domain; may be repeated.")  # fmt: skip
@click.option("--cap", metavar="NUMBER/TIME", callback=parsed_by(Cap.parse),
              help="At most so many recipients, such as 20/1h, in place of the settings' caps.")  # fmt: skip
@click.option("--for", "seconds", default="8h", metavar="TIME", callback=DURATION, show_default=True,
              help="How long: 90s, 30m, 8h, 90d.")  # fmt: skip
@click.option("--note", default="", metavar="TEXT", callback=TEXT,
              help="What it is for; shown in listings.")  # fmt: skip
@click.pass_obj
def permit(
    session: Session,
    given: tuple[str, ...],
    user: str | None,
    senders: tuple[str, ...],
    domains: tuple[str, ...],
    cap: Cap | None,
    seconds: int,
    note: str,
) -> None:
    """Let each ADDRESS or NETWORK relay for a time without a login: for the printer that cannot log in at all.

    With - they are read from standard input, one a line. A permit expires by itself; `revoke` ends it, a new one
    takes its place, a deny outranks it. Refused are addresses that may never relay, and networks wider than /16 or,
    for IPv6, /32, which hold more than one organisation: an open relay.

    \b
    Example:
      pbs-policy permit 192.0.2.7 --for 90d --note scanner
      pbs-policy permit 192.0.2.0/28 --user scanners@example.com --sender @example.com --cap 20/1h
    """
    settings, table = session.open_table()
    targets = parse_each(given, lambda text: _permissible(settings, text))
    senders, domains = tuple(dict.fromkeys(senders)), tuple(dict.fromkeys(domains))
    what = Permit(int(table.now()), user or "", senders, domains, cap, note)
    of_file, how_long = settings.load_denies(), format_duration(seconds)
    with audit(settings) as tell:
        for target in targets:
            table.permit(target, what, seconds)
            fields = {"user": what.user, "senders": " ".join(senders), "recipient_domains": " ".join(domains)}
            tell("permit", client_address=target.text, **fields, **{"for": how_long}, cap=str(cap or ""), note=note)
            whose = (Who(target), Who(None, what.user))
            obstacles = [deny for who in whose if any(who) for deny in denies_against(table, of_file, who)]
            if settings.observe_only:
                obstacles.append("observe_only = yes: nobody may relay by a login or permit until it is no")
            has_no_effect = f"{target.text} is permitted for {how_long}, which has no effect now"
            click.echo(has_no_effect if obstacles else f"{target.text} may relay for {how_long}")
            for obstacle in obstacles:
                say(obstacle)
    warn_of_crash(table)


def _permissible(settings: Settings, text: str) -> Target:
    """The address or network that `text` names, which may be permitted. Raises AddressError."""
    target = settings.addresses.parse_target(text)
    refuse_permit(target)
    return target


@click.command()
@click.argument("given", metavar="ADDRESS|NETWORK|USER...|-", nargs=-1, shell_complete=suggest_who)
@click.option("--all", "is_all", is_flag=True, help="Everybody's, in place of some; on a terminal it asks first.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def revoke(session: Session, given: tuple[str, ...], is_all: bool, yes: bool) -> int:
    """Take away what logins and permits give each ADDRESS, NETWORK or USER, from the next request on.

    With - they are read from standard input, one a line. Others who are logged in from the same address keep theirs
    when a USER is revoked. A new login permits again, and so does a session that is still open (renew_sessions),
    unless it is denied: `deny` first. A user whose name has blanks or quotes is written user:NAME.

    Exit status 1 where there was nothing to revoke for one of them.

    \b
    Example:
      pbs-policy revoke 192.0.2.7
      pbs-policy revoke alice@example.com bob@example.com
    """
    settings, table = session.open_table()
    of_file = settings.load_denies()
    whom = parse_all(given, lambda text: parse_who(settings, text), is_all=is_all)
    is_asked = is_all and not yes and sys.stdin.isatty()
    if is_asked and not click.confirm("Take away every login and permit?", err=True):
        return NOTHING
    is_found = True
    with audit(settings) as tell:
        for each in whom:
            logins = SessionLogins(settings, table)
            gone = _revoke(table, each, logins.see)
            if gone:
                tell("revoke", **each.fields, revoked=str(len(gone)))
            else:
                is_found = False
                click.echo(f"nothing to revoke for {each}")
            for target in gone:
                click.echo(f"revoked: {printable(target)}" + (f" for {each}" if each.user else ""))
            for wider in table.permits_around(each.target) if each.target else ():
                say(f"{each} may still relay by the permit for {wider.target}: revoke that, or deny {each}")
            if logins.come_back(of_file):
                who, whom_to_deny = ("somebody", "--all") if is_all else (each, each)
                say(f"{who} is still connected to Dovecot, so the login is renewed: deny {whom_to_deny} too")
    _warn_of_nameless(table, [str(each) for each in whom if each.user])
    return os.EX_OK if is_found else NOTHING


def _revoke(table: LoginTable, who: Who, seen: Seen) -> list[str]:
    progress = Progress()
    target = who.target
    if who.user:
        gone = table.revoke_user(who.user, progress.add, seen)
    elif target is None:
        gone = table.revoke_all(progress.add, seen)
    elif target.length:
        gone = table.revoke_all(progress.add, seen, within=ip_network(target.text))
    else:
        gone = table.revoke_address(target.text, progress.add, seen)
    progress.clear()
    return gone


def _warn_of_nameless(table: LoginTable, names: Sequence[str]) -> None:
    """Say so where logins tell no user: nobody knows whether they are one of those."""
    if not names:
        return
    progress = Progress()
    entries = table.entries(progress=progress.add)
    count = sum(1 for each in entries if each.kind == "login" and not each.record.user)
    progress.clear()
    if count:
        logins = "1 login names no user and was" if count == 1 else f"{count:,} logins name no user and were"
        who = names[0] if len(names) == 1 else "some of these users"
        what_to_do = "revoke the address, which pbs-policy list shows"
        say(f"{logins} not touched; {who} may be among them: {what_to_do}")
