"""A restart of the service in the middle of an SMTP session, through a real Postfix with the example main.cf."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.demo.conversation import Conversation
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.postfix import PrivatePostfix
from tests.conftest import need
from tests.manager import Manager
from tests.test_socket_activation import inet

CLIENT = "192.0.2.7"
EXAMPLE = (Path(__file__).parent.parent.parent / "postfix-examples" / "main.cf.inet").read_text()


def code(client: Conversation, line: str | None = None) -> str:
    """The code of the reply to a line, or of the greeting."""
    if line is not None:
        client.send(line)
    while (reply := client.read_line())[3:4] == "-":
        pass
    return reply[:3]


def begin(client: Conversation) -> None:
    """A session up to its recipients, as from CLIENT."""
    assert code(client) == "220"
    assert code(client, "EHLO client.example.net") == "250"
    assert code(client, f"XCLIENT NAME=[UNAVAILABLE] ADDR={CLIENT}") == "220"
    assert code(client, "EHLO client.example.net") == "250"
    assert code(client, "MAIL FROM:<alice@example.com>") == "250"


@pytest.mark.parametrize(("tries", "told"), [("2", "250"), ("1", "450")])
def test_the_second_try_lets_a_session_go_on_through_a_restart(
    tries: str, told: str, redis_server: PrivateRedis, tmp_path: Path
) -> None:
    need("postfix")
    with Redis(port=redis_server.port) as redis:
        redis.set(f"pbs:login:{CLIENT}", "1763881234 imap alice@example.com", ex=600)
    assert "try_limit=2" in EXAMPLE
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-")))
        service = stack.enter_context(Manager(tmp_path, {"redis_url": redis_server.url}, listening=[inet()]))
        fragment = EXAMPLE.replace("10040", str(service.listeners[0].port)).replace(
            "try_limit=2", f"try_limit={tries}"
        )
        # As long as it takes on a slow machine: what is shown is not how fast the service starts.
        fragment = fragment.replace("timeout=2s", "timeout=30s")
        postfix = stack.enter_context(PrivatePostfix(place, fragment=fragment))
        with Conversation("127.0.0.1", postfix.port) as client:
            begin(client)
            assert code(client, "RCPT TO:<bob@example.net>") == "250"
            service.restart()
            for number in range(3):
                assert code(client, f"RCPT TO:<carol{number}@example.net>") == told
