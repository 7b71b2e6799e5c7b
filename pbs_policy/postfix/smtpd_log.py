"""Relay attempts in the log of Postfix: lines in, attempts out. No I/O, and nothing of ours but what Postfix logs.

What tells of an attempt:

- a refusal, one line of smtpd:
  `smtpd[1]: NOQUEUE: reject: RCPT from unknown[192.0.2.7]: 554 5.7.1 <b@x>: Relay access denied; from=<a@y> to=<b@x>
  proto=ESMTP helo=<h>`, with a queue id instead of NOQUEUE after a first recipient was taken;
- a message that went on by SMTP, three lines under its queue id: smtpd's `client=host[192.0.2.7]`, qmgr's
  `from=<a@y>`, and for each recipient smtp's `to=<b@x>`. What is delivered otherwise (local, lmtp, virtual, and the
  relay service, which serves relay_domains) was for a domain of our own.

Before that stands a syslog header, with a time of RFC 3164 or RFC 3339, or none. Several Postfix instances and hosts
may share a log. Every byte of an address, of a host's name or of a HELO is the peer's: a line that can be understood
in two ways is not understood at all. No line raises an exception.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_REMEMBERED = 50_000
"""Messages and recipients that are kept until Postfix has removed the message: more than a busy queue holds."""

ACCEPTED = "250"
"""What Postfix replied to the recipient of a message that it took; the log does not say more."""

_TIME = r"(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d))"
# The name before the slash is the instance's (multi_instance_name, syslog_name); a service's own may follow.
_LINE = re.compile(
    rf"(?:{_TIME} (?P<host>\S+) )?"
    r"(?P<instance>[\w.-]+)/(?P<service>(?:[\w.-]+/)*)(?P<program>smtpd|qmgr|smtp)\[\d+\]: "
    r"(?P<id>[0-9A-Za-z]+): (?P<text>.*)"
)
# RFC 5321: what stands in quotes may hold any letter, also < and >.
_ADDRESS = r'((?:[^<>"]++|"(?:[^"\\]|\\.)*+")*+)'
_CLIENT = r"([^\s\[\]]+)\[([^\s\[\]]+)\](?::\d+)?"
_REFUSAL = re.compile(rf"reject: RCPT from {_CLIENT}: ([45]\d\d .*)")
# A look ahead, so that a second one is found which begins inside the first.
_ENVELOPE = re.compile(rf"(?=; from=<{_ADDRESS}> to=<{_ADDRESS}> proto=\S+(?: helo=<(.*)>)?)")
_ARRIVAL = re.compile(rf"client={_CLIENT}(, .*)?")
_SENDER = re.compile(rf"from=<{_ADDRESS}>, size=")
_RECIPIENT = re.compile(rf"to=<{_ADDRESS}>, (?:orig_to=<{_ADDRESS}>, )?(?:relay|delay)=")
# The refusals that the policy service has a part in: reject_unauth_destination's, and the temporary ones of the
# examples and of the service itself.
_ABOUT_RELAYING = re.compile(r": Relay access denied$|: relay permission cannot be checked now")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Attempt(NamedTuple):
    """One recipient, and what Postfix replied: `554 5.7.1 ...`, or `ACCEPTED`.

    `about_relaying` says whether that reply was to the question whether the client may relay: a refusal may have
    another reason, and a recipient that was rewritten (orig_to) was perhaps one of our own.
    """

    client_address: str
    client_name: str
    helo_name: str
    sender: str
    recipient: str
    reply: str
    about_relaying: bool


@dataclass(slots=True)
class _Message:
    client_name: str
    client_address: str
    sender: str | None = None
    recipients: set[str] = field(default_factory=set)


_Key = tuple[str | None, str, str]


@dataclass
class SmtpdLog:
    """Reads a log line by line. `unparseable`, `authenticated` and `forgotten` count what gave no attempt: lines of
    the kinds above that are not understood, messages of clients with SMTP AUTH (Postfix asks no policy service
    about them), and messages that `remembered` had no room for."""

    remembered: int = MAX_REMEMBERED
    unparseable: int = 0
    authenticated: int = 0
    forgotten: int = 0
    _messages: OrderedDict[_Key, _Message] = field(default_factory=OrderedDict)
    _size: int = 0

    def read(self, line: str) -> Attempt | None:
        """The attempt that `line`, without its end, completes; None where it completes none."""
        found = _LINE.fullmatch(line)
        if not found:
            return None
        if _CONTROL.search(line):
            self.unparseable += 1
            return None
        text = found["text"]
        key = found["host"], found["instance"], found["id"]
        if found["program"] == "smtpd":
            if text.startswith("reject: RCPT from "):
                return self._refusal(text)
            if text.startswith("client="):
                self._arrival(key, text)
        elif found["program"] == "qmgr":
            if text.startswith("from=<"):
                self._sender(key, text)
            elif text == "removed":
                self._forget(key)
        elif text.startswith("to=<") and found["service"] != "relay/":
            return self._recipient(key, text)
        return None

    def _refusal(self, text: str) -> Attempt | None:
        head = _REFUSAL.fullmatch(text)
        envelopes = list(_ENVELOPE.finditer(text))
        if not head or len(envelopes) != 1:
            self.unparseable += 1
            return None
        sender, recipient, helo_name = envelopes[0].groups(default="")
        reply = text[head.start(3) : envelopes[0].start()]
        about_relaying = _ABOUT_RELAYING.search(reply) is not None
        return Attempt(head[2], head[1], helo_name, sender, recipient, reply, about_relaying)

    def _arrival(self, key: _Key, text: str) -> None:
        self._forget(key)  # Postfix gives a short queue id to another message later
        found = _ARRIVAL.fullmatch(text)
        if not found:
            self.unparseable += 1
        elif ", sasl_username=" in (found[3] or ""):
            self.authenticated += 1
        elif ", orig_client=" not in (found[3] or ""):  # that comes back from a content filter, and was seen before
            self._messages[key] = _Message(found[1], found[2])
            self._make_room()

    def _sender(self, key: _Key, text: str) -> None:
        message = self._messages.get(key)
        if message:
            found = _SENDER.match(text)
            if found:
                message.sender = found[1]
            else:
                self.unparseable += 1
                self._forget(key)

    def _recipient(self, key: _Key, text: str) -> Attempt | None:
        message = self._messages.get(key)
        if not message or message.sender is None:
            return None
        found = _RECIPIENT.match(text)
        if not found:
            self.unparseable += 1
            return None
        recipient = found[2] or found[1]
        if recipient in message.recipients:
            return None  # tried again
        message.recipients.add(recipient)
        self._make_room()
        return Attempt(
            message.client_address, message.client_name, "", message.sender, recipient, ACCEPTED, not found[2]
        )

    def _make_room(self) -> None:
        self._size += 1
        while self._size > self.remembered:
            self._forget(next(iter(self._messages)))
            self.forgotten += 1

    def _forget(self, key: _Key) -> None:
        message = self._messages.pop(key, None)
        if message:
            self._size -= 1 + len(message.recipients)
