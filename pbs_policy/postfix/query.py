"""A client of the policy service: asks it as Postfix would, one request after the other on a connection."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple, Self

from pbs_policy.postfix.listener import Listener

TIMEOUT = 5.0
"""Seconds for a connection, and for a request with all of its reply: the service may take less by its own rules."""

_LONGEST_REPLY = 8_192  # bytes: Postfix reads less, and no peer fills our memory

_NAME = re.compile(r"[A-Za-z0-9_]+")

# What every request begins with; the rest is for who asks.
_FIRST = {"request": "smtpd_access_policy", "protocol_state": "RCPT", "protocol_name": "ESMTP"}


_ONLY_LOOKS = b"pbs_only_looks=yes\n"


class Exchange(NamedTuple):
    """The bytes of a request and of its reply, and the action in it."""

    request: bytes
    reply: bytes
    action: str


def serialise_request(attributes: Mapping[str, str]) -> bytes:
    """The bytes of a request with these attributes, at RCPT where they do not say otherwise.

    Values go out as UTF-8, bytes that were none in an argument or a file (surrogateescape) as they were. Raises
    ValueError for a name or value that the policy delegation protocol (SMTPD_POLICY_README) cannot carry.
    """
    lines = []
    for name, value in {**_FIRST, **attributes}.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"not an attribute's name: {name!r} (expected letters, digits and _)")
        if "\n" in value or value.endswith("\r"):
            raise ValueError(f"the value of {name} has a line end in it: {value!r}")
        lines.append(f"{name}={value}\n")
    return "".join(lines).encode("utf-8", "surrogateescape") + b"\n"


def only_looking(request: bytes) -> bytes:
    """The same request with an attribute of ours at its end, which Postfix never sends: nothing is counted for it, by
    caps or for the report (`case.Case`), and nobody is denied for it."""
    return request[:-1] + _ONLY_LOOKS + b"\n"


def connect(listener: Listener, timeout: float) -> socket.socket:
    """A connection to the service at `listener`, each of its calls waiting for `timeout` seconds at the most.

    Raises OSError where nobody listens there.
    """
    if not listener.path:
        return socket.create_connection((listener.host, listener.port), timeout=timeout)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(listener.path)
    except OSError:
        connection.close()
        raise
    return connection


class PolicyClient:
    """One connection to the service, as each smtpd process keeps one. Raises OSError where nobody listens there."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._socket = connect(listener, TIMEOUT)

    def ask(self, request: bytes) -> Exchange:
        """Send the bytes of one request, and wait for its reply.

        Raises OSError where it is not complete in time, or what comes is not of the policy delegation protocol. After
        that the connection is of no further use.
        """
        answer_by = time.monotonic() + TIMEOUT
        self._socket.settimeout(TIMEOUT)
        self._socket.sendall(request)
        reply = b""
        while not reply.endswith(b"\n\n"):
            left = answer_by - time.monotonic()
            if left <= 0:  # a byte now and then is no answer
                raise TimeoutError("timed out")
            self._socket.settimeout(left)
            data = self._socket.recv(4096)
            if not data:
                raise ConnectionError(f"the service at {self._listener} closed the connection after {reply!r}")
            reply += data
            if len(reply) > _LONGEST_REPLY:
                raise ConnectionError(f"what listens at {self._listener} sent more than {_LONGEST_REPLY} bytes")
        if not reply.startswith(b"action=") or reply.count(b"\n") != 2:
            raise ConnectionError(f"what listens at {self._listener} is no policy service: it said {reply[:80]!r}")
        return Exchange(request, reply, reply[len(b"action=") :].decode("utf-8", "replace").strip())

    def close(self) -> None:
        """Close it. Whatever came after the last reply is lost."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask_once(listener: Listener, request: bytes) -> Exchange:
    """Ask the service at `listener` one request on its own connection. Raises OSError as `PolicyClient` does."""
    with PolicyClient(listener) as connection:
        return connection.ask(request)


def ask(listener: Listener, client_address: str, *, sender: str, recipient: str) -> Exchange:
    """Ask the service at `listener` about one relay attempt. Raises OSError as `PolicyClient` does."""
    attributes = {"client_address": client_address, "sender": sender, "recipient": recipient}
    return ask_once(listener, serialise_request(attributes))
