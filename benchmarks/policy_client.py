"""A client of the policy service that keeps its connection, as Postfix does, and comes from any address."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Self

from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.query import connect

REQUEST = Path(__file__).parent.parent / "tests" / "captures" / "policy" / "v4-delay-reject-yes.1.RCPT"
"""A request that Postfix 3.7 sent at a RCPT command: 29 attributes."""

_HEAD, _TAIL = re.split(rb"(?<=\nclient_address=)[^\n]*", REQUEST.read_bytes())
_SECONDS = 5.0  # more than the service may take by its own rules


class PolicyClient:
    """One connection. Raises OSError where it cannot be opened. To be closed, or used in `with`."""

    def __init__(self, target: str) -> None:
        self._socket = connect(Listener.parse(target), _SECONDS)
        if self._socket.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, client_address: str) -> str:
        """The action for a relay attempt from this address, its text left out.

        Raises OSError where the connection is lost, or what comes is no answer.
        """
        self.send(client_address)
        return self.receive()

    def send(self, client_address: str) -> None:
        """Send the request alone, for `receive` to take the answer to."""
        self._socket.sendall(_HEAD + client_address.encode() + _TAIL)

    def receive(self) -> str:
        """The action that answers what was sent. Raises OSError as `ask` does."""
        reply = b""
        while not reply.endswith(b"\n\n"):
            data = self._socket.recv(1_024)
            if not data:
                raise ConnectionError("the service closed the connection")
            reply += data
        if not reply.startswith(b"action=") or reply.count(b"\n") != 2:
            raise ConnectionError(f"not an answer: {reply!r}")
        return reply[7:-2].split(b" ")[0].decode()

    def close(self) -> None:
        """Close it; a second time does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answers(target: str) -> bool:
    """Whether a policy service answers there: it greets nobody, and any request will do."""
    try:
        with PolicyClient(target) as client:
            client.ask("198.18.0.1")
    except OSError:
        return False
    return True
