"""Whatever is sent to the port of the metrics, in whatever pieces: one reply of HTTP, of a known status and the
length that it says. A page is shown for its own path and GET alone, and no more is kept than a head.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Any

from pbs_policy.metrics.http import LONGEST_HEAD, HttpServer, Reply
from tests.fuzz.targets import Supply

WORDS = (
    b"GET ", b"HEAD ", b"POST ", b"/metrics", b"/healthz", b"?", b" HTTP/1.1\r\n", b" HTTP/1.0\n", b"\r\n\r\n",
    b"\n\n", b"Host: x\r\n", b"Content-Length: 5\r\n", b"\xfe", b"%2e", b"\0", b" HTTP/2\r\n",
)  # fmt: skip

_REPLY = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Za-z ]+\r\n(?:[A-Za-z-]+: [!-~ ]+\r\n)+\r\n", re.ASCII)
_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n")
_BODY = b"the page\n"


class _Connection:
    """In place of a socket, and of the loop that reads and writes it."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self.sent = b""
        self.read = 0

    async def sock_recv(self, _: object, size: int) -> bytes:
        piece = self._pieces.pop(0)[:size] if self._pieces else b""
        self.read += len(piece)
        return piece

    async def sock_sendall(self, _: object, data: bytes) -> None:
        self.sent += data

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class _NoTimeout:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


async def _page() -> Reply:
    return Reply(HTTPStatus.OK, _BODY)


async def _failing() -> Reply:
    raise ValueError("a fault of the page")


def run(data: bytes) -> None:
    """The first bytes say how the others are cut; 0xFE stands for a long piece of text."""
    supply = Supply(data)
    sizes = [1 + supply.number(200) for _ in range(supply.number(6))]
    stream = supply.rest().replace(b"\xfe", b"x" * 3_000)
    pieces, at = [], 0
    for size in sizes:
        pieces.append(stream[at : at + size])
        at += size
    pieces = [each for each in [*pieces, stream[at:]] if each]
    connection: Any = _Connection(pieces)
    faults: list[str] = []
    server: Any = object.__new__(HttpServer)  # without a loop
    server._pages = {"/metrics": _page, "/healthz": _failing}
    server._report = faults.append
    server._loop = connection
    module: Any = asyncio
    timeout, module.timeout = module.timeout, lambda _: _NoTimeout()  # nobody waits
    try:
        server._converse(connection).send(None)
    except StopIteration:
        pass
    finally:
        module.timeout = timeout
    _judge(connection, stream, faults)


def _judge(connection: _Connection, stream: bytes, faults: list[str]) -> None:
    assert connection.read <= 2 * LONGEST_HEAD
    assert all(fault.isprintable() for fault in faults)
    head = _REPLY.match(connection.sent)
    assert head is not None, connection.sent
    assert HTTPStatus(int(head[1]))
    body = connection.sent[head.end() :]
    length = _LENGTH.search(head[0])
    assert length is not None
    if stream.startswith(b"HEAD "):
        assert body == b"" or head[1] in (b"400", b"431")
    else:
        assert len(body) == int(length[1])
    if head[1] == b"200":
        assert re.match(rb"(GET|HEAD) /metrics(\?[!-~]*)? HTTP/1\.[01]\r?\n", stream)
    else:
        assert body != _BODY
        assert bool(faults) == (head[1] == b"500")
