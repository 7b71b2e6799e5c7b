"""Servers that say what a test has them say: any, a policy service, a Redis."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from pbs_policy.postfix.listener import Listener

Serve = Callable[[Any, Any], None]
"""What becomes of one connection: what comes in, and where to write to."""


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, serve: Serve, listener: Listener) -> None:
        self.address_family = socket.AF_UNIX if listener.path else socket.AF_INET
        address: Any = listener.path or (listener.host, listener.port)  # typed for TCP alone
        super().__init__(address, _Handler)
        self.serve = serve


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        with suppress(OSError):
            self.server.serve(self.rfile, self.wfile)


FREE_PORT = Listener(host="127.0.0.1")


@contextmanager
def serving(serve: Serve, listener: Listener = FREE_PORT) -> Iterator[int]:
    """A server, and its port."""
    with _Server(serve, listener) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield int(server.socket.getsockname()[1]) if not listener.path else 0
        finally:
            server.shutdown()
            thread.join()


class StandIn:
    """A policy service that keeps each request, and sends the next of `replies` for it, the last one again and again;
    hangs up after one that has no end."""

    def __init__(self, *replies: bytes) -> None:
        self.listener = FREE_PORT
        self.replies = list(replies)
        self.requests: list[bytes] = []
        self.connections = 0

    def serve(self, asked: Any, answer: Any) -> None:
        self.connections += 1
        request = b""
        for line in asked:
            request += line
            if line == b"\n":
                self.requests.append(request)
                request = b""
                reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
                answer.write(reply)
                if not reply.endswith(b"\n\n"):
                    return


@contextmanager
def answering(*replies: bytes, listener: Listener = FREE_PORT) -> Iterator[StandIn]:
    """A policy service that says `replies`."""
    stand_in = StandIn(*replies)
    with serving(stand_in.serve, listener) as port:
        stand_in.listener = replace(listener, port=port)
        yield stand_in


def words_of(asked: Any) -> Iterator[list[bytes]]:
    """Each command of a client of Redis."""
    while head := asked.readline():
        words = []
        for _ in range(int(head[1:])):
            words.append(asked.read(int(asked.readline()[1:])))
            asked.readline()
        yield words


@contextmanager
def redis_that_says(answer: Callable[[list[bytes]], Iterable[bytes]], pause: float = 0.0) -> Iterator[str]:
    """The URL of a server that says to each command what `answer` has, in pieces with a pause in between."""
    gone = threading.Event()

    def serve(asked: Any, told: Any) -> None:
        for words in words_of(asked):
            for piece in answer(words):
                told.write(piece)
                if pause and gone.wait(pause):
                    return

    with serving(serve) as port:
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            gone.set()
