"""Whatever servers, Sentinels and nodes of a Cluster answer to the question who the master is: a host and a port
that can be connected to, one of those asked or named by one; or `MasterUnknown`, after all of them were asked.
"""

from __future__ import annotations

from typing import Any

import hiredis

from pbs_policy.store.redis_master import MasterUnknown, search, without_password
from pbs_policy.store.redis_url import Login, RedisUrl
from tests.fuzz.targets import TOO_MANY, Supply

WORDS = (
    b"*2\r\n", b"$9\r\n127.0.0.1\r\n", b"$4\r\n6379\r\n", b"-MOVED 7 127.0.0.1:7001\r\n", b"-ASK 7 :7002\r\n",
    b":99999\r\n", b"$4\r\nrole\r\n", b"$6\r\nmaster\r\n", b"$7\r\nreplica\r\n", b"*-1\r\n", b"$-1\r\n",
    b"-READONLY x\r\n", b"+OK\r\n", b"-ERR unknown command 'AUTH', with args beginning with: 's3cr3t-word'\r\n",
    b"_\r\n", b"%1\r\n", b"\xff",
)  # fmt: skip

PASSWORD = "s3cr3t-word"
_URLS = tuple(
    RedisUrl.parse(text)
    for text in (
        "redis://192.0.2.1,192.0.2.2,[2001:db8::3]:7000",
        "redis+sentinel://192.0.2.1,192.0.2.2,192.0.2.3/mymaster",
        "redis+cluster://192.0.2.1,192.0.2.2:7000",
    )
)


def run(data: bytes) -> None:
    """The first byte chooses the kind; the others are the reply of one place after the other."""
    supply = Supply(data)
    url = _URLS[supply.number(len(_URLS))]
    login = Login("", PASSWORD)
    steps = search(url, url.places, login, login, (b"GET", b"{pbs}:probe"))
    asked = []
    said = b""
    try:
        step = next(steps)
        while True:
            asked.append(step.place)
            piece = supply.piece()
            said += piece
            step = steps.send(_outcome(piece, step.login))
    except StopIteration as end:
        host, port = end.value
        assert isinstance(host, str)
        assert host
        assert 0 < port < 65536
        assert end.value in url.places or b"%d" % port in said
        return
    except MasterUnknown as error:
        trouble = str(error), tuple(error.replicas)
    assert PASSWORD not in trouble[0]
    assert asked == list(url.places)
    assert set(trouble[1]) <= set(asked)


def _outcome(piece: bytes, login: Any) -> Any:
    """What a connection makes of the bytes: a reply, or an exception."""
    if TOO_MANY.search(piece):
        return OSError("no answer")
    reader = hiredis.Reader()
    try:
        reader.feed(piece)
        reply = reader.gets()
    except Exception as error:  # noqa: BLE001 - `redis_line` does the same
        return OSError(str(error))
    if reply is False:
        return OSError("no answer")
    return OSError(without_password(str(reply), login)) if isinstance(reply, Exception) else reply
