"""Connections of redis-py that wait for an answer and not for each piece of it.

redis-py's time-out starts anew with every byte, so a peer that sends one now and then would hold a command for ever.
Here an answer, or those to all that is sent in one go, has to be complete `within` seconds from the question.
"""

from __future__ import annotations

import math
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from pbs_policy.store.resp import redis


class InTimeSocket(socket.socket):
    """A socket whose answer has to be there by a point in time; its time-out is for each piece of it, as ever."""

    within = math.inf
    _answer_by = math.inf

    def expect(self) -> None:
        """The time for an answer begins now."""
        self._answer_by = time.monotonic() + self.within

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        self.expect()
        super().sendall(data, flags)

    def send(self, data: Any, flags: int = 0, /) -> int:  # TLS sends all in pieces
        with self._in_time(flags):
            return super().send(data, flags)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        with self._in_time(flags):
            return super().recv(buflen, flags)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        with self._in_time(flags):
            return super().recv_into(buffer, nbytes or 0, flags)

    @contextmanager
    def _in_time(self, flags: int) -> Iterator[None]:
        timeout = self.gettimeout()
        if timeout == 0 or flags & (socket.MSG_PEEK | socket.MSG_DONTWAIT):
            yield  # it only looks whether there is something
            return
        left = self._answer_by - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if timeout is not None and timeout <= left:
            yield
            return
        self.settimeout(None if left == math.inf else left)
        try:
            yield
        finally:
            self.settimeout(timeout)


class InTimeTlsSocket(InTimeSocket, ssl.SSLSocket):
    """The same with TLS."""


class _InTime:
    """In front of a connection of redis-py."""

    def __init__(self, *, within: float, **options: Any) -> None:
        self._within = within
        super().__init__(**options)

    def _connect(self) -> InTimeSocket:
        plain: socket.socket = super()._connect()  # type: ignore[misc]  # redis-py's, which is untyped
        timeout, kind = plain.gettimeout(), (plain.family, plain.type, plain.proto)
        made = InTimeSocket(*kind, fileno=plain.detach())
        made.settimeout(timeout)
        made.within = self._within
        return made


class TcpConnection(_InTime, redis.Connection):
    """A connection by TCP."""


class UnixConnection(_InTime, redis.UnixDomainSocketConnection):
    """A connection by a unix socket."""


class TlsConnection(TcpConnection):
    """TLS that trusts only whom the settings name: redis-py's own trusts the system's authorities as well."""

    def __init__(self, *, context: ssl.SSLContext, **options: Any) -> None:
        self._context = context
        context.sslsocket_class = InTimeTlsSocket
        super().__init__(**options)

    def _connect(self) -> InTimeSocket:
        connection = super()._connect()
        try:
            secured = cast("InTimeTlsSocket", self._context.wrap_socket(connection, server_hostname=self.host))
        except BaseException:
            connection.close()
            raise
        secured.within = self._within
        return secured


def expect(connection: Any) -> None:
    """Begin the time for what a server sends unasked."""
    if isinstance(connection._sock, InTimeSocket):
        connection._sock.expect()
