"""A line-by-line client for SMTP, POP3 and IMAP that keeps the transcript.

The demo shows the transcript, the tests read it. Nothing is interpreted here: who calls knows the protocol.
Secrets are sent, and shown as something else.
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self

ANSWER_SECONDS = 30.0
"""How long one line may take: more than Postfix waits for a policy service as the examples configure it."""

# Servers keep their reply lines below this (SMTP: 512 bytes, RFC 5321 section 4.5.3.1.5; Dovecot: 8192).
LINE_MAX = 8192


class Conversation:
    """One connection. `transcript` has a `C: ` line for each line sent, an `S: ` line for each received."""

    def __init__(self, host: str, port: int) -> None:
        """Connect. Raises OSError if nobody listens there."""
        self.transcript: list[str] = []
        self._socket = socket.create_connection((host, port), timeout=ANSWER_SECONDS)
        self._stream = self._socket.makefile("rb")

    def send(self, line: str, *, shown: str | None = None) -> None:
        """Send a line; `shown` stands in the transcript instead if the line holds a secret."""
        self.transcript.append(f"C: {line if shown is None else shown}")
        self._socket.sendall(line.encode("utf-8") + b"\r\n")

    def read_line(self) -> str:
        """Return the server's next line without its end. Raises ConnectionError if the server closes."""
        raw = self._stream.readline(LINE_MAX)
        if not raw:
            raise ConnectionError("the server closed the connection; so far:\n" + "\n".join(self.transcript))
        line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
        self.transcript.append(f"S: {line}")
        return line

    def ask(self, line: str, *, shown: str | None = None) -> str:
        """Send a line and return the one line that answers it."""
        self.send(line, shown=shown)
        return self.read_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._socket.close()
