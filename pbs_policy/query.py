"""A client of the policy service: asks it one request, as Postfix would."""

from __future__ import annotations

import socket
from typing import NamedTuple

from pbs_policy.listener import Listener

_TIMEOUT = 5.0  # seconds: more than the service may take by its own rules


class Exchange(NamedTuple):
    """The bytes of a request and of its reply, and the action in it."""

    request: bytes
    reply: bytes
    action: str


def ask(listener: Listener, client_address: str, *, sender: str, recipient: str) -> Exchange:
    """Ask the service at `listener` about one relay attempt.

    Raises OSError where it cannot be reached or does not answer in the policy delegation protocol.
    """
    pairs = {
        "request": "smtpd_access_policy",
        "protocol_state": "RCPT",
        "protocol_name": "ESMTP",
        "client_address": client_address,
        "sender": sender,
        "recipient": recipient,
    }
    request = "".join(f"{name}={value}\n" for name, value in pairs.items()).encode() + b"\n"
    with _connect(listener) as connection:
        connection.sendall(request)
        reply = b""
        while not reply.endswith(b"\n\n"):
            data = connection.recv(4096)
            if not data:
                raise ConnectionError(f"the service at {listener} closed the connection after {reply!r}")
            reply += data
    return Exchange(request, reply, reply.decode().removeprefix("action=").strip())


def _connect(listener: Listener) -> socket.socket:
    if not listener.path:
        return socket.create_connection((listener.host, listener.port), timeout=_TIMEOUT)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_TIMEOUT)
    connection.connect(listener.path)
    return connection
