"""The Postfix policy delegation protocol: bytes in, requests out; an action in, bytes out.

Nothing here reads a socket, knows Redis or decides anything. The law is Postfix's SMTPD_POLICY_README: a request is
a run of `name=value` lines, each ended by one newline, and an empty line ends the request. Attributes come in any
order, unknown ones are ignored, missing ones count as empty. A line without "=" shows another protocol where it
comes before the request's type, and is ignored after it: to look at each costs more than all else here.
The reply is `action=...` and an empty line.

Invariant: however the bytes are cut into pieces, the same requests come out, and what is wrong with the bytes is a
`ProtocolError` after those same requests. Any other exception is a fault of this file.
"""

from __future__ import annotations

import re
from typing import TypeAlias

MAX_REQUEST_SIZE = 32_768
"""Bytes, the empty line included. Postfix cuts SMTP command lines at line_length_limit (2,048), so helo, sender and
recipient together stay under 7 kB; the rest is names and certificate fields. A peer can make us keep no more."""

MAX_LINE_SIZE = 8_192
"""Bytes, the newline included. The longest values are a certificate's subject and issuer: a few kB at the worst."""

_REQUEST_TYPE = b"request=smtpd_access_policy"
_FIRST_LINE = _REQUEST_TYPE + b"\n"
_find_empty_line = re.compile(rb"\n\n").search  # half the time of bytes.find
_KNOWN_ACTION = re.compile(r"OK|DUNNO|DEFER_IF_REJECT(?: [\x21-\x7e]+)*")


class ProtocolError(Exception):
    """The peer does not speak this protocol or is over a limit. SMTPD_POLICY_README: no reply, disconnect."""


Request: TypeAlias = bytes
"""One policy request: its lines as they were sent, each with its newline, and the empty line. `first` and
`only` read it, when they are asked, since a decision needs only one to three attributes. Every name stands
behind a newline, save the request's type where it comes first (`as_request`)."""


def as_request(lines: bytes) -> Request:
    """The request that these lines are."""
    return lines if lines.startswith(_FIRST_LINE) else b"\n" + lines


def first(request: Request, name: bytes) -> bytes:
    """The value of attribute `name`, byte for byte, the first where it stands twice; empty where missing."""
    return request.partition(b"\n" + name + b"=")[2].partition(b"\n")[0]


def only(request: Request, name: bytes) -> bytes:
    """The same for an attribute that a decision rests on.

    Raises ProtocolError where the peer names it twice: which of the two is meant cannot be known.
    """
    found = request.split(b"\n" + name + b"=", 2)
    if len(found) == 1:
        return b""
    if len(found) > 2:
        raise ProtocolError(f"attribute {name.decode('ascii', 'replace')} stands twice in one request")
    return found[1].partition(b"\n")[0]


class RequestParser:
    """Cuts one connection's bytes into requests. The caller owns the socket:

    give `next_request` what was read, then call it for more until it returns None.
    """

    __slots__ = ("_line_start", "_request_start", "_typed", "waiting")

    def __init__(self) -> None:
        self.waiting = b""
        """What was received, and is not yet a request that was taken. For others to look at."""
        self._begin_request(0)

    def _begin_request(self, at: int) -> None:
        self._request_start = self._line_start = at
        self._typed = False

    def receive(self, data: bytes) -> None:
        """Keep the next bytes off the connection, in pieces of any size, for `next_request`."""
        self.waiting = self.waiting + data if self.waiting else data

    def next_request(self, data: bytes = b"") -> Request | None:
        """The next complete request in what was received and `data` behind it, or None until there is more.

        Raises ProtocolError for a first line without "=", a carriage return at a line's end, an empty request,
        another request type, and whatever is over a limit. After it the connection is of no further use.
        """
        # One request in one piece, as Postfix sends it, is seen to be whole and sound in four looks.
        if (
            not self.waiting
            and data.startswith(_FIRST_LINE)
            and (empty_line := _find_empty_line(data)) is not None
            and empty_line.end() == len(data) < MAX_LINE_SIZE
            and 13 not in data
        ):
            return data
        self.receive(data)
        return self._next_by_lines()

    def _next_by_lines(self) -> Request | None:
        buffer = self.waiting
        while (end := buffer.find(b"\n", self._line_start)) >= 0:
            line = buffer[self._line_start : end]
            self._line_start = end + 1
            self._check_sizes(len(line) + 1, self._line_start - self._request_start)
            if line:
                self._check_line(line)
                continue
            if self._line_start == self._request_start + 1:
                raise ProtocolError("an empty request")
            if not self._typed:
                raise ProtocolError("a request without " + _REQUEST_TYPE.decode())
            request = as_request(buffer[self._request_start : self._line_start])
            self._begin_request(self._line_start)
            if self._line_start == len(buffer):
                self.waiting = b""
                self._begin_request(0)
            return request
        # What stands here is the beginning of a line; were its newline next, it would be one byte longer.
        self._check_sizes(len(buffer) - self._line_start + 1, len(buffer) - self._request_start + 1)
        self.waiting = buffer[self._request_start :]
        self._line_start -= self._request_start
        self._request_start = 0
        return None

    def _check_line(self, line: bytes) -> None:
        if line.endswith(b"\r"):
            raise ProtocolError("a line that ends with CR LF, expected LF alone")
        if self._typed:
            return
        if b"=" not in line:
            raise ProtocolError("a line without '='")
        if line.startswith(b"request="):
            if line != _REQUEST_TYPE:
                raise ProtocolError("a request type other than smtpd_access_policy")
            self._typed = True

    @staticmethod
    def _check_sizes(line_size: int, request_size: int) -> None:
        if line_size > MAX_LINE_SIZE:
            raise ProtocolError(f"a line of more than {MAX_LINE_SIZE} bytes")
        if request_size > MAX_REQUEST_SIZE:
            raise ProtocolError(f"a request of more than {MAX_REQUEST_SIZE} bytes")


def serialise_reply(action: str) -> bytes:
    """The bytes that answer one request with `action`: `OK`, `DUNNO` or `DEFER_IF_REJECT [text]` (access(5)).

    Raises ValueError for anything else. Postfix takes an empty action for a permit (it logs "has empty value" and
    goes on), and a newline would begin a second answer: neither can leave this function.
    """
    if not _KNOWN_ACTION.fullmatch(action):
        raise ValueError(f"not an action that may be sent: {action!r}")
    return b"action=" + action.encode("ascii") + b"\n\n"
