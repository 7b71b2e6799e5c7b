"""docs/howto/milters.md: what the real OpenDKIM and rspamd make of a permitted client, with the page's own snippets.

A message is put on hold, where it lies as it would go out: with its signature, or without.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pbs_policy.demo import postfix as demo
from pbs_policy.demo.daemons import wait_until
from pbs_policy.demo.ports import free_port
from pbs_policy.demo.postfix import PrivatePostfix, attempt_relay
from pbs_policy.programs import find_program
from tests.conftest import need
from tests.pages import TOP, snippets
from tests.stand_ins import StandIn, answering

MAIN, MASTER, OPENDKIM, LUA = (each.text for each in snippets(TOP / "docs" / "howto" / "milters.md"))
CLIENT, ALICE, BOB, CAROL = "192.0.2.7", "alice@example.com", "bob@example.net", "carol@local.example"
MESSAGE = f"From: {ALICE}\nTo: {BOB}\nSubject: x\nDate: Sat, 28 Nov 2026 21:00:00 +0000\n\nHello\n"
PORT = 10040


def program(name: str) -> str:
    need("postfix", "openssl")
    found = find_program(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {name}")
    return found


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            assert wait_until(lambda: process.poll() is not None or is_open(port), seconds=90), log.read_text()
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.terminate()


@pytest.fixture
def policy() -> Iterator[StandIn]:
    with answering(b"action=OK\n\n") as stand_in:
        yield stand_in


@pytest.fixture
def key(tmp_path: Path) -> Path:
    need("openssl")
    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    return key


@contextmanager
def postfix_with(milter: int, policy: StandIn, folder: Path) -> Iterator[PrivatePostfix]:
    main = MAIN.replace(f":{PORT}", f":{policy.listener.port}")
    main += f"smtpd_milters = inet:127.0.0.1:{milter}\nmilter_default_action = tempfail\n"
    main += "smtpd_data_restrictions = check_client_access static:HOLD\n"
    with PrivatePostfix(folder / "mx", fragment=main) as postfix:
        yield postfix


def is_signed(postfix: PrivatePostfix, port: int, recipient: str = BOB) -> bool:
    attempt = attempt_relay(port, CLIENT, ALICE, recipient, message=MESSAGE)
    assert attempt.code == 250, attempt
    (held,) = (postfix.queue_directory / "hold").iterdir()
    command = [find_program("postcat") or "postcat", "-c", str(postfix.place / "conf"), str(held)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    held.unlink()
    assert "Subject: x" in shown
    return "\nDKIM-Signature: " in shown


def test_opendkim_signs_what_comes_in_at_the_port_for_permitted_clients(
    tmp_path: Path, policy: StandIn, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opendkim, milter, port = program("opendkim"), free_port(), free_port()
    conf = tmp_path / "opendkim.conf"
    conf.write_text(
        f"Syslog no\nMode sv\nDomain example.com\nSelector s1\nKeyFile {key}\nSocket inet:{milter}@127.0.0.1\n"
        f"InternalHosts 127.0.0.1\nRequireSafeKeys no\nUserID root\nOn-DNSError accept\n{OPENDKIM}"
    )
    entry = MASTER.replace("2525 ", f"127.0.0.1:{port} ").replace(" y ", " n ")
    monkeypatch.setattr(demo, "_MASTER_CF", demo._MASTER_CF + entry)
    command = [opendkim, "-f", "-x", str(conf)]
    with running(command, milter, tmp_path / "log"), postfix_with(milter, policy, tmp_path) as postfix:
        assert not is_signed(postfix, postfix.port)
        assert is_signed(postfix, port)
        policy.replies = [b"action=DUNNO\n\n"]
        for recipient in (BOB, CAROL):
            assert attempt_relay(port, CLIENT, ALICE, recipient).code == 554
        assert not is_signed(postfix, postfix.port, CAROL)


@pytest.mark.long  # rspamd takes many seconds to start
def test_rspamd_asks_the_service_whether_a_client_is_a_stranger(
    tmp_path: Path, policy: StandIn, key: Path
) -> None:
    rspamd, milter = program("rspamd"), free_port()
    files = {
        "worker-proxy.inc": f'bind_socket = "127.0.0.1:{milter}";\nupstream "local" {{ self_scan = yes; }}',
        "worker-normal.inc": "enabled = false;",
        "worker-controller.inc": f'bind_socket = "{tmp_path}/controller";',
        "dkim_signing.conf": f'domain {{ example.com {{ selector = "s1"; path = "{key}"; }} }}',
        "options.inc": 'dns { nameserver = ["127.0.0.1:9"]; timeout = 0.1s; retransmits = 1; }',
        "logging.inc": 'type = "console";',
    }
    (tmp_path / "local.d").mkdir()
    for name, text in files.items():
        (tmp_path / "local.d" / name).write_text(f"{text}\n")
    (tmp_path / "rspamd.local.lua").write_text(LUA.replace(f"port = {PORT}", f"port = {policy.listener.port}"))
    places = [f"--var={name}={tmp_path}" for name in ("LOCAL_CONFDIR", "DBDIR", "RUNDIR", "LOGDIR")]
    command = [rspamd, "-f", "-i", "-c", "/etc/rspamd/rspamd.conf", *places]
    with running(command, milter, tmp_path / "log"), postfix_with(milter, policy, tmp_path) as postfix:
        assert is_signed(postfix, postfix.port)
        policy.replies = [b"action=DUNNO\n\n"]
        assert not is_signed(postfix, postfix.port, CAROL)
