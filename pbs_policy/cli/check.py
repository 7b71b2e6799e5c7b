"""`pbs-policy check`: what the service would answer now, and why, rule by rule."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from pbs_policy.cli.completion import suggest_address
from pbs_policy.cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pbs_policy.address import ClientAddress
    from pbs_policy.decision.rules import Decision
    from pbs_policy.decision.words import Explanation, Row
    from pbs_policy.postfix.protocol import Request

NOT_OK = 1
"""Exit status for an address that may not relay."""


@click.command()
@click.argument("address", shell_complete=suggest_address)
@click.option("--sender", metavar="SENDER", help="MAIL FROM address; without it, the null sender's (bounces).")
@click.option("--recipient", default="", metavar="RECIPIENT", help="RCPT TO address, for permits with recipients.")
@click.option("--tls", is_flag=True, help="As over an encrypted SMTP session, for require_tls.")
@click.option("--instance", default="", metavar="ID", help="The message, as in a request of Postfix, for caps.")
@click.option("-q", "--quiet", is_flag=True, help="Only the answer, without the rules.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
@click.pass_obj
def check(
    session: Session,
    address: str,
    sender: str | None,
    recipient: str,
    tls: bool,
    instance: str,
    quiet: bool,
    as_json: bool,
) -> int:
    """What the service would answer ADDRESS now, and why: what each rule saw, and what would let it pass.

    Nothing is counted: the caps are looked at. Exit status 0 for OK, 1 for DUNNO, 69 when Redis is unavailable.

    \b
    Example:
      pbs-policy check 192.0.2.7
      pbs-policy check 2001:db8::7 --sender alice@example.com --recipient bob@example.net --tls
    """
    from pbs_policy.decision.check import check as check_relay
    from pbs_policy.decision.rules import OK
    from pbs_policy.decision.words import explain

    settings, table = session.open_table()
    maps, denies = settings.load_sender_maps(), settings.load_denies()
    client = settings.addresses.parse(address)
    request = _make_request(
        client_address=address,
        sender=sender or "",
        recipient=recipient,
        encryption_protocol="TLSv1.3" if tls else "",
        instance=instance,
    )
    if quiet:
        decision = check_relay(table, settings.rules, client, request, maps, denies)
        _show(_answer_as_json(client, decision) if as_json else [_answer_as_text(client, decision)])
    else:
        explanation = explain(table, settings.rules, client, request, maps, denies)
        if sender is None:
            explanation = _ask_for_sender(explanation)
        decision = explanation.decision
        _show(_as_json(explanation) if as_json else _as_text(explanation))
    return os.EX_OK if decision.action == OK else NOT_OK


def _ask_for_sender(explanation: Explanation) -> Explanation:
    """What to change, where the sender is refused that nobody has named: not the settings."""
    change = "name the sender, such as --sender alice@example.com: without it, the null sender (of bounces) was tried"
    rows = (
        row._replace(change=change) if (row.rule, row.verdict) == ("senders", "refuse") else row
        for row in explanation.rows
    )
    return explanation._replace(rows=tuple(rows))


def _make_request(**attributes: str) -> Request:
    from pbs_policy.postfix.protocol import ProtocolError, RequestParser
    from pbs_policy.postfix.query import serialise_request

    try:
        request = RequestParser().next_request(serialise_request(attributes))
    except (ValueError, ProtocolError) as error:
        raise click.UsageError(str(error)) from None
    if request is None:
        raise click.UsageError("expected a request that ends")
    return request


def _show(shown: dict[str, Any] | list[str]) -> None:
    import json

    click.echo(json.dumps(shown, indent=2) if isinstance(shown, dict) else "\n".join(shown))


def _answer_as_text(client: ClientAddress, decision: Decision) -> str:
    import time

    from pbs_policy.duration import format_duration
    from pbs_policy.log import printable

    record = decision.record
    text = f"{decision.action}  {client.text}: {WHY.get(decision.reason, decision.reason)}"
    if record:
        text += f" {printable(record.user) or 'no user recorded'} ({record.how})"
        text += f" {format_duration(time.time() - record.login_at)} ago"
    if record and decision.left:
        text += f", {format_duration(decision.left)} left"
    if decision.would_be:
        text += f" (observe_only: without it, {decision.would_be})"
    return f"{text} (reason={decision.reason})"


def _as_text(explanation: Explanation) -> list[str]:
    from pbs_policy.decision.words import ORDER

    lines = [_answer_as_text(explanation.client, explanation.decision)]
    width = max(map(len, ORDER))
    for row in explanation.rows:
        mark = "REFUSE" if row.verdict == "refuse" else row.verdict
        first, *rest = _lines_of(row)
        lines.append(f"  {row.rule:<{width}}  {mark:<9}  {first}".rstrip())
        lines += [" " * (width + 15) + line for line in rest]
    return lines


def _lines_of(row: Row) -> Iterator[str]:
    yield row.saw
    yield from row.details
    if row.change:
        yield f"change: {row.change}"


def _answer_as_json(client: ClientAddress, decision: Decision) -> dict[str, Any]:
    import time

    from pbs_policy.table.rows import write_time

    record = decision.record
    return {
        "client_address": client.text,
        "action": decision.action,
        "reason": decision.reason,
        "would_be": decision.would_be or None,
        "user": (record.user_text or None) if record else None,
        "service": (record.service or None) if record else None,
        "since": write_time(record.login_at) if record else None,
        "expires_at": write_time(time.time() + decision.left) if decision.left else None,
        "recorded_by": (record.recorded_by or None) if record else None,
    }


def _as_json(explanation: Explanation) -> dict[str, Any]:
    import time

    from pbs_policy.table.rows import entry_row

    steps = [
        {
            "rule": row.rule,
            "verdict": row.verdict,
            "saw": row.saw,
            "reason": row.reason or None,
            "change": row.change or None,
            "details": list(row.details),
        }
        for row in explanation.rows
    ]
    others = [entry_row(entry, time.time()) for entry in explanation.others]
    answer = _answer_as_json(explanation.client, explanation.decision)
    return {**answer, "steps": steps, "others": others, "more_others": explanation.more}


WHY = {
    "login": "may relay, logged in as",
    "permit": "may relay, permitted for",
    "no_login": "nobody is logged in from there, or it is too long ago",
    "service_mismatch": "there is a login, but by a service that does not count (services)",
    "domain_mismatch": "there is a login, but of a user whose domain does not count (login_domains)",
    "sender_mismatch": "there is a login or permit, but not for the sender (sender_match)",
    "recipient_mismatch": "there is a permit, but not for the recipient",
    "no_tls": "the session is not encrypted (require_tls)",
    "denied": "an administrator's deny stands against it",
    "user_unknown": "the login does not say whose it is, while users are denied or capped",
    "sender_uncertain": "a user is denied, and the sender could be another spelling of their name",
    "denied_user": "a deny stands against",
    "key_without_end": "its key in Redis has no end, and is not honoured",
    "cap": "over the cap, by the login or permit of",
    "never_record": "in a network that never_record excludes",
    "loopback": "a loopback address is never permitted",
    "link_local": "a link-local address is never permitted",
    "unspecified": "an unspecified address is never permitted",
    "multicast": "a multicast or reserved address is never permitted",
}
"""Each reason in words; where a login or permit decided, its user follows."""
