"""Relay attempts in the log of Postfix: lines in, attempts out. No I/O, and nothing of ours but what Postfix logs.

What tells of an attempt:

- a refusal, one line of smtpd:
  `smtpd[1]: NOQUEUE: reject: RCPT from unknown[192.0.2.7]: 554 5.7.1 <b@x>: Relay access denied; from=<a@y> to=<b@x>
  proto=ESMTP helo=<h>`, with a queue id instead of NOQUEUE after a first recipient was taken;
- a message that went on by SMTP, three lines under its queue id: smtpd's `client=host[192.0.2.7]`, qmgr's
  `from=<a@y>`, and for each recipient smtp's `to=<b@x>`. What is delivered otherwise (local, lmtp, virtual, and the
  relay service, which serves relay_domains) was for a domain of our own;
- of a message that a content filter gives back, the delivery after that. What went to the filter and what came back
  are known as one message by `orig_queue_id=`, by `queued as` in the filter's reply (only of a filter on this host:
  a stranger's reply may say anything), or by smtpd's `proxy-accept` where the filter stands before the queue. What
  comes from this host and belongs to no other message is its own.

Several Postfix instances and hosts may share a log. Every byte of an address, of a host's name or of a HELO is the
peer's: a line that can be understood in two ways is not understood at all. No line raises an exception.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from pbs_policy.postfix.log_lines import Line, looks_like_smtpd, read_line

MAX_REMEMBERED = 50_000
"""Messages and recipients that are kept until Postfix has removed the message: more than a busy queue holds."""

MAX_WAITING = 1_000
"""Messages that came from this host and are delivered: which other message they are is told within a second or so."""

_MOST_INSTANCES = 16
"""Instances of Postfix in one log that may give their mail to one another."""

ACCEPTED = "250"
"""What Postfix replied to the recipient of a message that it took; the log does not say more."""

_ID = r"([0-9A-Za-z]+)"
# RFC 5321: what stands in quotes may hold any letter, also < and >.
_ADDRESS = r'((?:[^<>"]++|"(?:[^"\\]|\\.)*+")*+)'
_CLIENT = r"([^\s\[\]]+)\[([^\s\[\]]+)\](?::\d+)?"
_ENTRY = re.compile(rf"{_ID}: (.*)")
_REFUSAL = re.compile(rf"reject: RCPT from {_CLIENT}: ([45]\d\d .*)")
# A look ahead, so that a second one is found which begins inside the first.
_ENVELOPE = re.compile(rf"(?=; from=<{_ADDRESS}> to=<{_ADDRESS}> proto=\S+(?: helo=<(.*)>)?)")
_ARRIVAL = re.compile(rf"client={_CLIENT}(?:, orig_queue_id={_ID})?(, .*)?")
_SENDER = re.compile(rf"from=<{_ADDRESS}>, size=")
_RECIPIENT = re.compile(rf"to=<{_ADDRESS}>, (?:orig_to=<{_ADDRESS}>, )?(?:relay|delay)=")
_QUEUED_AS = re.compile(rf"relay=[^\s\[]+\[([^\s\]]+)\](?::\d+)?, .* queued as {_ID}\)")
_PROXIED = re.compile(rf"proxy-accept: END-OF-MESSAGE: 250 (?:(?!; from=<).)* queued as {_ID}; from=<.*")
# The refusals that the policy service has a part in: reject_unauth_destination's and defer_unauth_destination's, and
# the temporary ones of the examples and of the service itself.
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


_Key = tuple[str, str, str]
"""Host, instance and queue id, or (`_process`) that of smtpd which gives a message to a filter before the queue."""


@dataclass(eq=False, slots=True)
class _Message:
    """A message in the queue, or on its way to a filter before the queue.

    `returned`: it came back from a filter, or from this host, and is nobody's until its `origin` is known.
    `delivered`: of one that went to a filter, each recipient and what it was before it was rewritten; `held`: of one
    that came back, the recipients that wait for that.
    """

    key: _Key
    client_name: str
    client_address: str
    authenticated: bool = False
    returned: bool = False
    removed: bool = False
    sender: str | None = None
    recipients: set[str] = field(default_factory=set)
    origin: _Message | None = None
    followers: list[_Message] = field(default_factory=list)
    delivered: dict[str, str | None] | None = None
    held: dict[str, str | None] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How much room it takes."""
        return 1 + len(self.recipients) + len(self.delivered or ()) + len(self.held)


@dataclass
class SmtpdLog:
    """Reads a log line by line. `lines` counts those of Postfix; `unparseable`, `authenticated` and `forgotten` what
    gave no attempt: lines that seem to be of the kinds above and are not understood, messages of clients with SMTP
    AUTH (Postfix asks no policy service about them), and messages that `remembered` had no room for."""

    remembered: int = MAX_REMEMBERED
    lines: int = 0
    unparseable: int = 0
    authenticated: int = 0
    forgotten: int = 0
    _messages: OrderedDict[_Key, _Message] = field(default_factory=OrderedDict)
    _waiting: OrderedDict[_Key, None] = field(default_factory=OrderedDict)  # those of _messages that are removed
    _instances: set[tuple[str, str]] = field(default_factory=set)
    _size: int = 0

    def read(self, line: str) -> list[Attempt]:
        """The attempts that `line`, without its end, completes."""
        found = read_line(line)
        if found is None:
            self.unparseable += looks_like_smtpd(line)
            return []
        self.lines += 1
        if found.program not in ("smtpd", "qmgr", "smtp", "lmtp"):
            return []
        if _CONTROL.search(found.text):
            self.unparseable += 1
            return []
        if found.program == "smtpd" and found.text.startswith("proxy-accept: "):
            return self._proxied(found)
        entry = _ENTRY.fullmatch(found.text)
        if not entry:
            return []
        key, text = (found.host, found.instance, entry[1]), entry[2]
        if found.program == "smtpd":
            if text.startswith("reject: RCPT from "):
                return self._refusal(text)
            if text.startswith("client="):
                self._arrival(key, text, found)
        elif found.program == "qmgr":
            if text.startswith("from=<"):
                return self._sender(key, text)
            if text == "removed":
                self._removed(key)
        elif text.startswith("to=<"):
            return self._recipient(key, text, own=found.program == "lmtp" or found.service == "relay/")
        return []

    def _refusal(self, text: str) -> list[Attempt]:
        head = _REFUSAL.fullmatch(text)
        envelopes = list(_ENVELOPE.finditer(text))
        if not head or len(envelopes) != 1:
            self.unparseable += 1
            return []
        sender, recipient, helo_name = envelopes[0].groups(default="")
        reply = text[head.start(3) : envelopes[0].start()]
        about_relaying = _ABOUT_RELAYING.search(reply) is not None
        return [Attempt(head[2], head[1], helo_name, sender, recipient, reply, about_relaying)]

    def _arrival(self, key: _Key, text: str, line: Line) -> None:
        if key[2] == "NOQUEUE":  # on its way to a filter before the queue
            key = _process(line)
        self._forget(key)  # Postfix gives a short queue id to another message later
        found = _ARRIVAL.fullmatch(text)
        if not found:
            self.unparseable += 1
            return
        rest = found[4] or ""
        message = _Message(key, found[1], found[2], ", sasl_username=" in rest)
        self.authenticated += message.authenticated
        message.returned = bool(found[3]) or ", orig_client=" in rest or _is_loopback(message.client_address)
        if len(self._instances) < _MOST_INSTANCES:
            self._instances.add(key[:2])
        if found[3]:
            origin = self._find(key, found[3])
            if origin is None or f"[{origin.client_address}]" not in rest:
                return  # its beginning is not in the log
            self._follow(message, origin)
        self._messages[key] = message
        self._grow(message, 1)

    def _find(self, key: _Key, queue_id: str) -> _Message | None:
        """The message of this queue id, in the same instance, or in the only other one of the host that has it."""
        same = self._messages.get((*key[:2], queue_id))
        others = [self._messages.get((*each, queue_id)) for each in self._instances if each[0] == key[0]]
        found = [each for each in others if each]
        return same or (found[0] if len(found) == 1 else None)

    def _follow(self, message: _Message, origin: _Message) -> None:
        """`message` is what a filter has made of `origin`."""
        message.origin = origin
        origin.followers.append(message)
        if origin.delivered is None:
            origin.delivered = {}

    def _proxied(self, line: Line) -> list[Attempt]:
        found = _PROXIED.fullmatch(line.text)
        origin = self._messages.get(_process(line))
        self._forget(_process(line))
        message = self._find((line.host, line.instance, ""), found[1]) if found else None
        if origin is None or message is None or not message.returned or message.origin:
            return []
        message.origin = origin
        return self._release(message)

    def _sender(self, key: _Key, text: str) -> list[Attempt]:
        message = self._messages.get(key)
        if message is None:
            return []
        found = _SENDER.match(text)
        if not found:
            self.unparseable += 1
            self._forget(key)
            return []
        message.sender = found[1]
        return self._release(message)

    def _recipient(self, key: _Key, text: str, *, own: bool) -> list[Attempt]:
        message = self._messages.get(key)
        if message is None:
            return []
        found = _RECIPIENT.match(text)
        if not found:
            self.unparseable += 1
            return []
        to, before = found[1], found[2]
        self._follow_reply(key, message, text[found.end() - len("relay=") :])
        if message.delivered is not None:
            is_new = to not in message.delivered
            message.delivered[to] = before
            self._grow(message, is_new)
            return [each for follower in message.followers[:] for each in self._release(follower)]
        named = before or to
        if own or named in message.recipients:
            return []  # for a domain of our own, or tried again
        if message.returned:
            is_new = named not in message.held
            message.held[named] = before
            self._grow(message, is_new)
            return self._release(message)
        if message.sender is None or message.authenticated:
            return []
        return [self._accepted(message, message, message.sender, named, rewritten=before is not None)]

    def _follow_reply(self, key: _Key, message: _Message, rest: str) -> None:
        """A filter on this host may say only in its reply which message came back."""
        queued = _QUEUED_AS.fullmatch(rest)
        other = self._find(key, queued[2]) if queued and _is_loopback(queued[1]) else None
        if other and other is not message and other.returned and other.origin is None:
            self._follow(other, message)

    def _release(self, message: _Message) -> list[Attempt]:
        """What is held of a message that came back, as far as it is known now who sent it, and to whom."""
        origin = message.origin
        if origin is None:
            return []
        if origin.authenticated or origin.returned:
            self._forget(message.key)
            return []
        first = message if origin.delivered is None else origin
        found = []
        for name, before in list(message.held.items()):
            if first.sender is None or (origin.delivered is not None and name not in origin.delivered):
                continue
            earlier = origin.delivered[name] if origin.delivered is not None else None
            del message.held[name]
            self._grow(message, -1)
            named, rewritten = earlier or name, earlier is not None or before is not None
            if named not in message.recipients:
                found.append(self._accepted(message, origin, first.sender, named, rewritten=rewritten))
        if message.removed and not message.held:
            self._forget(message.key)
        return found

    def _accepted(
        self, message: _Message, client: _Message, sender: str, recipient: str, *, rewritten: bool
    ) -> Attempt:
        message.recipients.add(recipient)
        self._grow(message, 1)
        address, name = client.client_address, client.client_name
        return Attempt(address, name, "", sender, recipient, ACCEPTED, not rewritten)

    def _removed(self, key: _Key) -> None:
        message = self._messages.get(key)
        if message is None or not (message.held or (message.returned and not message.origin)):
            self._forget(key)
            return
        message.removed = True  # what it belongs to may be told a moment later
        self._waiting[key] = None
        if len(self._waiting) > MAX_WAITING:
            self._forget(next(iter(self._waiting)))

    def _grow(self, message: _Message, by: int) -> None:
        """Count what a message has more, and forget the oldest where that is too much."""
        if self._messages.get(message.key) is not message:
            return  # it was forgotten
        self._size += by
        while self._size > self.remembered:
            oldest = next(iter(self._messages))
            self.forgotten += not self._messages[oldest].removed
            self._forget(oldest)

    def _forget(self, key: _Key) -> None:
        message = self._messages.pop(key, None)
        self._waiting.pop(key, None)
        if message:
            self._size -= message.size
            if message.origin and message in message.origin.followers:
                message.origin.followers.remove(message)


def _process(line: Line) -> _Key:
    return line.host, line.instance, f"smtpd[{line.pid}]"


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
