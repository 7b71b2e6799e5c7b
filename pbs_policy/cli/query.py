"""`pbs-policy query`: asks a running service, as `postmap -q` asks a table."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from typing import BinaryIO

import click

from pbs_policy.cli.completion import suggest_listener
from pbs_policy.cli.options import parsed_by
from pbs_policy.cli.session import Session
from pbs_policy.log import printable
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.protocol import MAX_REQUEST_SIZE, ProtocolError, RequestParser
from pbs_policy.postfix.query import ask_once, only_looking, serialise_request

listener_option = click.option(
    "--listener", "address", metavar="ADDRESS", callback=parsed_by(Listener.parse),
    help="Where the service listens: inet:HOST:PORT or unix:/PATH.  [default: the first of the setting listen]",
    shell_complete=suggest_listener,
)  # fmt: skip

STATUSES = {"OK": os.EX_OK, "DEFER_IF_REJECT": os.EX_TEMPFAIL}
NOT_OK = 1
"""Exit status of an action that is not among these."""

_ATTRIBUTES = (
    "request", "protocol_state", "protocol_name", "helo_name", "queue_id", "sender", "recipient", "recipient_count",
    "client_address", "client_name", "client_port", "reverse_client_name", "instance", "sasl_method", "sasl_username",
    "sasl_sender", "size", "ccert_subject", "ccert_issuer", "ccert_fingerprint", "ccert_pubkey_fingerprint",
    "encryption_protocol", "encryption_cipher", "encryption_keysize", "etrn_domain", "stress", "policy_context",
    "server_address", "server_port", "compatibility_level", "mail_version",
)  # fmt: skip
"""What Postfix sends, up to 3.10."""


class ServiceUnreachable(click.ClickException):
    """Nobody answers where the service should be."""

    exit_code = os.EX_UNAVAILABLE

    def __init__(self, listener: Listener, error: OSError) -> None:
        why = printable(error.strerror or str(error))
        what_to_do = "see whether it runs (systemctl status pbs-policy), or correct listen or --listener"
        super().__init__(f"no reply from the policy service at {listener}: {why}; {what_to_do}")


def find_listener(session: Session, given: Listener | None) -> Listener:
    """The listener that `--listener` names, else the first of the settings. Raises SettingsError."""
    return given or session.load()[0].listen[0]


def ask_running(listener: Listener, request: bytes) -> str:
    """The action that the service answers, where nothing is counted for it. Raises ServiceUnreachable."""
    try:
        return ask_once(listener, only_looking(request)).action
    except OSError as error:
        raise ServiceUnreachable(listener, error) from None


@click.command()
@listener_option
@click.argument("attributes", metavar="NAME=VALUE...|-", nargs=-1, required=True)
@click.pass_obj
def query(session: Session, address: Listener | None, attributes: tuple[str, ...]) -> int:
    """Ask the running service one request in Postfix's own words, and print the action of its reply. What stands
    behind the answer is said by `check --live`.

    The attributes are those of Postfix's SMTPD_POLICY_README, and no others; request, protocol_state and
    protocol_name need not be given. With - a whole request is read from standard input, as Postfix sent it. Nothing
    is counted for it: no cap comes nearer. The service logs its answer as it logs others.

    Exit status 0 for OK, 1 for DUNNO, 75 for DEFER_IF_REJECT, 69 where the service gives no reply.

    \b
    Example:
      pbs-policy query client_address=192.0.2.7 sender=alice@example.com recipient=bob@example.net
      pbs-policy query --listener unix:/var/spool/postfix/pbs-policy/policy - <request
    """
    request = _read_request(sys.stdin.buffer) if attributes == ("-",) else _parse_request(attributes)
    action = ask_running(find_listener(session, address), request)
    click.echo(printable(action))
    return STATUSES.get(action.partition(" ")[0], NOT_OK)


def _parse_request(attributes: tuple[str, ...]) -> bytes:
    pairs: dict[str, str] = {}
    for attribute in attributes:
        name, equals, value = attribute.partition("=")
        if not equals:
            raise click.UsageError(f"expected NAME=VALUE such as client_address=192.0.2.7: {printable(attribute)!r}")
        if name in pairs:
            raise click.UsageError(f"{printable(name)} is given twice")
        if name not in _ATTRIBUTES:
            alike = "".join(f", did you mean {each}?" for each in get_close_matches(name, _ATTRIBUTES, 1))
            raise click.UsageError(f"Postfix sends no attribute {printable(name)!r}{alike}")
        pairs[name] = value
    return make_request(pairs)


def make_request(attributes: Mapping[str, str]) -> bytes:
    """A request that the service understands. Raises UsageError."""
    try:
        request = serialise_request(attributes)
        RequestParser().next_request(request)
    except (ValueError, ProtocolError) as error:
        raise click.UsageError(str(error)) from None
    return request


def _read_request(stream: BinaryIO) -> bytes:
    data = stream.read(MAX_REQUEST_SIZE + 1)
    # A request that was copied by hand often lacks the empty line at its end.
    data = data.rstrip(b"\n") + b"\n\n"
    parser = RequestParser()
    try:
        parser.next_request(data)
    except ProtocolError as error:
        raise click.UsageError(f"standard input: {error}, expected one request as Postfix sends it") from None
    if parser.waiting:
        raise click.UsageError("standard input: more than one request; pbs-policy replay asks them all")
    return data
