"""`pbs-policy replay`: logs and captured requests, asked of a service one by one."""

from __future__ import annotations

import gzip
import json
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.cli.replay import _from_capture
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.ports import free_port
from pbs_policy.postfix.protocol import MAX_LINE_SIZE, MAX_REQUEST_SIZE
from pbs_policy.postfix.smtpd_log import SmtpdLog
from tests.commands import Pbs, Result, is_one_error
from tests.conftest import CAPTURES
from tests.service import CLI, Service
from tests.stand_ins import answering
from tests.test_query import ASKED, BYTES, LOOKING

LOGS = Path(__file__).parent / "logs"
DENIED = (
    "Nov 23 20:11:16 mx postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[192.0.2.7]: 554 5.7.1 "
    "<bob@example.net>: Relay access denied; from=<alice@example.com> to=<bob@example.net> proto=ESMTP "
    "helo=<client.example.com>\n"
)
RELAYED = (
    "Nov 23 20:11:16 mx postfix/smtpd[1]: 2980E20C1D3: client=unknown[2001:db8::8]\n"
    "Nov 23 20:11:16 mx postfix/qmgr[2]: 2980E20C1D3: from=<>, size=324, nrcpt=1 (queue active)\n"
    "Nov 23 20:11:16 mx postfix/smtp[3]: 2980E20C1D3: to=<bob@example.net>, relay=mx.example.net[203.0.113.1]:25, x\n"
)
LINE = "client_address=192.0.2.7 sender=alice@example.com recipient=bob@example.net postfix=554 action=DUNNO\n"
SUMMARY = "1 request: 0 OK, 1 DUNNO, 0 DEFER_IF_REJECT; 0 differ from what Postfix did\n"


def replayed(bare: Pbs, log: str, reply: bytes, *options: str) -> Result:
    """How the replay of a log ends where the service always says that; the log's bytes are ISO 8859-1."""
    with answering(reply) as service:
        listener = str(service.listener)
        return bare("replay", *options, "--listener", listener, "-", given=log.encode("latin-1"))


def test_each_attempt_in_a_log_is_a_line_and_what_differs_says_so(bare: Pbs) -> None:
    with answering(b"action=OK\n\n", b"action=DUNNO\n\n") as service:
        result = bare("replay", "--listener", str(service.listener), "-", given=(DENIED + RELAYED + DENIED).encode())
        assert service.connections == 1
    assert result.err == "note: a log is asked of the logins, permits and denies as they are now\n"
    assert result.status == 1
    assert result.out == (
        "client_address=192.0.2.7 sender=alice@example.com recipient=bob@example.net postfix=554 action=OK differs\n"
        'client_address=2001:db8::8 sender="" recipient=bob@example.net postfix=250 action=DUNNO differs\n'
        "client_address=192.0.2.7 sender=alice@example.com recipient=bob@example.net postfix=554 action=DUNNO\n"
        "3 requests: 1 OK, 2 DUNNO, 0 DEFER_IF_REJECT; 2 differ from what Postfix did\n"
    )
    assert service.requests[0] == LOOKING.replace(
        b"sender", b"client_name=unknown\nhelo_name=client.example.com\nsender"
    )


def test_the_same_as_json_lines(bare: Pbs) -> None:
    given = DENIED.replace("alice", "j\xfcrgen") + "postfix/smtpd[1]: A: client=\n"
    result = replayed(bare, given, b"action=DEFER_IF_REJECT 4.3.0 later\n\n", "--json")
    first, summary = (json.loads(line) for line in result.out.splitlines())
    assert first == {
        "client_address": "192.0.2.7",
        "sender": "j\ufffdrgen@example.com",
        "recipient": "bob@example.net",
        "postfix": "554 5.7.1 <bob@example.net>: Relay access denied",
        "action": "DEFER_IF_REJECT 4.3.0 later",
        "differs": True,
    }
    assert summary == {
        "summary": {
            "requests": 1,
            "answers": {"DEFER_IF_REJECT": 1},
            "differ": 1,
            "with_smtp_auth": 0,
            "unparseable": 1,
            "forgotten": 0,
        }
    }


@pytest.mark.parametrize(
    ("reply", "action", "differs"),
    [
        ("554 5.7.1 <b@x.org>: Relay access denied", "DUNNO", False),
        ("554 5.7.1 <b@x.org>: Relay access denied", "DEFER_IF_REJECT later", True),
        ("554 5.7.1 <b@x.org>: Relay access denied", "OK", True),
        ("454 4.7.1 <b@x.org>: Relay access denied", "DUNNO", False),
        ("454 4.7.1 <b@x.org>: Relay access denied", "DEFER_IF_REJECT later", False),
        ("454 4.7.1 <b@x.org>: Relay access denied", "OK", True),
        ("450 4.3.0 <b@x.org>: Recipient address rejected: relay permission cannot be checked now", "DUNNO", True),
        ("550 5.1.1 <b@x.org>: Recipient address rejected: User unknown", "OK", False),
        ("450 4.3.0 <b@x.org>: Recipient address rejected: relay permission cannot be checked now", "OK", True),
        ("450 4.3.0 <b@x.org>: Recipient address rejected: relay permission cannot be checked now",
         "DEFER_IF_REJECT later", False),
        ("450 4.7.1 <b@x.org>: Recipient address rejected: Greylisted", "OK", False),
    ],
)  # fmt: skip
def test_an_answer_differs_where_postfix_would_now_do_something_else(
    bare: Pbs, reply: str, action: str, differs: bool
) -> None:
    given = DENIED.replace("554 5.7.1 <bob@example.net>: Relay access denied", reply)
    result = replayed(bare, given, f"action={action}\n\n".encode(), "--json")
    first, summary = (json.loads(line) for line in result.out.splitlines())
    assert (first["differs"], summary["summary"]["differ"], result.status) == (differs, differs, differs)


@pytest.mark.parametrize("file", sorted(LOGS.glob("postfix-*.log")), ids=lambda file: file.name)
def test_the_logs_of_a_real_postfix_are_replayed(bare: Pbs, file: Path) -> None:
    with answering(b"action=DUNNO\n\n") as service:
        result = bare("replay", "--listener", str(service.listener), str(file))
    *lines, summary = result.out.splitlines()
    accepted = sum("postfix=250" in line for line in lines)
    rewritten = sum("forward@local.example" in line for line in lines)
    assert len(lines) == len(service.requests) == (4 if "instance" in file.name else 14)
    assert sum(line.endswith(" differs") for line in lines) == accepted - rewritten
    assert summary.endswith(f"; {accepted - rewritten} differ from what Postfix did")


def test_captured_requests_are_sent_byte_for_byte_before_our_mark(bare: Pbs, tmp_path: Path) -> None:
    captures = sorted((CAPTURES / "policy").iterdir())
    requests = [capture.read_bytes() for capture in captures]
    file = tmp_path / "requests"
    file.write_bytes(b"\n\n" + b"\n".join(requests).rstrip(b"\n"))
    with answering(b"action=OK\n\n") as service:
        result = bare("replay", "--listener", str(service.listener), str(file))
        assert [each.replace(b"pbs_only_looks=yes\n", b"") for each in service.requests] == requests
    assert result.out.endswith(
        f"{len(requests)} requests: {len(requests)} OK, 0 DUNNO, 0 DEFER_IF_REJECT; 0 differ from what Postfix did\n"
    )
    lines = dict(zip((capture.name for capture in captures), result.out.splitlines(), strict=False))
    assert lines["v4-plain.4.RCPT"] == (
        "client_address=198.51.100.11 sender=alice@ex.test recipient=bob@local.test action=OK"
    )


@pytest.mark.parametrize(
    "fault",
    [
        BYTES.replace(b"\n", b"\r\n"),
        BYTES.replace(b"smtpd_access_policy", b"junk_policy"),
        BYTES[:-1] + b"client_address=192.0.2.8\n\n",
        BYTES[:-1] + b"sender=bob@example.com\n\n",
        BYTES[:-1] + b"helo_name=" + b"x" * MAX_LINE_SIZE + b"\n\n",
        BYTES[:-1] + (b"name=" + b"x" * 4_000 + b"\n") * (MAX_REQUEST_SIZE // 4_000 + 1) + b"\n",
    ],
)
def test_a_request_that_the_service_would_not_read_is_counted_and_left_out(bare: Pbs, fault: bytes) -> None:
    if b"\r\n\r\n" in fault:
        fault += b"\n"  # the end of what a file in that format makes one request
    with answering(b"action=OK\n\n") as service:
        result = bare("replay", "--listener", str(service.listener), "-", given=BYTES + fault + BYTES)
        assert service.requests == [LOOKING, LOOKING]
    assert "; 1 line or request not understood\n" in result.out


def test_of_a_request_without_end_no_more_is_kept_than_a_request_may_have() -> None:
    log = SmtpdLog()
    line = b"name=" + b"x" * 1_000
    tracemalloc.start()
    try:
        assert list(_from_capture((line for _ in range(20_000)), log)) == []
        assert tracemalloc.get_traced_memory()[1] < 10 * MAX_REQUEST_SIZE
    finally:
        tracemalloc.stop()
    assert log.unparseable == 1


CUT = f"{DENIED[:150]}\n{DENIED[:-2]}{'x' * 100_000}\n\n\xff\n{DENIED}{'x' * MAX_LINE_SIZE}"
WITH_AUTH = RELAYED.replace("::8]", "::8], sasl_method=PLAIN, sasl_username=alice") + DENIED


@pytest.mark.parametrize(
    ("given", "left_out"),
    [(CUT, "3 lines or requests not understood"), (WITH_AUTH, "1 message with SMTP AUTH")],
    ids=["cut or too long", "with SMTP AUTH"],
)
def test_what_is_left_out_is_counted(bare: Pbs, given: str, left_out: str) -> None:
    result = replayed(bare, given, b"action=DUNNO\n\n")
    assert result.out == LINE + SUMMARY.replace("did\n", f"did; {left_out}\n")


def test_a_log_that_was_rotated_in_the_middle_of_a_message_is_read_as_one(bare: Pbs, tmp_path: Path) -> None:
    older, newer = tmp_path / "mail.log.1.gz", tmp_path / "mail.log"
    lines = RELAYED.splitlines(keepends=True)
    older.write_bytes(gzip.compress("".join(lines[:2]).encode()))
    newer.write_text(lines[2])
    with answering(b"action=OK\n\n") as service:
        result = bare("replay", "--listener", str(service.listener), str(older), str(newer))
    assert result.out.partition("\n")[0] == (
        'client_address=2001:db8::8 sender="" recipient=bob@example.net postfix=250 action=OK'
    )


def test_standard_input_may_be_compressed_and_empty_files_are_no_fault(bare: Pbs, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    with answering(b"action=DUNNO\n\n") as service:
        where = ("replay", "--listener", str(service.listener))
        assert bare(*where, str(empty), "-", given=gzip.compress(DENIED.encode())).out == LINE + SUMMARY
        nothing = bare(*where, str(empty))
        assert nothing.out == SUMMARY.replace("1 request", "0 requests").replace("1 ", "0 ")
        assert nothing.status == 65


@pytest.mark.parametrize("given", ["", "hello\n", DENIED.replace("postfix/", ""), "x" + DENIED, "x=1\n\n"])
def test_where_nothing_is_understood_that_is_a_failure(bare: Pbs, given: str) -> None:
    result = bare("replay", "--json", "--listener", "unix:/nowhere", "-", given=given.encode())
    assert result.status == 65
    assert result.err == "pbs-policy: -: no line of Postfix's and no request was understood\n"
    assert json.loads(result.out)["summary"]["unparseable"] == ("smtpd" in given or "=1" in given)


def test_a_service_that_is_started_anew_in_between_is_asked_again(bare: Pbs) -> None:
    with answering(b"action=DUNNO\n\n", b"", b"action=OK\n\n") as service:
        result = bare("replay", "--listener", str(service.listener), "-", given=(DENIED + DENIED).encode())
        assert (service.connections, len(service.requests)) == (2, 3)
    assert result.out == LINE + LINE.replace("DUNNO\n", "OK differs\n") + (
        "2 requests: 1 OK, 1 DUNNO, 0 DEFER_IF_REJECT; 1 differs from what Postfix did\n"
    )


def test_a_service_that_cannot_be_reached_ends_it(bare: Pbs) -> None:
    listener = f"inet:127.0.0.1:{free_port()}"
    result = bare("replay", "--listener", listener, "-", given=DENIED.encode())
    assert is_one_error(result, 69, f"no reply from the policy service at {listener}: Connection refused; see ")
    with answering(b"action=DUNNO\n\n", b"") as service:
        result = bare("replay", "--listener", str(service.listener), "-", given=(DENIED + DENIED).encode())
    assert (result.status, result.out) == (69, LINE)
    assert "closed the connection" in result.err


def test_a_file_that_cannot_be_read_is_named(bare: Pbs, tmp_path: Path) -> None:
    packed = gzip.compress(DENIED.encode())
    damaged = {"cut": packed[:-4], "changed": packed[:12] + b"\xff" * 8 + packed[20:], "sum": packed[:-8] + b"x" * 8}
    with answering(b"action=DUNNO\n\n") as service:
        for name, data in damaged.items():
            (tmp_path / name).write_bytes(data)
            result = bare("replay", "--listener", str(service.listener), str(tmp_path / name))
            assert (result.status, result.err.count("\n")) == (74, 1)
            assert f"{name}: not a sound gzip file" in result.err
            assert " requests: " not in result.out, "a summary would look like that of the whole file"
    for path in (tmp_path / "missing", tmp_path):
        assert is_one_error(bare("replay", str(path)), 74, str(path))
    assert bare("replay").status == 64


def test_a_line_is_answered_as_soon_as_it_comes() -> None:
    with answering(b"action=DUNNO\n\n") as service:
        command = [*CLI, "replay", "--listener", str(service.listener), "-"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin
            assert process.stdout
            for _ in range(2):
                process.stdin.write(DENIED.encode())
                process.stdin.flush()
                assert process.stdout.readline().decode() == LINE
            process.stdin.close()
            assert process.stdout.read().decode().startswith("2 requests: ")
    assert process.returncode == 0


def test_a_client_that_logged_in_meanwhile_is_seen_to_differ(
    bare: Pbs, redis_server: PrivateRedis, start_service: Callable[..., Service]
) -> None:
    with Redis.from_url(redis_server.url) as redis:
        redis.set("pbs:login:192.0.2.7", "1795453232 imap alice@example.com", ex=100)
    service = start_service(redis_url=redis_server.url)
    file = str(LOGS / "postfix-3.7-instance.log")
    result = bare("--set", f"listen={service.listeners[0]}", "replay", file)
    assert [line.partition(" postfix=")[2] for line in result.out.splitlines()[:-1]] == [
        "554 action=OK differs", "554 action=DUNNO", "250 action=DUNNO differs", "250 action=DUNNO differs"
    ]  # fmt: skip


def test_nothing_is_counted_for_what_these_commands_ask(
    bare: Pbs, redis_server: PrivateRedis, start_service: Callable[..., Service]
) -> None:
    with Redis.from_url(redis_server.url) as redis:
        redis.set("pbs:login:192.0.2.7", "1795453232 imap alice@example.com", ex=100)
    service = start_service(redis_url=redis_server.url, max_recipients_per_address="1/1h")
    where = ("--listener", str(service.listeners[0]))
    for _ in range(2):
        assert bare("query", *where, *ASKED).out == "OK\n"
        assert " action=OK differs\n" in bare("replay", *where, "-", given=DENIED.encode()).out
        assert " action=OK\n" in bare("replay", *where, "-", given=BYTES).out
    assert [service.ask("192.0.2.7") for _ in range(2)] == ["OK", "DUNNO"]
    assert bare("query", *where, *ASKED).out == "DUNNO\n", "a cap that is reached is seen"
