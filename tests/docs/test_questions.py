"""The README's table of questions: each command line is run as it stands, and answers its question."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.store.connect import connect
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.records import Record
from tests.pages import TOP
from tests.service import Service
from tests.stores import write_login

SECTION = (TOP / "README.md").read_text().partition("\n### Ten questions\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (\w.*\?|\w.*\.) \| `(.*)` \|$", SECTION, re.MULTILINE)

ANSWERS = [
    r"action=DUNNO client_address=198\.51\.100\.9 .*reason=no_login",
    r"answers the same .*senders +REFUSE +bob@example\.net sends, .*change: ",
    r"(?=.*192\.0\.2\.7 +alice@example\.com ).*192\.0\.2\.8 +dave@example\.com",
    r"192\.0\.2\.7 +alice@example\.com",
    r"denied: alice@example\.com for 1d",
    r"denied: 203\.0\.113\.7 for 7d denied: 203\.0\.113\.64/26 for 7d",
    r"(?=.*alice@example\.com .* password stolen).*203\.0\.113\.7 ",
    r"command=deny user=alice@example\.com .*reason=\"password stolen\" account=\w+",
    r"192\.0\.2\.20 may relay for 90d",
    r"alice@example\.com +192\.0\.2\.7 ",
]
"""What each answer has in it, lines joined."""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A file in the place of mail.log, and the socket of the syslog that writes it."""
    file = tmp_path / "mail.log"
    with TemporaryDirectory(prefix="pbs-") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(f"{folder}/log")

        def write() -> None:
            while line := syslog.recv(8192):
                with file.open("ab") as stream:
                    stream.write(line.partition(b">")[2] + b"\n")

        thread = threading.Thread(target=write)
        thread.start()
        yield file, f"{folder}/log"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", f"{folder}/log")
        thread.join()


@pytest.fixture
def ask(
    tmp_path: Path, redis_server: PrivateRedis, start_service: Callable[..., Service], log: tuple[Path, str]
) -> Callable[[str], str]:
    """What a command line says at a site where alice and dave are logged in, and a stranger was refused at 10:02."""
    settings = {"redis_url": redis_server.url, "sender_match": "address"}
    service = start_service(**settings, log_decisions="all")
    with connect(RedisUrl.parse(redis_server.url), "", "") as redis:
        table = LoginTable(redis, "pbs:")
        for address, user in (("192.0.2.7", "alice@example.com"), ("192.0.2.8", "dave@example.com")):
            write_login(table, address, Record(int(table.now()), "imap", user), 3600)
    assert service.ask("192.0.2.7") == "OK"
    assert service.ask("198.51.100.9") == "DUNNO"
    assert service.waits_to_log("client_address=198.51.100.9")
    file, path = log
    file.write_text("".join(f"Nov 28 10:02:07 mail pbs-policy[7]: {line}\n" for line in service.log().splitlines()))
    (tmp_path / "addresses").write_text("203.0.113.7\n203.0.113.64/26\n")
    (tmp_path / "pbs-policy.conf").write_text(
        "".join(f"{name} = {text}\n" for name, text in settings.items())
        + f"listen = {service.listeners[0]}\nlog_to = syslog:{path}\n"
    )
    program = tmp_path / "bin" / "pbs-policy"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pbs_policy -c "{tmp_path}/pbs-policy.conf" "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(TOP)}

    def call(line: str) -> str:
        line = line.replace("/var/log/mail.log", str(file))
        command = ["sh", "-c", line]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
        assert done.stderr == "", (line, done.stderr)
        return " ".join(done.stdout.split("\n"))

    return call


def test_each_of_ten_questions_is_answered_by_its_one_command_line(ask: Callable[[str], str]) -> None:
    assert len(ROWS) == len(ANSWERS) == 10
    for (question, line), answer in zip(ROWS, ANSWERS, strict=True):
        said = list[str]()

        def is_answered(line: str = line, answer: str = answer, said: list[str] = said) -> bool:
            said.append(ask(line))
            return re.search(answer, said[-1]) is not None

        # What the service or syslog writes down comes a little later.
        seconds = 30 if line.startswith(("grep", "pbs-policy report")) else 0
        assert wait_until(is_answered, seconds=seconds), (question, line, said[-1])
