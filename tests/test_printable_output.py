"""Whatever Redis, the service, a file or an argument says, what a command writes to a terminal prints: every command
by name, and the sink below standard output and standard error that sees to it.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

import pbs_policy
from pbs_policy.cli import run
from pbs_policy.cli.commands import PLACES
from pbs_policy.cli.sink import printable_output
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.log import Log, escaped
from pbs_policy.watch.screen import BAD, ScreenLine
from pbs_policy.watch.terminal import Terminal
from tests.service import CLI, SERVE
from tests.stand_ins import answering, redis_that_says

SAID = "\x1b]0;x\x07\x1b[2J\x9b31m\x7f\x00\u202e\u2066\u200f\u2028\ue000\U0001f600\U000e0001caf\u00e9"
"""A title, a cleared screen, colours, DEL, direction marks, a line separator, private use, a tag, and what prints."""

REPLIES = {
    "errors": b"-ERR " + SAID.encode() + b"\r\n",
    "errors that ask for a login": b"-NOAUTH " + SAID.encode() + b"\r\n",
    "words": b"+" + SAID.encode() + b"\r\n",
    "texts": b"$%d\r\n%s\r\n" % (len(SAID.encode()), SAID.encode()),
    "no Redis": SAID.encode() + b"\r\n",
}

SERVICES = {"record", "serve"}
NO_REDIS = SERVICES | {"completion", "config", "import", "install-hook", "install-postfix", "path", "query", "replay"}
"""Commands that ask no Redis, or none before their file is sound."""

ARGUMENTS = {
    "check": ["192.0.2.7"],
    "completion": ["zsh"],
    "config": [],
    "demo": [],
    "denied": [],
    "deny": ["192.0.2.7"],
    "doctor": ["--no-trial", "--postfix-config", "DIR", "--dovecot-config", "DIR/log"],
    "export": [],
    "import": ["DIR/export"],
    "install-hook": ["--root", "DIR"],
    "install-postfix": ["--root", "DIR"],
    "list": [],
    "path": [],
    "permit": ["192.0.2.7", "--user", "alice@example.com"],
    "query": ["client_address=192.0.2.7"],
    "record": [],
    "replay": ["--json", "DIR/log"],
    "report": [],
    "revoke": ["192.0.2.7"],
    "serve": [],
    "show": ["192.0.2.7"],
    "stats": [],
    "undeny": ["192.0.2.7"],
    "watch": ["--lines"],
}
"""What each command needs to get as far as it can; DIR is a folder with hostile files."""


class Hostile(NamedTuple):
    """A server that answers each command alike: where it is, and what it was asked."""

    url: str
    asked: list[list[bytes]]


@pytest.fixture
def hostile_redis() -> Iterator[Callable[[str], Hostile]]:
    with ExitStack() as stack:

        def start(kind: str) -> Hostile:
            asked: list[list[bytes]] = []

            def answer(words: list[bytes]) -> list[bytes]:
                asked.append(words)
                return [REPLIES[kind]]

            return Hostile(stack.enter_context(redis_that_says(answer)), asked)

        yield start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files with anything in them: a log of Postfix, an export, configurations below a root."""
    line = (
        "Nov 28 10:00:00 mail postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[192.0.2.7]: 554 5.7.1 "
        f"<b@example.net>: Relay access denied; from=<{SAID}@example.com> to=<b@example.net> proto=ESMTP helo=<x>\n"
    )
    (tmp_path / "log").write_text(line)
    (tmp_path / "export").write_text("".join(f"{each}\n" for each in ("{", SAID, json.dumps({"kind": SAID}))))
    for place in ("postfix", "dovecot"):
        (tmp_path / "etc" / place).mkdir(parents=True)
        (tmp_path / "etc" / place / "main.cf").write_text(f"smtpd_relay_restrictions = {SAID}\n# {SAID}\n")
        (tmp_path / "etc" / place / "dovecot.conf").write_text(f"{SAID}\n")
    return tmp_path


@pytest.fixture
def shown(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., str]:
    """Run a command and return all that it wrote, which prints."""
    for name in [name for name in os.environ if name.startswith("PBS_")]:
        monkeypatch.delenv(name)
    (folder / "none.conf").touch()

    def call(*arguments: str, file: str = "none.conf") -> str:
        capfd.readouterr()
        run(["-c", str(folder / file), *arguments])
        written = "".join(capfd.readouterr())
        assert written
        assert prints(written), written
        return written

    return call


def prints(text: str) -> bool:
    return text.replace("\n", "").replace("\t", "").isprintable()


def arguments_of(command: str, folder: Path) -> list[str]:
    return [command, *(each.replace("DIR", str(folder)) for each in ARGUMENTS[command])]


# --- every command


def test_every_command_is_tried() -> None:
    assert sorted(ARGUMENTS) == sorted(PLACES)


@pytest.mark.parametrize("kind", REPLIES)
@pytest.mark.parametrize("command", sorted(set(PLACES) - NO_REDIS - {"demo"}))
def test_what_redis_says_prints(
    command: str, kind: str, hostile_redis: Callable[[str], Hostile], shown: Callable[..., str], folder: Path
) -> None:
    server = hostile_redis(kind)
    shown("--set", f"redis_url={server.url}", *arguments_of(command, folder))
    assert server.asked


@pytest.mark.parametrize("command", sorted(NO_REDIS - SERVICES))
def test_what_files_and_the_service_say_prints(command: str, shown: Callable[..., str], folder: Path) -> None:
    with answering(b"action=OK " + SAID.encode() + b"\n\n") as service:
        shown("--set", f"listen={service.listener}", *arguments_of(command, folder))


@pytest.mark.parametrize("command", sorted(PLACES))
@pytest.mark.parametrize("argument", [SAID, f"--{SAID}", "\udcff\udc9b"], ids=["word", "option", "bytes"])
def test_what_is_typed_prints(
    command: str, argument: str, hostile_redis: Callable[[str], Hostile], shown: Callable[..., str]
) -> None:
    server = hostile_redis("errors")
    shown("--set", f"redis_url={server.url}", command, argument, argument)


@pytest.mark.parametrize("command", sorted(set(PLACES) - {"completion", "demo", "path"}))
def test_what_the_settings_say_prints(command: str, shown: Callable[..., str], folder: Path) -> None:
    lines = [f"{SAID} = 1", f"ttl = {SAID}", f"redis_url = {SAID}", f"sender_match = {SAID}", f"listen = {SAID}"]
    (folder / "hostile.conf").write_text("\n".join(lines))
    shown(*arguments_of(command, folder), file="hostile.conf")


def test_a_name_that_is_no_command_prints(shown: Callable[..., str]) -> None:
    shown(SAID)
    shown("--set", SAID, "config")


def test_the_service_and_its_log_print(hostile_redis: Callable[[str], Hostile], tmp_path: Path) -> None:
    log = tmp_path / "log"
    settings = [f"--set={pair}" for pair in ("listen=inet:127.0.0.1:0", f"redis_url={hostile_redis('errors').url}")]
    with log.open("wb") as stream:
        service = subprocess.Popen([*CLI, "-c", "/dev/null", *settings, *SERVE], stderr=stream, stdout=stream)
    try:
        assert wait_until(lambda: "]0;x" in log.read_text())
    finally:
        service.terminate()
        service.wait()
    assert prints(log.read_text())


def test_a_terminal_gets_nothing_but_letters(hostile_redis: Callable[[str], Hostile]) -> None:
    try:
        main, terminal = pty.openpty()
    except OSError:
        pytest.skip("no pseudo-terminal here: mount -t devpts devpts /dev/pts")
    command = [*CLI, "-c", "/dev/null", "--set", f"redis_url={hostile_redis('errors').url}", "list"]
    try:
        environment = os.environ | {"LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, stdout=terminal, stderr=terminal, env=environment, check=False)
        written = os.read(main, 65536).decode()
    finally:
        os.close(terminal)
        os.close(main)
    assert done.returncode == os.EX_UNAVAILABLE
    assert written.startswith("pbs-policy: Redis is unavailable: ")
    assert prints(written.replace("\r\n", "\n"))


def test_the_screen_of_watch_gets_our_own_sequences_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        main, terminal = pty.openpty()
    except OSError:
        pytest.skip("no pseudo-terminal here: mount -t devpts devpts /dev/pts")
    with os.fdopen(os.dup(terminal)) as given, os.fdopen(terminal, "w", encoding="utf-8") as shown:
        monkeypatch.setattr(sys, "stdin", given)
        monkeypatch.setattr(sys, "stdout", shown)
        with Terminal({}) as taken:
            os.read(main, 65536)
            taken.draw([ScreenLine(SAID, BAD)])
            drawn = os.read(main, 65536).decode()
    os.close(main)
    assert drawn == f"\x1b[1;1H\x1b[31m{escaped(SAID)}\x1b[0m\x1b[K"


# --- the sink


class Written:
    """Standard output that keeps its bytes, in an encoding."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
        self._bytes = io.BytesIO()
        self._encoding = encoding
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(self._bytes, encoding, errors="strict"))

    def write(self, text: str) -> str:
        with printable_output():
            sys.stdout.write(text)
            sys.stdout.flush()
        return self._bytes.getvalue().decode(self._encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "iso8859-1", "euc-jp"])
def test_json_stays_the_json_it_was(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    text = SAID + "\u8a9e\U00010000\udcff"
    shown = Written(monkeypatch, encoding).write(json.dumps({"text": text}, ensure_ascii=False, indent=2))
    assert json.loads(shown) == {"text": text}
    assert prints(shown)


def test_what_prints_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "kind\ttarget\n192.0.2.7\tjos\u00e9 \u8a9e \U0001f600 \\u001b\n"
    assert Written(monkeypatch, "utf-8").write(text) == text


@pytest.mark.parametrize(
    "letter",
    [*map(chr, [*range(9), *range(11, 32), *range(127, 160)]), *"\u200e\u200f\u2028\u2029", chr(0xD800), chr(0xDFFF),
     *map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)])],
    ids=ascii,
)  # fmt: skip
def test_no_letter_that_commands_a_terminal_passes(letter: str) -> None:
    assert escaped(f"a{letter}b") == f"a\\u{ord(letter):04x}b"


def test_bytes_go_through_it_as_text_does(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with printable_output():
        sys.stdout.buffer.write(b"\x1b[2J \xff caf\xc3\xa9\n")
    assert stream.buffer.getvalue() == b"\\u001b[2J \\xff caf\xc3\xa9\n"


def test_the_streams_are_as_they_were_afterwards() -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), printable_output():
        sys.stdout.write(f"{1 // 0}")
    assert (sys.stdout, sys.stderr) == before


def test_nothing_goes_past_the_sink_but_what_is_known_to() -> None:
    past = re.compile(r"(stdout|stderr)\.buffer|os\.write\(|__std(out|err)__|\bstd(out|err)\.fileno|open\([12],")
    folders = ("cli", "doctor", "install", "watch", "demo")
    files = [file for folder in folders for file in (Path(pbs_policy.__file__).parent / folder).glob("*.py")]
    found = {f"{file.parent.name}/{file.name}" for file in files if past.search(file.read_text())}
    # The first drops what a reader does not want any more, then comes the sink itself; the others are those that its
    # page names.
    assert found - {"cli/__init__.py", "cli/sink.py"} == {"cli/output.py", "watch/terminal.py"}


def test_a_line_of_the_log_prints_whoever_wrote_it() -> None:
    stream = io.BytesIO()
    Log(stream).error(f"cannot open {SAID}")
    assert prints(stream.getvalue().decode())


# --- standard streams that are closed


def test_a_closed_standard_input_is_an_error() -> None:
    done = run_in_shell("-c /dev/null import <&-")
    assert (done.returncode, done.stderr.count(b"\n")) == (os.EX_IOERR, 1)


def test_with_all_streams_closed_nothing_is_written_into_a_connection(redis_server: PrivateRedis) -> None:
    url = f"redis_url={redis_server.url}"
    assert run_in_shell(f"-c /dev/null --set {url} list <&- >&- 2>&-").returncode in (0, os.EX_IOERR)
    assert run_in_shell(f"-c /dev/null --set {url} check 192.0.2.7 <&- >&- 2>&-").returncode == os.EX_IOERR


def run_in_shell(line: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["/bin/sh", "-c", f'"$@" {line}', "sh", *CLI], capture_output=True, check=False)
