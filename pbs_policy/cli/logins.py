"""Commands on the login table: `check`, `list`, `show`, `permit`, `revoke`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from pbs_policy.cli.session import Session

if TYPE_CHECKING:
    from pbs_policy.check import Outcome

NO = 1
"""Exit status of `check` for an address that may not relay, and of `show` where there is nothing to show."""

json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


@click.command()
@click.argument("address")
@click.option("--sender", default="", metavar="SENDER", help="MAIL FROM address, for sender_match.")
@json_option
@click.pass_obj
def check(session: Session, address: str, sender: str, as_json: bool) -> int:
    """What the service would answer ADDRESS now, and why.

    Exit status 0 for OK, 1 for DUNNO, 69 when Redis is unavailable.

    \b
    Example:
      pbs-policy check 192.0.2.7
      pbs-policy check 2001:db8::7 --sender alice@example.com
    """
    from pbs_policy import policy
    from pbs_policy.check import check as check_relay

    settings, table = session.open_table()
    client = settings.addresses.parse(address)
    outcome = check_relay(table, settings.rules, client, sender)
    if as_json:
        import json

        click.echo(json.dumps(_outcome_as_json(client.text, outcome), indent=2))
    else:
        click.echo(_outcome_as_text(client.text, outcome))
    return os.EX_OK if outcome.decision.action == policy.OK else NO


@click.command("list")
@json_option
@click.pass_obj
def list_logins(session: Session, as_json: bool) -> None:
    """Who may relay now: every login and permit.

    A login is listed once for each user behind its address. Up to 10,000 come sorted by address; more come as
    Redis has them, while they are read.

    \b
    Example:
      pbs-policy list
      pbs-policy list --json | jq -r '.[].client_address'
    """
    from pbs_policy.cli.output import show_entries

    _, table = session.open_table()
    show_entries(table.entries(), as_json=as_json)


@click.command()
@click.argument("who", metavar="ADDRESS|USER")
@json_option
@click.pass_obj
def show(session: Session, who: str, as_json: bool) -> int:
    """The logins and permits of one client ADDRESS, or of one USER.

    Exit status 1 where there are none.

    \b
    Example:
      pbs-policy show 192.0.2.7
      pbs-policy show alice@example.com
    """
    from pbs_policy.cli.output import show_entries

    settings, table = session.open_table()
    client = settings.addresses.find(who)
    entries = table.entries(client_address=client.text) if client else table.entries(user=who)
    return os.EX_OK if show_entries(entries, as_json=as_json) else NO


def _duration(_: click.Context, parameter: click.Parameter, text: str) -> int:
    from pbs_policy.duration import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None


@click.command()
@click.argument("address")
@click.option("--user", default="", metavar="USER", help="Whom it is for; shown in listings and logs.")
@click.option("--for", "seconds", default="8h", metavar="TIME", callback=_duration, show_default=True,
              help="How long: 90s, 30m, 8h, 90d.")  # fmt: skip
@click.pass_obj
def permit(session: Session, address: str, user: str, seconds: int) -> None:
    """Let ADDRESS relay for a time without a login, as if its user had logged in.

    \b
    Example:
      pbs-policy permit 192.0.2.7 --user scanner@example.com --for 90d
    """
    from pbs_policy.address import AddressError
    from pbs_policy.duration import format_duration

    settings, table = session.open_table()
    client = settings.addresses.parse(address)
    if client.excluded:
        raise AddressError(f"{client.text} is never permitted to relay: {client.excluded}")
    table.permit(client.text, user, seconds)
    click.echo(f"{client.text} may relay for {format_duration(seconds)}")


@click.command()
@click.argument("who", metavar="ADDRESS|USER")
@click.pass_obj
def revoke(session: Session, who: str) -> None:
    """Take the permission of a client ADDRESS away, or what USER's logins gave, from the next request on.

    Others who are logged in from the same address keep theirs when a USER is revoked. A new login permits again.

    \b
    Example:
      pbs-policy revoke 192.0.2.7
      pbs-policy revoke alice@example.com
    """
    from pbs_policy.log import printable

    settings, table = session.open_table()
    client = settings.addresses.find(who)
    gone = table.revoke_address(client.text) if client else table.revoke_user(who)
    if not gone:
        click.echo(f"nothing to revoke for {printable(who)}")
    for address in gone:
        click.echo(f"revoked: {address}" + ("" if client else f" for {printable(who)}"))


def _outcome_as_json(client_address: str, outcome: Outcome) -> dict[str, Any]:
    decision, record = outcome.decision, outcome.decision.record
    return {
        "client_address": client_address,
        "action": decision.action,
        "reason": decision.reason,
        "would_be": decision.would_be or None,
        "user": record.user_text if record else None,
        "service": record.service if record else None,
        "login_at": record.login_at if record else None,
        "left": round(outcome.left) if record else None,
    }


def _outcome_as_text(client_address: str, outcome: Outcome) -> str:
    import time

    from pbs_policy.duration import format_duration
    from pbs_policy.log import printable

    decision, record = outcome.decision, outcome.decision.record
    text = f"{decision.action}  {client_address}: {_WHY.get(decision.reason, decision.reason)}"
    if record:
        since, left = format_duration(time.time() - record.login_at), format_duration(outcome.left)
        text += f" {printable(record.user) or 'no user recorded'} ({record.service or 'service not recorded'})"
        text += f" {since} ago, {left} left"
    if decision.would_be:
        text += f" (observe_only: without it, {decision.would_be})"
    return f"{text} (reason={decision.reason})"


_WHY = {
    "login": "may relay, logged in as",
    "permit": "may relay, permitted for",
    "no_login": "nobody is logged in from there, or it is too long ago",
    "sender_mismatch": "there is a login, but not of the sender (sender_match)",
    "denied": "an administrator's deny stands against it",
    "key_without_end": "its key in Redis has no end, and is not honoured",
    "never_record": "in a network that never_record excludes",
    "loopback": "a loopback address is never permitted",
    "link_local": "a link-local address is never permitted",
    "unspecified": "an unspecified address is never permitted",
    "multicast": "a multicast or reserved address is never permitted",
}
