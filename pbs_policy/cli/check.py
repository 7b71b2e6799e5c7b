"""`pbs-policy check`: what the service would answer now, and why, rule by rule."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

from pbs_policy.address import ClientAddress
from pbs_policy.cli.completion import suggest_address
from pbs_policy.cli.output import show_json
from pbs_policy.cli.query import NOT_OK, STATUSES, ask_running, make_request
from pbs_policy.cli.session import Session
from pbs_policy.cli.who import parse_each
from pbs_policy.decision.check import Enquiry
from pbs_policy.decision.row import Row
from pbs_policy.decision.rules import Decision
from pbs_policy.decision.sender import unquote_sender
from pbs_policy.decision.words import ORDER, Explanation, explain
from pbs_policy.duration import ago_at, format_duration
from pbs_policy.log import printable
from pbs_policy.postfix.protocol import as_request
from pbs_policy.table.listing import encode
from pbs_policy.table.rows import entry_row, write_time


@click.command()
@click.argument("given", metavar="ADDRESS...|-", nargs=-1, required=True, shell_complete=suggest_address)
@click.option("--sender", metavar="SENDER", help="MAIL FROM address; empty: the null sender (bounces).")
@click.option("--recipient", metavar="RECIPIENT", help="RCPT TO address, for permits with recipients.")
@click.option("--tls", is_flag=True, help="As over an encrypted SMTP session, for require_tls.")
@click.option("--instance", metavar="ID", help="The message, as in a request of Postfix, for caps.")
@click.option("--live", is_flag=True, help="Ask the running service too, and say where it answers otherwise.")
@click.option("-q", "--quiet", is_flag=True, help="Only the answer, without the rules.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text; of several an array.")
@click.pass_obj
def check(
    session: Session,
    given: tuple[str, ...],
    sender: str | None,
    recipient: str | None,
    tls: bool,
    instance: str | None,
    live: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """What the service would answer each ADDRESS now, and why: what each rule saw, and what would let it pass.

    With - the addresses are read from standard input, one a line. Nothing is counted: the caps are looked at. With
    --live the running service is asked the same (the first of the setting listen): where it answers otherwise, it has
    other settings or another Redis, and its answer counts for the exit status.

    Exit status 0 for OK, 1 for DUNNO of one of them, 69 when Redis is unavailable or the service does not reply, 75
    where the service says DEFER_IF_REJECT.

    \b
    Example:
      pbs-policy check 192.0.2.7
      pbs-policy check 2001:db8::7 --sender alice@example.com --recipient bob@example.net --tls --live
    """
    settings, table = session.open_table()
    maps, denies = settings.load_sender_maps(), settings.load_denies()
    options = {
        "sender": None if sender is None else _mailbox(sender),
        "recipient": recipient,
        "encryption_protocol": "TLSv1.3" if tls else None,
        "instance": instance,
    }
    attributes = {name: text for name, text in options.items() if text is not None}

    def parse(text: str) -> tuple[ClientAddress, bytes]:
        return settings.addresses.parse(text), make_request({"client_address": text, **attributes})

    actions, rows = set(), []
    for client, request in parse_each(given, parse):
        asked = Enquiry(table, settings.rules, client, as_request(request[:-1]), maps, denies)
        explanation = explain(asked, is_brief=quiet)
        live_action = ask_running(settings.listen[0], request) if live else ""
        actions.add((live_action or explanation.decision.action).partition(" ")[0])
        if as_json:
            answer = {**_answer_as_json(explanation), "live_action": live_action or None}
            rows.append(answer if quiet else {**answer, **_rows_as_json(explanation)})
            continue
        click.echo(_answer_as_text(explanation, is_sender_given=sender is not None))
        if live:
            click.echo(f"  {_compared(explanation.decision, live_action)} ({settings.listen[0]})")
        if not quiet:
            click.echo("\n".join(_rows_as_text(explanation)))
    if as_json:
        is_one = len(given) == 1 and given != ("-",)
        show_json(rows[0] if is_one else rows)
    return max(STATUSES.get(action, NOT_OK) for action in actions)


def _mailbox(sender: str) -> str:
    """A sender as Postfix's requests have it, from one as people and logs write it: <alice@example.com> or
    "alice"@example.com. Raises UsageError."""
    bare = sender[1:-1] if sender.startswith("<") and sender.endswith(">") else sender
    try:
        return unquote_sender(encode(bare)).decode("utf-8", "surrogateescape") if bare.startswith('"') else bare
    except ValueError as error:
        raise click.UsageError(f"--sender: {error}") from None


def _compared(decision: Decision, live_action: str) -> str:
    """What the running service has answered, beside what it should."""
    kind = live_action.partition(" ")[0]
    if kind == decision.action:
        return "the running service answers the same"
    if kind == "DEFER_IF_REJECT":
        return f"the running service answers {kind}: it cannot ask Redis, its log says why"
    return (
        f"the running service answers {printable(kind)}: it has other settings or another Redis; reload it, and look "
        "at its log"
    )


def _answer_as_text(explanation: Explanation, *, is_sender_given: bool) -> str:
    client, decision, record = explanation.client, explanation.decision, explanation.decision.record
    text = f"{decision.action}  {client.text}: {_why(explanation, is_sender_given)}"
    if record and not explanation.deny:
        text += f" {printable(record.user) or 'no user recorded'} ({record.how})"
        text += f" {ago_at(record.login_at, time.time())}"
    if record and decision.left:
        text += f", {format_duration(decision.left)} left"
    if decision.would_be:
        text += f" (observe_only: without it, {decision.would_be})"
    return f"{text} (reason={decision.reason})"


def _why(explanation: Explanation, is_sender_given: bool) -> str:
    """The reason in words: what decides, also where the service need not look so far."""
    reason, deny = explanation.decision.reason, explanation.deny
    if deny:
        return deny.saw + ("; and nobody is logged in from there" if reason == "no_login" else "")
    if reason == "sender_mismatch" and not is_sender_given:
        return "no sender given (--sender), and not every sender may relay from there (sender_match)"
    return WHY.get(reason, reason)


def _rows_as_text(explanation: Explanation) -> Iterator[str]:
    width = max(map(len, ORDER))
    for row in explanation.rows:
        mark = "REFUSE" if row.verdict == "refuse" else row.verdict
        first, *rest = _lines_of(row)
        yield f"  {row.rule:<{width}}  {mark:<9}  {first}".rstrip()
        yield from (" " * (width + 15) + line for line in rest)


def _lines_of(row: Row) -> Iterator[str]:
    yield row.saw
    yield from row.details
    if row.change:
        yield f"change: {row.change}"


def _answer_as_json(explanation: Explanation) -> dict[str, Any]:
    decision, record = explanation.decision, explanation.decision.record
    return {
        "client_address": explanation.client.text,
        "action": decision.action,
        "reason": decision.reason,
        "would_be": decision.would_be or None,
        "user": (record.user_text or None) if record else None,
        "service": (record.service or None) if record else None,
        "since": write_time(record.login_at) if record else None,
        "expires_at": write_time(time.time() + decision.left) if decision.left else None,
        "recorded_by": (record.recorded_by or None) if record else None,
    }


def _rows_as_json(explanation: Explanation) -> dict[str, Any]:
    steps = [
        {**row._asdict(), "reason": row.reason or None, "change": row.change or None} for row in explanation.rows
    ]
    others = [entry_row(entry, time.time()) for entry in explanation.others]
    return {"steps": steps, "others": others, "more_others": explanation.more}


WHY = {
    "login": "may relay, logged in as",
    "permit": "may relay, permitted for",
    "no_login": "nobody is logged in from there, or it is too long ago",
    "service_mismatch": "there is a login, but by a service that does not count (services)",
    "domain_mismatch": "there is a login, but of a user whose domain does not count (login_domains)",
    "sender_mismatch": "there is a login or permit, but not for the sender (sender_match)",
    "recipient_mismatch": "there is a permit, but not for the recipient",
    "no_tls": "the session is not encrypted (require_tls)",
    "denied": "a deny stands against it",
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
