"""Where the log goes: with priorities to the journal and to syslog. No reader is ever waited for."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace

import pytest

from pbs_policy.log import Log
from pbs_policy.log.writers import Stream, Syslog, Writer, standard_error, writer_to
from pbs_policy.postfix.listener import Listener
from tests.service import CLI, SERVE, Client


@pytest.fixture
def directory() -> Iterator[Path]:
    """A path that is short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="pbs-") as path:
        yield Path(path)


def listen(path: Path) -> socket.socket:
    daemon = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    daemon.bind(str(path))
    daemon.settimeout(20)
    return daemon


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Stream, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(sys, "stderr", SimpleNamespace(fileno=ours.fileno))
        status = os.fstat(ours.fileno())
        writer = writer_to("stderr", {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        theirs.setblocking(False)
        assert isinstance(writer, Stream)
        yield writer, theirs
        writer.close()


def read_all(theirs: socket.socket) -> bytes:
    data = b""
    while select.select([theirs], [], [], 0)[0]:
        data += theirs.recv(1 << 20)
    return data


def test_to_the_journal_each_line_begins_with_its_priority(journal: tuple[Stream, socket.socket]) -> None:
    writer, theirs = journal
    log = Log(writer=writer)
    log.info("one")
    log.warning("two")
    log.error("three")
    log.decision("action=OK")
    assert read_all(theirs) == b"<6>info: one\n<4>warning: two\n<3>error: three\n<6>info: action=OK\n"


def test_a_journal_that_has_gone_stops_nothing(journal: tuple[Stream, socket.socket]) -> None:
    writer, theirs = journal
    theirs.close()
    Log(writer=writer).error("lost")
    assert writer.lost == 1


def test_standard_error_is_the_journal_only_where_systemd_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(sys, "stderr", SimpleNamespace(fileno=ours.fileno))
        status = os.fstat(ours.fileno())
        name = f"{status.st_dev}:{status.st_ino}"
        for environment, begin in (
            ({"JOURNAL_STREAM": name}, "<3>"), ({"JOURNAL_STREAM": f"{name}1"}, ""), ({}, ""),
        ):  # fmt: skip
            writer = standard_error(environment)
            assert writer.begins["error"] == begin
            writer.close()


@pytest.fixture(params=["journal", "our own pipe", "another user's pipe", "syslog"])
def unread(
    request: pytest.FixtureRequest, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Writer, Callable[[], bytes]]]:
    """A writer whose reader reads only when it is told to."""

    def refuse(path: str, *_: object) -> int:
        raise PermissionError(path)

    if request.param == "journal":
        writer, theirs = request.getfixturevalue("journal")
        yield writer, lambda: read_all(theirs)
    elif request.param == "syslog":
        with listen(directory / "log") as daemon:
            syslog = Syslog(str(directory / "log"))
            yield syslog, lambda: daemon.recv(4096) + b"\n" if select.select([daemon], [], [], 0)[0] else b""
            syslog.close()
    else:
        if request.param == "another user's pipe":  # as where a supervisor made the pipe as root
            monkeypatch.setattr(os, "open", refuse)
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb") as pipe, os.fdopen(write_end, "wb") as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            stderr = standard_error({})
            yield stderr, lambda: os.read(read_end, 1 << 16) if select.select([pipe], [], [], 0)[0] else b""
            assert os.get_blocking(write_end), "who shares the pipe would lose lines"
            stderr.close()


def test_who_does_not_read_is_not_waited_for_and_gets_whole_lines_later(
    unread: tuple[Writer, Callable[[], bytes]],
) -> None:
    writer, read = unread
    log = Log(writer=writer)
    lines = 3_000
    for number in range(lines):
        log.info(f"line {number} " + "x" * 100)
    assert 0 < writer.lost < lines
    got = b""
    while (data := read()) or writer.waiting:
        got += data
        log.flush()
    kept = lines - writer.lost
    assert [line.partition("info: ")[2] for line in got.decode().splitlines()] == [
        f"line {number} " + "x" * 100 for number in range(kept)
    ]
    log.info("here again")
    told, last = (read() + read()).decode().splitlines()
    assert told.endswith(f"warning: {writer.lost} lines of the log were lost before this one")
    assert last.endswith("info: here again")


def test_the_service_answers_while_nobody_reads_its_log(directory: Path) -> None:
    settings = {
        "listen": f"unix:{directory}/policy", "redis_url": f"unix://{directory}/no-redis", "log_decisions": "all",
    }  # fmt: skip
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    with subprocess.Popen([*CLI, *options, *SERVE], stderr=PIPE) as service:
        assert service.stderr is not None
        seen = b""
        while b"ready, listening" not in seen:
            seen = service.stderr.readline()
        with Client(Listener(path=f"{directory}/policy")) as client:
            for number in range(2_000):  # several times what a pipe holds
                client.ask(f"192.0.2.{number % 250}", sender="a" * 200 + "@example.com")
        service.terminate()
        assert service.wait(60) == 0


def test_to_syslog_each_line_is_a_datagram_of_the_facility_mail(directory: Path) -> None:
    with listen(directory / "log") as daemon:
        writer = writer_to(f"syslog:{directory / 'log'}", {})
        assert isinstance(writer, Syslog)
        log = Log(writer=writer)
        log.info("one")
        log.warning("two")
        log.error("three")
        got = [daemon.recv(4096).decode() for _ in range(3)]
        head = rf"[A-Z][a-z][a-z] [ 123]\d \d\d:\d\d:\d\d pbs-policy\[{os.getpid()}\]: "
        for line, (priority, text) in zip(
            got, [(22, "info: one"), (20, "warning: two"), (19, "error: three")], strict=True
        ):
            assert re.fullmatch(rf"<{priority}>{head}{text}", line)
        writer.close()


def test_a_syslog_that_starts_late_or_again_gets_what_waited(directory: Path) -> None:
    writer = Syslog(str(directory / "log"))
    log = Log(writer=writer)
    log.info("before it is there")
    with listen(directory / "log") as daemon:
        log.info("then")
        assert [daemon.recv(4096).rpartition(b": ")[2] for _ in range(2)] == [b"before it is there", b"then"]
    (directory / "log").unlink()
    with listen(directory / "log") as daemon:
        log.info("started again")
        assert daemon.recv(4096).endswith(b"info: started again")
    writer.close()


def test_a_line_too_long_for_a_datagram_takes_no_other_with_it(directory: Path) -> None:
    with listen(directory / "log") as daemon:
        writer = Syslog(str(directory / "log"))
        log = Log(writer=writer)
        log.info("x" * 4_000_000)
        log.info("short")
        assert daemon.recv(4096).endswith(b"warning: 1 lines of the log were lost before this one")
        assert daemon.recv(4096).endswith(b"info: short")
        writer.close()


def test_the_service_logs_to_syslog_as_json(directory: Path) -> None:
    settings = {
        "listen": f"unix:{directory}/policy", "redis_url": f"unix://{directory}/no-redis", "log_decisions": "all",
        "log_to": f"syslog:{directory}/log", "log_format": "json",
    }  # fmt: skip
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    with listen(directory / "log") as daemon, subprocess.Popen([*CLI, *options, *SERVE], stderr=PIPE) as service:
        daemon.settimeout(20)
        seen = daemon.recv(4096).decode()
        while "ready, listening" not in seen:
            seen = daemon.recv(4096).decode()
        with Client(Listener(path=f"{directory}/policy")) as client:
            assert client.ask("192.0.2.7").startswith("DEFER_IF_REJECT")
        while '"reason":"unavailable"' not in seen:
            seen = daemon.recv(4096).decode()
        service.terminate()
        assert service.wait(60) == 0
        assert service.stderr is not None
        assert service.stderr.read() == b""
    head, _, members = seen.partition("{")
    assert re.fullmatch(rf"<22>[^>]+ pbs-policy\[{service.pid}\]: ", head)
    assert json.loads("{" + members)["action"] == "DEFER_IF_REJECT"
