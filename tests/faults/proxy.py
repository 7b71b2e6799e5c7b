"""A TCP proxy before Redis, whose network fails in the middle of a reply when the test says so."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self


class Proxy:
    """Passes on what comes, in both directions, until it is told to fail. Listens on `port` of 127.0.0.1."""

    def __init__(self, target: int | None) -> None:
        assert target
        self._target = target
        self._silent = threading.Event()
        self._cuts = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []

    def cut_next_reply(self) -> None:
        """Pass on half of the next reply, to whomever, and close that connection."""
        self._cuts.set()

    def fall_silent(self) -> None:
        """Pass on half of the next reply of each connection, and from then on nothing; new ones are accepted."""
        self._silent.set()

    def speak_again(self) -> None:
        """Pass on everything again. What was swallowed is lost: those connections are of no use any more."""
        self._silent.clear()
        for pair in self._pairs:
            close(*pair)

    @property
    def url(self) -> str:
        """Where Redis is, by way of this."""
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for pair in self._pairs:
            close(*pair)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            self._pairs.append((client, server))
            threading.Thread(target=self._pass_questions, args=(client, server), daemon=True).start()
            threading.Thread(target=self._pass_replies, args=(server, client), daemon=True).start()

    @staticmethod
    def _pass_questions(client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65_536):
                server.sendall(data)
        close(client, server)

    def _pass_replies(self, server: socket.socket, client: socket.socket) -> None:
        is_mute = False
        with suppress(OSError):
            while data := server.recv(65_536):
                if self._silent.is_set():
                    if not is_mute:
                        client.sendall(data[: len(data) // 2])
                    is_mute = True
                    continue
                if is_mute or self._cuts.is_set():
                    self._cuts.clear()
                    client.sendall(data[: len(data) // 2])
                    break
                client.sendall(data)
        close(client, server)


def close(*sockets: socket.socket) -> None:
    """Close these, whatever is on its way."""
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
