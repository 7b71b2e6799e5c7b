"""Redis' protocol read and written: by hiredis, and by our own where hiredis is too old or not there."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbs_policy.store import resp
from pbs_policy.store.resp import NOTHING_YET, NotRedis, PlainReader, Reader, ReplyError, pack

LIST_AS_KEY = b"%1\r\n*0\r\n:1\r\n"
"""A map of RESP3, at which hiredis 2.0 to 3.1.0 ends the process (SIGSEGV)."""

RESP3 = [each + b"\r\n" for each in (b"_", b"#t", b"#f", b",1.5", b"(1", b"~0", b">0", b"=5\r\ntxt:x")]


def replies_in(reader: Reader, pieces: list[bytes]) -> list[Any]:
    """All replies, errors as their texts."""
    found: list[Any] = []
    for piece in pieces:
        reader.feed(piece)
        while (reply := reader.gets()) is not NOTHING_YET:
            found.append(reply)
    return [_comparable(each) for each in found]


def _comparable(reply: Any) -> Any:
    if isinstance(reply, list):
        return [_comparable(each) for each in reply]
    return ("error", str(reply)) if isinstance(reply, ReplyError) else reply


def _written(reply: Any) -> bytes:
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(_written, reply))
    if isinstance(reply, bytes):
        return b"$%d\r\n%s\r\n" % (len(reply), reply)
    if isinstance(reply, str):
        return f"-{reply}\r\n".encode()
    return b"$-1\r\n" if reply is None else b":%d\r\n" % reply


LEAVES = st.one_of(
    st.none(), st.binary(max_size=20), st.integers(-(2**63), 2**63 - 1), st.from_regex(r"\A[A-Z]{1,9} [ -~]{0,20}\Z")
)
REPLIES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@given(st.lists(REPLIES, max_size=4), st.data())
def test_our_own_reader_gives_what_hiredis_gives_however_the_bytes_are_cut(
    replies: list[Any], data: st.DataObject
) -> None:
    stream = b"".join(map(_written, replies))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert replies_in(PlainReader(), pieces) == replies_in(resp.reader(), [stream])


@pytest.mark.parametrize(
    "data",
    [
        LIST_AS_KEY,
        *RESP3,
        b"$x\r\n",
        b"$-2\r\n",
        b"$3\r\nabcd\r\n",
        b"$99999999999\r\n",
        b":1x\r\n",
        b":\r\n",
        b"*-2\r\n",
        b"*9999999999\r\n",
        b"*1\r\n" * 20,
        b"220 mail.example.com ESMTP\r\n",
        b"+" + b"x" * 100_000,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_protocol_of_redis_is_an_error_of_our_own_reader(data: bytes) -> None:
    reader = PlainReader()
    reader.feed(data)
    with pytest.raises(NotRedis):
        reader.gets()


@given(st.binary(max_size=60))
def test_whatever_comes_our_own_reader_raises_nothing_else(data: bytes) -> None:
    with suppress(NotRedis):
        replies_in(PlainReader(), [data])


def test_a_list_that_announces_a_billion_items_costs_nothing_before_they_come() -> None:
    reader = PlainReader()
    reader.feed(b"*1000000000\r\n:1\r\n")
    assert reader.gets() is NOTHING_YET


@given(st.lists(st.binary(), min_size=1))
def test_what_is_packed_by_hand_is_what_hiredis_packs(parts: list[bytes]) -> None:
    packed = pack(tuple(parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resp, "_IS_SAFE", False)
        assert pack(tuple(parts)) == packed


def test_the_oldest_hiredis_that_is_installed_with_us_is_the_oldest_that_is_used() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    (bound,) = (each for each in project["dependencies"] if each.startswith("hiredis"))
    assert tuple(map(int, re.findall(r"\d+", bound.removeprefix("hiredis")))) == resp.OLDEST_SAFE


@pytest.fixture
def liar() -> Iterator[int]:
    """The port of what answers everything with LIST_AS_KEY."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    opened, _ = listening.accept()
                except OSError:
                    return
                with opened:
                    opened.settimeout(5)
                    if opened.recv(4096):
                        opened.sendall(LIST_AS_KEY)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_list_says_that_no_redis_answers_there(liar: int, tmp_path: Path) -> None:
    settings = tmp_path / "pbs-policy.conf"
    settings.write_text(f"redis_url = redis://127.0.0.1:{liar}/0\n")
    command = [sys.executable, "-m", "pbs_policy", "-c", str(settings), "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode > 0, "ended by a signal"
    assert "what answers there does not speak Redis' protocol" in done.stderr
