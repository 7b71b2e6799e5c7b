"""`pbs-policy replay`: what a running service would have answered to what a log or a capture tells of."""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import click

from pbs_policy.cli.output import counted, whole
from pbs_policy.cli.query import ServiceUnreachable, find_listener, listener_option
from pbs_policy.cli.session import Session, say
from pbs_policy.log import printable, value
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.protocol import (
    MAX_LINE_SIZE,
    MAX_REQUEST_SIZE,
    ProtocolError,
    Request,
    RequestParser,
    first,
    only,
)
from pbs_policy.postfix.query import PolicyClient, only_looking, serialise_request
from pbs_policy.postfix.smtpd_log import SmtpdLog

_GZIP = b"\x1f\x8b"

DIFFERS = 1
"""Exit status where Postfix did something else than it would do now."""


class _Asked(NamedTuple):
    """One request, and what Postfix replied to its client: empty where that is not known. `comparable` says whether
    that reply was to the question that the service answers."""

    request: bytes
    client_address: str
    sender: str
    recipient: str
    reply: str = ""
    comparable: bool = False


@click.command()
@listener_option
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text, one object a line, the summary last.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.pass_obj
def replay(session: Session, address: Listener | None, as_json: bool, files: tuple[str, ...]) -> int:
    """Ask the running service about each request that FILE tells of, and compare its answers with what Postfix did.

    A FILE is a log of Postfix, or requests as Postfix sent them to a policy service; also compressed by gzip. For
    standard input write -. From a log come refused recipients, and messages that went on by SMTP; what passes a
    content filter counts once it has come back. Clients that Postfix permits by mynetworks differ: it asks nobody
    about them. Clients with SMTP AUTH are left out, and so is this host. A log does not say who used TLS. Nothing is
    counted for all this: no cap comes nearer. The service logs its answers.

    A log of yesterday is asked of the logins, permits and denies of today: who was logged in then is refused now.

    Exit status 1 where an answer differs, 65 where there was nothing of Postfix's in any FILE.

    \b
    Example:
      pbs-policy replay /var/log/mail.log.1.gz /var/log/mail.log
      journalctl -u 'postfix*' | pbs-policy replay --json - | jq 'select(.differs)'
    """
    log, answers, differ = SmtpdLog(), Counter[str](), 0
    with closing(_Service(find_listener(session, address))) as service:
        for name in files:
            with _opened(name) as stream:
                for asked in _read(stream, log):
                    action = service.ask(asked.request)
                    differs = asked.comparable and _differs(asked.reply, action)
                    answers[action.partition(" ")[0]] += 1
                    differ += differs
                    click.echo(_line(asked, action, differs, as_json=as_json))
    click.echo((_summary_as_json if as_json else _summary_as_text)(answers, differ, log))
    if not answers and not log.lines:
        say(f"{', '.join(files)}: no line of Postfix's and no request was understood")
        return os.EX_DATAERR
    if differ and log.lines:
        click.echo("note: a log is asked of the logins, permits and denies as they are now", err=True)
    return DIFFERS if differ else os.EX_OK


class _Service:
    """The running service, on one connection as long as that lasts."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._connection: PolicyClient | None = None

    def ask(self, request: bytes) -> str:
        """The action of the reply. Raises ServiceUnreachable where there is none, on a new connection neither."""
        is_new = self._connection is None
        try:
            self._connection = self._connection or PolicyClient(self._listener)
            return printable(self._connection.ask(request).action)
        except OSError as error:
            self.close()
            if is_new:
                raise ServiceUnreachable(self._listener, error) from None
            return self.ask(request)  # the service was started anew, perhaps

    def close(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None


@contextmanager
def _opened(name: str) -> Iterator[Iterable[bytes | None]]:
    """The lines of a file, of standard input for `-`, unpacked where they are compressed; None for one too long.

    Raises OSError where it cannot be read.
    """
    with nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as stream:
        # Both are BufferedReaders; the type of standard input does not say so.
        is_packed = cast("BufferedReader", stream).peek(2).startswith(_GZIP)
        try:
            yield _lines(cast("BinaryIO", gzip.GzipFile(fileobj=stream)) if is_packed else stream)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise OSError(f"{name}: not a sound gzip file: {error}") from None


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Each line without its end; None for one that is longer than any of Postfix is."""
    while line := stream.readline(MAX_LINE_SIZE):
        if len(line) < MAX_LINE_SIZE or line.endswith(b"\n"):
            yield line.removesuffix(b"\n")
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_SIZE)
        yield None


def _read(lines: Iterable[bytes | None], log: SmtpdLog) -> Iterator[_Asked]:
    """What there is to ask. A file that begins with name=value has requests, any other is a log.

    `log` goes on from one file to the next, and counts what is not understood of either kind.
    """
    rest = iter(lines)
    first = next((line for line in rest if line != b""), b"")
    is_capture = first is not None and re.match(rb"\w+=", first)
    yield from (_from_capture if is_capture else _from_log)(chain([first], rest), log)


def _from_log(lines: Iterable[bytes | None], log: SmtpdLog) -> Iterator[_Asked]:
    for line in lines:
        if line is None:
            log.unparseable += 1
            continue
        for found in log.read(line.removesuffix(b"\r").decode("utf-8", "surrogateescape")):
            names = ("client_address", "client_name", "helo_name", "sender", "recipient")
            request = serialise_request({name: getattr(found, name) for name in names})
            who = found.client_address, found.sender, found.recipient
            yield _Asked(only_looking(request), *who, found.reply, found.about_relaying)


def _from_capture(lines: Iterable[bytes | None], log: SmtpdLog) -> Iterator[_Asked]:
    kept: list[bytes] = []
    size = 0
    # The last request may lack the empty line at its end.
    for line in chain(lines, [b""]):
        size += MAX_REQUEST_SIZE if line is None else len(line) + 1
        if line and size < MAX_REQUEST_SIZE:
            kept.append(line + b"\n")
        if line == b"":
            request = _sound_request(only_looking(b"".join(kept) + b"\n")) if size <= MAX_REQUEST_SIZE else None
            if request:
                yield request
            elif size > 1:
                log.unparseable += 1
            kept, size = [], 0


def _sound_request(data: bytes) -> _Asked | None:
    """The request in these bytes, or None where the service would close the connection upon it."""
    try:
        request: Request | None = RequestParser().next_request(data)
        if request is None:
            return None
        values = only(request, b"client_address"), only(request, b"sender"), first(request, b"recipient")
    except ProtocolError:
        return None
    client_address, sender, recipient = (each.decode("utf-8", "surrogateescape") for each in values)
    return _Asked(data, client_address, sender, recipient)


def _differs(reply: str, action: str) -> bool:
    """Whether Postfix's reply was of another kind than it would be after this action.

    DUNNO leaves it to the restriction behind the check: 554, or 454 where that is Debian's defer_unauth_destination,
    which says the same after DEFER_IF_REJECT.
    """
    kind, denied = reply[:1], reply.endswith("Relay access denied")
    as_before = {"OK": kind == "2", "DUNNO": denied or kind == "5", "DEFER_IF_REJECT": kind == "4"}
    return not as_before.get(action.partition(" ")[0], False)


def _line(asked: _Asked, action: str, differs: bool, *, as_json: bool) -> str:
    row = {"client_address": asked.client_address, "sender": asked.sender, "recipient": asked.recipient}
    if as_json:
        told = {**row, "postfix": asked.reply or None, "action": action, "differs": differs}
        return whole(json.dumps(told, ensure_ascii=False))
    row |= {"postfix": asked.reply[:3]} if asked.reply else {}
    row["action"] = action.partition(" ")[0]
    return " ".join(f"{name}={value(text)}" for name, text in row.items()) + (" differs" if differs else "")


def _summary_as_json(answers: Counter[str], differ: int, log: SmtpdLog) -> str:
    left_out = {"with_smtp_auth": log.authenticated, "unparseable": log.unparseable, "forgotten": log.forgotten}
    return json.dumps({"summary": {"requests": answers.total(), "answers": answers, "differ": differ, **left_out}})


def _summary_as_text(answers: Counter[str], differ: int, log: SmtpdLog) -> str:
    asked = {"OK": 0, "DUNNO": 0, "DEFER_IF_REJECT": 0, **answers}
    text = f"{counted(answers.total(), 'request')}: "
    text += ", ".join(f"{count:,} {action}" for action, count in asked.items())
    text += f"; {differ:,} differ{'s' * (differ == 1)} from what Postfix did"
    left_out = (
        (log.authenticated, "message with SMTP AUTH", "messages with SMTP AUTH"),
        (log.unparseable, "line or request not understood", "lines or requests not understood"),
        (log.forgotten, "message forgotten, too many were under way", "messages forgotten, too many were under way"),
    )
    return text + "".join(f"; {counted(*each)}" for each in left_out if each[0])
