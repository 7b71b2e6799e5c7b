"""The client of the policy service, and `pbs-policy query`: requests out, actions in, exit statuses."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.ports import free_port
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.protocol import MAX_REQUEST_SIZE
from pbs_policy.postfix.query import PolicyClient, ask, serialise_request
from tests.commands import Pbs, Result, is_one_error
from tests.conftest import CAPTURES
from tests.service import Service
from tests.stand_ins import answering, serving

ASKED = ("client_address=192.0.2.7", "sender=alice@example.com", "recipient=bob@example.net")
BYTES = (
    b"request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\n"
    b"client_address=192.0.2.7\nsender=alice@example.com\nrecipient=bob@example.net\n\n"
)


LOOKING = BYTES[:-1] + b"pbs_only_looks=yes\n\n"
"""What the commands send."""


# --- the client


def test_a_reply_that_comes_byte_by_byte_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pbs_policy.postfix.query.TIMEOUT", 0.5)
    gone = threading.Event()

    def drip(_asked: Any, answer: Any) -> None:
        while not gone.wait(0.1):
            answer.write(b"a")

    with serving(drip) as port, PolicyClient(Listener(host="127.0.0.1", port=port)) as client:
        with pytest.raises(TimeoutError, match="timed out"):
            client.ask(LOOKING)
        gone.set()


def test_a_request_is_what_postfix_sends() -> None:
    attributes = dict(each.split("=", 1) for each in ASKED)
    assert serialise_request(attributes) == BYTES
    assert serialise_request({"protocol_state": "DATA", "sender": "j\u00fcrgen\udcff@example.com"}) == (
        b"request=smtpd_access_policy\nprotocol_state=DATA\nprotocol_name=ESMTP\nsender=j\xc3\xbcrgen\xff@example.com\n\n"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("sender", "a\nrecipient=b"), ("sender", "a\n"), ("sender", "a\r"), ("", "a"), ("a\n", "b"), ("a=b", "c")],
)
def test_what_would_become_another_attribute_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"line end|not an attribute's name"):
        serialise_request({name: value})


def test_one_relay_attempt_is_asked_about() -> None:
    with answering(b"action=DUNNO\n\n") as service:
        exchange = ask(service.listener, "192.0.2.7", sender="alice@example.com", recipient="bob@example.net")
    assert exchange == (BYTES, b"action=DUNNO\n\n", "DUNNO")


def test_a_unix_socket_that_nobody_listens_at_is_an_error() -> None:
    with tempfile.TemporaryDirectory(prefix="pbs-") as directory, socket.socket(socket.AF_UNIX) as unheard:
        listener = Listener(path=f"{directory}/policy")
        with pytest.raises(FileNotFoundError):
            PolicyClient(listener)
        unheard.bind(listener.path)
        with pytest.raises(ConnectionRefusedError):
            PolicyClient(listener)


def test_a_connection_serves_many_requests() -> None:
    with answering(b"action=OK\n\n", b"action=DUNNO\n\n") as service, PolicyClient(service.listener) as connection:
        assert [connection.ask(BYTES).action for _ in range(3)] == ["OK", "DUNNO", "DUNNO"]
        assert service.connections == 1


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (b"", "closed the connection"),
        (b"220 mx.example.com ESMTP\n\n", "no policy service"),
        (b"action=OK\n\naction=OK\n\n", "no policy service"),
        (b"x" * 9_000, "more than 8192 bytes"),
    ],
)
def test_what_is_no_reply_is_an_error(reply: bytes, text: str) -> None:
    with answering(reply) as service, PolicyClient(service.listener) as connection:
        with pytest.raises(ConnectionError, match=text):
            connection.ask(BYTES)


# --- the command


@pytest.mark.parametrize(
    ("action", "status"),
    [
        ("OK", 0),
        ("DUNNO", 1),
        ("DEFER_IF_REJECT 4.3.0 relay permission cannot be checked now", 75),
        ("REJECT of another service", 1),
        ("OK \x1b[2J", 0),
    ],
)
def test_the_action_is_printed_and_is_the_exit_status(bare: Pbs, action: str, status: int) -> None:
    with answering(f"action={action}\n\n".encode()) as service:
        result = bare("query", "--listener", str(service.listener), *ASKED)
        assert result == Result(status, action.replace("\x1b", "?") + "\n", "")
        assert service.requests == [LOOKING]


def test_the_first_listener_of_the_settings_is_asked(bare: Pbs) -> None:
    with answering(b"action=OK\n\n") as service:
        listen = f"listen={service.listener}, inet:127.0.0.1:1"
        assert bare("--set", listen, "query", *ASKED).status == 0
    listener = ("--listener", "inet:127.0.0.1:1")
    assert bare("--set", "ttl=0", "query", *listener, *ASKED).status == 69, "no settings needed"


def test_a_running_service_answers(
    bare: Pbs, redis_server: PrivateRedis, start_service: Callable[..., Service]
) -> None:
    with Redis.from_url(redis_server.url) as redis:
        redis.set("pbs:login:192.0.2.7", "1795453232 imap alice@example.com", ex=100)
    service = start_service(redis_url=redis_server.url)
    where = ("query", "--listener", str(service.listeners[0]))
    assert bare(*where, *ASKED) == Result(0, "OK\n", "")
    assert bare(*where, "client_address=192.0.2.8") == Result(1, "DUNNO\n", "")
    assert bare(*where, "-", given=(CAPTURES / "policy" / "v4-plain.4.RCPT").read_bytes()) == Result(1, "DUNNO\n", "")


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"\n\n\n"])
def test_a_whole_request_is_read_from_standard_input(bare: Pbs, end: bytes) -> None:
    given = BYTES.replace(b"alice", b"j\xfcrgen").rstrip(b"\n") + end
    with answering(b"action=OK\n\n") as service:
        assert bare("query", "--listener", str(service.listener), "-", given=given).status == 0
        assert service.requests == [LOOKING.replace(b"alice", b"j\xfcrgen")]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (b"", "an empty request"),
        (BYTES + BYTES, "more than one request; pbs-policy replay asks them all"),
        (BYTES.replace(b"\n", b"\r\n"), "CR LF"),
        (b"client_address=192.0.2.7\n\n", "without request=smtpd_access_policy"),
        (BYTES[:-1] + b"helo_name=" + b"x" * 2 * MAX_REQUEST_SIZE, "more than"),
    ],
)
def test_what_is_not_one_request_is_refused_before_anybody_is_asked(bare: Pbs, given: bytes, text: str) -> None:
    result = bare("query", "--listener", "inet:127.0.0.1:1", "-", given=given)
    assert is_one_error(result, 64, text)
    assert result.err.startswith("pbs-policy: standard input: ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Missing argument 'NAME=VALUE...|-'"),
        (["192.0.2.7"], "expected NAME=VALUE such as client_address=192.0.2.7: '192.0.2.7'"),
        (["-", ASKED[0]], "expected NAME=VALUE such as client_address=192.0.2.7: '-'"),
        ([ASKED[0], ASKED[0]], "client_address is given twice"),
        (["=x"], "Postfix sends no attribute ''"),
        (["client_adress=192.0.2.7"], "Postfix sends no attribute 'client_adress', did you mean client_address?"),
        (["pbs_only_looks=yes"], "Postfix sends no attribute 'pbs_only_looks'"),
        (["sender=a\nb=c"], "the value of sender has a line end in it: 'a\\nb=c'"),
        (["--listener", "127.0.0.1:10040", *ASKED], "expected inet:HOST:PORT or unix:/PATH"),
    ],
)
def test_wrong_usage_is_one_line(bare: Pbs, arguments: list[str], text: str) -> None:
    assert is_one_error(bare("query", *arguments), 64, text)


def test_where_nobody_answers_it_is_said_which_listener(bare: Pbs, tmp_path: Path) -> None:
    listener = f"inet:127.0.0.1:{free_port()}"
    result = bare("query", "--listener", listener, *ASKED)
    assert is_one_error(result, 69, f"no reply from the policy service at {listener}: Connection refused; see ")
    result = bare("query", "--listener", "unix:/no/such/socket", *ASKED)
    assert is_one_error(result, 69, "unix:/no/such/socket: No such file or directory")
    with answering(b"") as service:
        result = bare("query", "--listener", str(service.listener), *ASKED)
    assert is_one_error(result, 69, "closed the connection")


def test_a_service_that_hangs_is_given_up(bare: Pbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pbs_policy.postfix.query.TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        result = bare("query", "--listener", f"inet:127.0.0.1:{mute.getsockname()[1]}", *ASKED)
    assert is_one_error(result, 69, ": timed out; see whether it runs (systemctl status pbs-policy), or correct ")
