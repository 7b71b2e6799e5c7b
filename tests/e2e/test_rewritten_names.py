"""Spellings that Postfix rewrites, driven through a real Postfix, with what the next hop received.

However a client writes it, no message is sent on in a denied user's name; and however a recipient is routed, a permit
for one domain lets nothing through to another.
"""

from __future__ import annotations

import smtplib
import socketserver
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pbs_policy.address import ClientAddresses
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.demo.ports import free_port
from pbs_policy.demo.postfix import LOCAL_DOMAIN, PrivatePostfix
from pbs_policy.demo.service import PrivateService
from pbs_policy.shipped import shipped
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.records import Permit, Record
from tests.conftest import need
from tests.stores import connect, table_on, write_login

ADDRESS = "192.0.2.7"
ALICE, BOB = "alice@example.com", "bob@example.com"
ELSEWHERE = "elsewhere.example"

REWRITING = f"""
mydestination = {LOCAL_DOMAIN}, example.com
myorigin = example.com
mydomain = com
append_dot_mydomain = yes
swap_bangpath = yes
allow_percent_hack = yes
disable_dns_lookups = yes
strict_rfc821_envelopes = no
"""

SENDERS = (
    "alice@example.com", "Alice@example.com", "ALICE@EXAMPLE.COM", "alice@Example.Com", "alice@example.com.",
    "ALICE@EXAMPLE.COM.", "alice", "Alice", "alice@", "alice%example.com", "alice%EXAMPLE.com", "alice%example.com.",
    "example.com!alice", "EXAMPLE.COM!alice", "example.com.!alice", "alice@example", "alice@EXAMPLE", "alice%example",
    "example!alice", "@example.org:alice@example.com", "@example.org,@example.net:alice@example.com",
    "@example.org:alice", "@example.org:alice%example.com", "@example.org:example.com!alice", '"alice"@example.com',
    '"alice"@example.com.', '"alice"', '"alice@example.com"', '"alice%example.com"', '"example.com!alice"',
    '"ali\\ce"@example.com', 'ali"c"e@example.com', "alice(a comment)@example.com", "alice@example(a comment).com",
    "(a comment)alice@example.com", " alice@example.com", "alice @ example.com", "alice@example.com ",
    "alice@@example.com", "alice@[example.com]",
)  # fmt: skip
"""Of alice@example.com, who is denied. Some are no addresses: Postfix refuses them by itself."""

RECIPIENTS = tuple(
    routed.format(at=at)
    for at in ("example.com", "EXAMPLE.com", "example.com.", LOCAL_DOMAIN)
    for routed in (
        f"x%{ELSEWHERE}@{{at}}", f"{ELSEWHERE}!x@{{at}}", f'"x@{ELSEWHERE}"@{{at}}', f"x@{ELSEWHERE}@{{at}}",
        f'"x%{ELSEWHERE}"@{{at}}', f'"{ELSEWHERE}!x"@{{at}}', f"@{{at}}:x@{ELSEWHERE}", f"x%{ELSEWHERE}%{{at}}",
        f"{{at}}!{ELSEWHERE}!x", f"@{{at}}:{ELSEWHERE}!x@{{at}}",
    )
)  # fmt: skip
"""Written so that they end in a domain that the permit is for, and go elsewhere."""


class Sink(socketserver.ThreadingTCPServer):
    """The next hop: takes every message, and remembers its envelope."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.port = int(self.server_address[1])
        self.envelopes: list[tuple[str, str]] = []


class _Session(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with suppress(ConnectionResetError):  # Postfix was ended in the middle
            self._serve()

    def _serve(self) -> None:
        sink = self.server
        assert isinstance(sink, Sink)
        self._say("220 sink")
        sender = ""
        while line := self.rfile.readline().decode("utf-8", "replace").strip():
            command, _, path = line.partition(":")
            if command.upper() == "MAIL FROM":
                sender = path.rpartition(">")[0].removeprefix("<")
            elif command.upper() == "RCPT TO":
                sink.envelopes.append((sender, path.rpartition(">")[0].removeprefix("<")))
            elif command.upper() == "DATA":
                self._say("354 go on")
                while self.rfile.readline().rstrip() != b".":
                    pass
            self._say("250 sink")

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@dataclass
class Site:
    """Redis, the service, a Postfix that rewrites all it can, and its next hop."""

    table: LoginTable
    postfix: PrivatePostfix
    sink: Sink

    def offer(self, sender: str, recipient: str) -> int:
        """The reply to a message with these in its envelope, as they are written."""
        with smtplib.SMTP("127.0.0.1", self.postfix.port, "client.example.net", timeout=60) as smtp:
            smtp.ehlo()
            assert smtp.docmd("XCLIENT", f"NAME=[UNAVAILABLE] ADDR={ADDRESS}")[0] == 220
            smtp.ehlo()
            for line in (f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>"):
                code, _ = smtp.docmd(line)
                if code != 250:
                    return code
            return smtp.data(b"Subject: hello\r\n\r\nhello\r\n")[0]

    def relay(self, envelopes: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], int]:
        """What the next hop received of these messages, and how many were accepted."""
        self.sink.envelopes.clear()
        accepted = [self.offer(*envelope) for envelope in envelopes].count(250)
        assert wait_until(lambda: not self._queue(), seconds=60)
        return list(self.sink.envelopes), accepted

    def _queue(self) -> list[Path]:
        folders = ("incoming", "active", "deferred", "maildrop")
        return [file for name in folders for file in (self.postfix.queue_directory / name).rglob("*")
                if file.is_file()]  # fmt: skip


@pytest.fixture
def site() -> Iterator[Site]:
    need("redis", "postfix")
    port = free_port()
    fragment = shipped("postfix-examples/main.cf.inet").read_text().replace("127.0.0.1:10040", f"127.0.0.1:{port}")
    with ExitStack() as stack:
        sink = stack.enter_context(Sink())
        thread = threading.Thread(target=sink.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        stack.callback(thread.join)
        stack.callback(sink.shutdown)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-")))
        redis = stack.enter_context(PrivateRedis(directory / "redis", port=None))
        settings = {"redis_url": redis.url, "listen": f"inet:127.0.0.1:{port}", "log_decisions": "all"}
        stack.enter_context(PrivateService(directory, settings))
        fragment += REWRITING + f"default_transport = smtp:[127.0.0.1]:{sink.port}\n"
        postfix = stack.enter_context(PostfixWithSmtp(directory / "postfix", fragment=fragment))
        client = stack.enter_context(connect(RedisUrl.parse(redis.url)))
        yield Site(table_on(client, "pbs:"), postfix, sink)


class PostfixWithSmtp(PrivatePostfix):
    """One that sends messages on."""

    def command(self) -> list[str]:
        command = super().command()
        with (self.place / "conf" / "master.cf").open("a") as master:
            master.write("smtp unix - - n - - smtp\n")
        return command


def test_no_spelling_of_a_denied_user_is_sent_on_in_that_name(site: Site) -> None:
    assert len(set(SENDERS)) == 40
    write_login(site.table, ADDRESS, Record(1, "pop3", BOB), 600)
    envelopes = [(sender, "x@example.net") for sender in SENDERS]
    received, _ = site.relay(envelopes)
    in_her_name = [sender for sender, _ in received if sender.lower() == ALICE]
    assert len(in_her_name) >= 25, "Postfix makes one name of most of them"
    site.table.deny_user(ALICE.encode(), "stolen password", 600)
    received, accepted = site.relay([*envelopes, (BOB, "x@example.net"), ("", "x@example.net")])
    assert accepted >= 2
    senders = {sender for sender, _ in received}
    assert senders >= {BOB, ""}
    assert not [sender for sender in senders if "alice" in sender.lower()]


def test_no_routed_recipient_passes_a_permit_for_another_domain(site: Site) -> None:
    assert len(set(RECIPIENTS)) == 40
    target = ClientAddresses().parse_target(ADDRESS)
    envelopes = [(BOB, recipient) for recipient in RECIPIENTS]
    site.table.permit(target, Permit(1), 600)
    received, _ = site.relay(envelopes)
    assert len([to for _, to in received if to == f"x@{ELSEWHERE}"]) >= 25, "Postfix routes most of them"
    domains = ("example.com", LOCAL_DOMAIN, "example.net")
    site.table.permit(target, Permit(1, recipient_domains=domains), 600)
    received, _ = site.relay([*envelopes, (BOB, "x@example.net")])
    assert received == [(BOB, "x@example.net")]
