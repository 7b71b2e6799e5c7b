"""What administrators are shown of a table into which somebody has written anything: lines that print, whatever the
command and its format, and no fault of the program.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pbs_policy.cli import run
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.store.connect import RedisClient, connect
from pbs_policy.store.redis_url import RedisUrl

HOSTILE = (
    b"\x1b[2J\x1b]0;title\x07", b"\n\naction=OK\n\n", b"\r\n", b"\xff\xfe\xff", b"a\tb", b"\xe2\x80\xae",
    b"\xc2\x9b31m", b'"', b"'; rm -rf /;'", b"$(id)", b"", b"x" * 5_000, b"192.0.2.9,", b"::ffff:192.0.2.7",
    b"0.0.0.0/0", b"[", b"\\u001b",
)  # fmt: skip
FORMATS = ("table", "json", "jsonl", "tsv")
COMMANDS = (
    *[f"{command} -o {form}" for command in ("list", "denied", "show 192.0.2.7") for form in FORMATS],
    "list --sort user", "show 192.0.2.0/24", "report", "report --json", "report --addresses", "stats",
    "stats --json", "export", "check 192.0.2.7", "check 192.0.2.7 --json",
    "check 192.0.2.7 --sender alice@example.com",
)  # fmt: skip


@pytest.fixture
def redis(redis_server: PrivateRedis) -> Iterator[RedisClient]:
    with connect(RedisUrl.parse(redis_server.url), "", "") as client:
        yield client


def fill(redis: RedisClient) -> None:
    """Each hostile text as the end of each kind of key, in each kind of value, and other types than strings."""
    day, minute = time.strftime("%Y%m%d", time.gmtime()).encode(), time.strftime("%Y%m%d%H%M", time.gmtime()).encode()
    for at, text in enumerate(HOSTILE):
        values = (b"1795453232 imap " + text, text, b'{"given_at": 1, "user": "\\u001b[2J", "note": "\\n"}')
        for kind in (b"login:", b"login:192.0.2.7,", b"permit:", b"deny:", b"deny-user:", b"networks:"):
            redis.ask([(b"SET", b"pbs:" + kind + text, values[at % 3], b"EX", b"600")])
        redis.ask([
            (b"HSET", b"pbs:use:" + day, b"n 192.0.2.7 " + text, b"3", text + b" 1 2", b"4", b"n", text),
            (b"HSET", b"pbs:stats:" + minute, b"OK login", b"3", text, b"4", b"service " + text, b"5"),
            (b"HSET", b"pbs:service:" + text, b"version", text, b"started", b"1", text, text, b"OK login", b"3"),
            (b"SADD", b"pbs:login:set" + text, b"x"), (b"RPUSH", b"pbs:deny:list" + text, b"x"),
        ])  # fmt: skip
    redis.ask([(b"SET", b"pbs:login:192.0.2.7", b"1795453232 imap \x1b[2J\n", b"EX", b"600")])


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_shown_prints(
    command: str, redis: RedisClient, redis_server: PrivateRedis, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(redis)
    status = run(["--set", f"redis_url={redis_server.url}", *command.split()])
    output, errors = capfd.readouterr()
    assert status in (0, 1), errors
    assert "fault of this program" not in errors
    assert output
    lines = (output + errors).replace("\t" if "tsv" in command else "\0", " ").split("\n")
    assert [line for line in lines if not line.isprintable()] == []


def test_a_table_of_other_types_is_an_error_in_one_line_that_prints(
    redis: RedisClient, redis_server: PrivateRedis, capfd: pytest.CaptureFixture[str]
) -> None:
    redis.ask([(b"SET", b"pbs:use:" + time.strftime("%Y%m%d", time.gmtime()).encode(), b"\x1b[2J")])
    assert run(["--set", f"redis_url={redis_server.url}", "report"]) == 69
    _, errors = capfd.readouterr()
    assert errors.startswith("pbs-policy: Redis is unavailable: ")
    assert ": WRONGTYPE " in errors
    assert errors[:-1].isprintable()
