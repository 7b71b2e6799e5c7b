"""Random reports at the recorder, as many as asked: `python -m tests.fuzz.reports 1000000` (`make fuzz`).

Each is a report of Dovecot's, broken on purpose in its JSON, its HTTP or its bytes, and cut anywhere. What must hold:
nothing is answered but 2xx and 4xx, nothing is an exception, and nothing is recorded but what a whole report of a
success said: with the very user and address that it named.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from io import BytesIO
from typing import Any

from pbs_policy.log import Log
from pbs_policy.recorder.logins import LoginRules, SeenLogin
from pbs_policy.recorder.reports import ReportServer, ReportVisit
from pbs_policy.recorder.writer import LoginWriter
from pbs_policy.settings import defaults
from tests.fuzz.transport import Transport
from tests.recorder.report import ALICE

STATUS = re.compile(rb"^HTTP/1\.[01] (\d\d\d) ", re.MULTILINE)
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 1e308, "", "yes", "no", "true", "\0", "\n", "\ud800", "\udcff", "é", "a" * 500, [],
    ["yes"], {}, {"success": True}, "ANONYMOUS", "admin", "imap", "smtp", "fe80::1%eth0", "127.0.0.1", "1.2.3",
]  # fmt: skip
NOISE = [b"", b"\0", b"\xff", b'"', b"\\", b"{", b"}", b",", b":", b"\r\n", b"\r\n\r\n", b"true", b'"success": true']
TARGETS = [b"/?command=report"] * 8 + [
    b"/?command=allow", b"/", b"/??command=report", b"/?command=report&command=allow", b"*",
    b"http://[x/?command=report", b"//x?command=report", b"/?command=%72eport", b"/?command=\xff", b"/?" + b"a" * 300,
]  # fmt: skip
HEADERS = [
    b"Content-Encoding: gzip", b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Connection: close",
    b"Connection: upgrade\r\nUpgrade: websocket", b"Content-Length: 5", b"Content-Length: -1", b"X: " + b"x" * 300,
    b": x", b"X-API-Key: \xff", b"Content-Type: text/\xff; charset=\x01", b"Host: [", b"Cookie: a=\"",
]  # fmt: skip


class Bench:
    """A recorder without Redis, which keeps what it would record of the request that is under way."""

    def __init__(self) -> None:
        lookups: Any = None
        self.output = BytesIO()
        log = Log(self.output)
        self.writer = LoginWriter(LoginRules(defaults()), lookups, log)
        self.offered: list[SeenLogin] = []
        self.recorded = 0
        offer = self.writer.offer

        def keep(login: SeenLogin) -> bool:
            self.offered.append(login)
            is_recorded = offer(login)
            self.recorded += is_recorded
            return is_recorded

        self.writer.offer = keep  # type: ignore[method-assign]  # to see what comes, whatever becomes of it
        self.reports = ReportServer((), self.writer, log, "")


def make_report(randomness: random.Random) -> bytes:
    """The JSON of one, most often broken."""
    fields = {**ALICE, "remote": f"192.0.2.{randomness.randrange(256)}", "success": randomness.random() < 0.5}
    for _ in range(randomness.choice([0, 0, 1, 2])):
        fields[randomness.choice([*ALICE, "x"])] = randomness.choice(ODD)
    for _ in range(randomness.choice([0, 0, 0, 1])):
        del fields[randomness.choice([*ALICE])]
    data = json.dumps(fields, ensure_ascii=randomness.random() < 0.7).encode("utf-8", "surrogatepass")
    return spoiled(randomness, data) if randomness.random() < 0.4 else data


def spoiled(randomness: random.Random, data: bytes) -> bytes:
    for _ in range(randomness.choice([1, 1, 2, 5])):
        at = randomness.randrange(len(data) + 1)
        noise = randomness.choice([*NOISE, randomness.randbytes(4), data[at : at + 30]])
        data = data[:at] + noise + data[at + randomness.choice([0, 0, 1, 20]) :]
    return data


def make_request(randomness: random.Random) -> tuple[bytes, bytes]:
    """One request, and the body in it."""
    body = make_report(randomness)
    method = randomness.choice([b"POST"] * 20 + [b"GET", b"PUT", b"POST\xff", b"OPTIONS"])
    lines = [method + b" " + randomness.choice(TARGETS) + b" HTTP/1.1", b"Host: 127.0.0.1:10041"]
    if randomness.random() < 0.95:
        lines.append(b"Content-Type: application/json")
    if randomness.random() < 0.1:
        lines.append(randomness.choice(HEADERS))
    length = len(body) + randomness.choice([0] * 30 + [-1, 1, 100])
    return b"\r\n".join([*lines, b"Content-Length: %d" % length, b"", b""]) + body, body


def may_be_recorded(login: SeenLogin, stream: bytes) -> bool:
    """Whether somewhere in the stream stands a whole report that says so."""
    decoder = json.JSONDecoder(object_pairs_hook=list)
    text = stream.decode("utf-8", "replace")
    for start in (found.start() for found in re.finditer(r"\{", text)):
        try:
            pairs, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        said = dict(pairs) if pairs and all(isinstance(each, tuple) for each in pairs) else {}
        names = [name for name, _ in pairs] if said else []
        if (
            len(names) == len(said)
            and (said.get("success"), said.get("policy_reject"), said.get("nologin")) == (True, False, "no")
            and said["success"] is True
            and [said.get(name) for name in ("user", "remote", "protocol")]
            == [login.user.decode(), login.address, login.service]
            and said["user"]
        ):
            return True
    return False


async def run_stream(bench: Bench, randomness: random.Random) -> int:
    """A few requests on one connection. Returns how many answers there were; raises where an invariant breaks."""
    requests = [make_request(randomness) for _ in range(randomness.choice([1, 1, 1, 2, 4]))]
    stream = b"".join(request for request, _ in requests)
    if randomness.random() < 0.2:
        stream = spoiled(randomness, stream)
    transport: Any = Transport()
    visit = ReportVisit(bench.reports)
    visit.connection_made(transport)
    bench.offered.clear()
    position = 0
    while position < len(stream) and not transport.closed:
        size = randomness.choice([1, 7, 100, 8192, 8192, 8192, 8192, 8192])
        visit.data_received(stream[position : position + size])
        position += size
        await asyncio.sleep(0)
    for _ in range(4 * len(requests)):
        await asyncio.sleep(0)
    visit.connection_lost(None)
    await asyncio.sleep(0)
    statuses = STATUS.findall(transport.written)
    if bad := [each for each in statuses if each[:1] not in b"24"]:
        raise AssertionError(f"answered {bad} to {stream!r}")
    for login in bench.offered:
        if not may_be_recorded(login, stream):
            raise AssertionError(f"{login} was recorded of {stream!r}")
    return len(statuses)


async def main(number: int, seed: int) -> str:
    """Run so many requests, and say what became of them."""
    randomness, bench = random.Random(seed), Bench()
    faults: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(repr(context)))
    began, answers = time.monotonic(), 0
    while answers < number:
        answers += await run_stream(bench, randomness)
        if faults or bench.reports.counts["fault"]:
            raise AssertionError(faults or bench.output.getvalue()[-2000:])
        bench.output.seek(0)
        bench.output.truncate()
    refused, seconds = bench.reports.counts["refused"], time.monotonic() - began
    return (
        f"{answers} answers (seed {seed}), {bench.recorded} logins recorded, {refused} reports refused, "
        f"{seconds:.0f} s: nothing but 2xx and 4xx, nothing recorded that was no success"
    )


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    print(asyncio.run(main(*(arguments + [1_000_000, 1][len(arguments) :]))))
