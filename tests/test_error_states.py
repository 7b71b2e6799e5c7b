"""Every command in every state in which it cannot do its work: it ends with the right status and one line that says
what is wrong, where, and what to do. Commands are those of click's tree, so that a new one is covered by itself.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import click
import fakeredis
import pytest

from pbs_policy.cli import cli, main
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.ports import free_port
from pbs_policy.extras import why_no_reports
from pbs_policy.store import connect
from pbs_policy.store.redis_url import RedisUrl, written
from pbs_policy.table.records import Record
from pbs_policy.table.rows import write_time
from tests import stores
from tests.commands import Pbs, Result, is_one_error, put_behind
from tests.conftest import need
from tests.stand_ins import redis_that_says
from tests.stores import table_on, write_login
from tests.test_printable_output import ARGUMENTS, NO_REDIS, SERVICES

COMMANDS = cli.list_commands(click.Context(cli))
ASKS_REDIS = sorted({*COMMANDS, "import"} - (NO_REDIS - {"import"}) - {"demo"})
"""The demonstration has a Redis of its own."""
NOT_INSTALLED = {"record"} if why_no_reports() else set()
READS_SETTINGS = sorted(set(COMMANDS) - {"completion", "demo", "install-hook", "path"} - NOT_INSTALLED)
PASSWORD = "secret"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What ARGUMENTS names: an export, a log, configurations; and a password file."""
    expires_at = write_time(time.time() + 3600)
    line = {"kind": "deny", "client_address": "198.51.100.7", "expires_at": expires_at}
    (tmp_path / "export").write_text(json.dumps(line) + "\n")
    (tmp_path / "log").write_text(
        "Nov 28 10:00:00 mail postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[192.0.2.7]: 554 5.7.1 "
        "<b@example.net>: Relay access denied; from=<a@example.com> to=<b@example.net> proto=ESMTP helo=<x>\n"
    )
    (tmp_path / "etc" / "postfix").mkdir(parents=True)
    (tmp_path / "etc" / "dovecot").mkdir()
    (tmp_path / "etc" / "dovecot" / "dovecot.conf").write_text("# Nothing.\n")
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    return tmp_path


def arguments_of(command: str, folder: Path) -> list[str]:
    return [command, *(each.replace("DIR", str(folder)) for each in ARGUMENTS[command])]


# --- Redis


class State(NamedTuple):
    """A state of Redis: what brings it about in a real one (`settings` are ours then), and what is said of it. Of
    those in `works` it asks nothing that they cannot do without."""

    says: str
    advises: str
    commands: tuple[str, ...] = ()
    settings: str = ""
    works: tuple[str, ...] = ()


CREDENTIALS = "redis_user = {user}\nredis_password_file = {folder}/password\n"
STATES = {
    "down": State("Connection refused", "systemctl status redis-server"),
    "no socket": State("No such file or directory", "systemctl status redis-server"),
    "mute": State("no answer within ", "systemctl status redis-server"),
    "no Redis": State("what answers there does not speak Redis' protocol", "correct redis_url ("),
    "LOADING": State("LOADING Redis is loading the dataset in memory", "try again in a moment"),
    "NOAUTH": State("NOAUTH ", "set redis_password_file (default)", ("CONFIG SET requirepass secret",)),
    "WRONGPASS": State(
        "WRONGPASS ", "correct redis_user (", ("ACL SETUSER other on >otherwise +@all ~* &*",),
        CREDENTIALS.replace("{user}", "other"),
    ),
    "no password": State(
        "AUTH ", "that user has no password in Redis", (), CREDENTIALS.replace("redis_user = {user}\n", "")
    ),
    "NOPERM": State(
        "NOPERM ", "give its user few that right (+", (f"ACL SETUSER few on >{PASSWORD} ~* &* +hello +select",),
        CREDENTIALS.replace("{user}", "few"),
    ),
    "NOPERM of keys": State(
        "NOPERM ", "give its user others that right (", (f"ACL SETUSER others on >{PASSWORD} ~other:* +@all",),
        CREDENTIALS.replace("{user}", "others"), works=("stats", "report", "list", "denied", "export"),
    ),
    "READONLY": State("it is a replica", "name the master in redis_url (", ("REPLICAOF 127.0.0.1 1",)),
    "OOM": State(
        "OOM command not allowed when used memory > 'maxmemory'; ", "or raise its maxmemory",
        ("CONFIG SET maxmemory 1",),
        works=tuple(set(ASKS_REDIS) - {"permit", "import"}),
    ),
}  # fmt: skip
UNDO = ("CONFIG SET maxmemory 0", "REPLICAOF NO ONE", "ACL DELUSER few", "ACL DELUSER others", "ACL DELUSER other",
        "CONFIG SET requirepass ''")  # fmt: skip


class Unwell(NamedTuple):
    """A Redis in a state: how it is named in redis_url and in a message, and settings besides."""

    url: str
    where: str
    settings: str = ""


@pytest.fixture
def unwell(redis_server: PrivateRedis, folder: Path) -> Iterator[Callable[[str], Unwell]]:
    """Bring a Redis into one of STATES."""
    with ExitStack() as stack:

        def begin(name: str) -> Unwell:
            state = STATES[name]
            if name == "down":
                port = free_port()
                return Unwell(f"redis://127.0.0.1:{port}/0", f"127.0.0.1:{port}")
            if name == "no socket":
                return Unwell(f"unix://{folder}/none.sock", f"{folder}/none.sock")
            if name in ("no Redis", "LOADING"):
                said = b"220 mail ESMTP\r\n" if name == "no Redis" else f"-{state.says}\r\n".encode()
                place = stack.enter_context(redis_that_says(lambda _: [said]))
                return Unwell(place, place.removeprefix("redis://").removesuffix("/0"))
            if name == "mute":
                stores.pause(redis_server)
                stack.callback(stores.resume, redis_server)
            url = RedisUrl.parse(redis_server.url)
            client: Any = stack.enter_context(stores.connect(url))
            for line in state.commands:
                client.execute_command(*line.split(" "))
                stack.callback(_undo, client)
            where = url.path or written(url.place)
            return Unwell(redis_server.url, where, state.settings.format(folder=folder))

        yield begin


def _undo(client: Any) -> None:
    for line in UNDO:
        client.execute_command(*(word.strip("'") for word in line.split(" ")))


@pytest.mark.parametrize("command", ASKS_REDIS)
@pytest.mark.parametrize("name", STATES)
def test_a_redis_that_is_unwell_is_one_line(
    name: str, command: str, unwell: Callable[[str], Unwell], settings_file: Path, folder: Path,
    bare: Pbs, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(connect, "TIMEOUT", 0.05 if name == "mute" else connect.TIMEOUT)
    state, redis = STATES[name], unwell(name)
    settings_file.write_text(f"ttl = 30m\nredis_url = {redis.url}\n{redis.settings}")
    result = bare(*arguments_of(command, folder))
    if command == "doctor":
        # What others end with is a finding here, or several.
        assert (result.status, result.err) == (2, "")
        assert name == "OOM" or ("\nwrong         store." in result.out and str(settings_file) in result.out)
    elif command in state.works:
        assert result.status in (os.EX_OK, 1, os.EX_UNAVAILABLE)
        assert result.err.count("\n") <= 1
    else:
        assert is_one_error(result, os.EX_UNAVAILABLE, f"Redis is unavailable: {redis.where}: {state.says}")
        assert state.advises in result.err
        if "redis_url (" in state.advises:
            assert f"redis_url ({settings_file}:2)" in result.err
        assert PASSWORD not in result.err


# --- files


@pytest.mark.parametrize("command", READS_SETTINGS)
@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOENT, "create it, or correct its name"),
        (errno.EACCES, "run this as root (sudo)"),
        (errno.EISDIR, "name a file"),
        (errno.EIO, ""),
    ],
    ids=["absent", "not to be read", "a folder", "a bad disk"],
)
def test_a_settings_file_that_cannot_be_read_is_one_line(
    command: str, number: int, advice: str, settings_file: Path, folder: Path, bare: Pbs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(path: Path, **_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("pbs_policy.settings.sources.read_trusted", fail)
    result = bare(*arguments_of(command, folder))
    said = f"{settings_file}: {os.strerror(number)}"
    if command == "doctor":
        assert (result.status, result.err) == (2, "")
        assert os.strerror(number) in result.out
        assert f"in    {settings_file}" in result.out
    else:
        assert is_one_error(result, os.EX_CONFIG, said)
        assert advice in result.err


OTHER_FILES = [
    *[("redis_password_file", command) for command in ASKS_REDIS],
    *[("denies", command) for command in ("check", "denied", "doctor", "permit", "undeny")],
    *[("sender_maps", command) for command in ("check", "doctor")],
    *[(f"redis_tls_{name}_file", command) for name in ("ca", "cert") for command in ASKS_REDIS],
]


@pytest.mark.parametrize(("setting", "command"), OTHER_FILES)
def test_another_file_of_the_settings_is_named_with_its_setting(
    setting: str, command: str, settings_file: Path, folder: Path, bare: Pbs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if setting in ("denies", "sender_maps"):
        put_behind(fakeredis.FakeRedis(), monkeypatch)
    settings_file.write_text(f"{setting} = {folder}/none\nredis_url = rediss://127.0.0.1\n")
    result = bare(*arguments_of(command, folder))
    if command == "doctor":
        assert (result.status, result.err) == (2, "")
        assert f"{folder}/none" in result.out
    else:
        said = f"{setting}: {folder}/none: No such file or directory; create it, or correct its name"
        assert is_one_error(result, os.EX_CONFIG, said)


# --- the streams


STREAMS = {
    "closed": (os.EX_IOERR, "cannot write the output: Bad file descriptor"),
    "full": (os.EX_IOERR, "cannot write the output: No space left on device"),
    "unread": (128 + signal.SIGPIPE, ""),
}
"""What can be wrong with standard output, and how a command ends then that has something to say."""

WRITES = sorted(set(COMMANDS) - SERVICES - {"demo", "watch"})
"""Those that end by themselves, and soon."""


_WELL: dict[str, Result] = {}
"""How each command ends where nothing is wrong."""


class Streams:
    """Runs a command as a process does, with streams that are `closed`, `full`, `unread` by whoever is behind them,
    or a `file`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, begin: Callable[[], None]) -> None:
        self._monkeypatch = monkeypatch
        self._folder = folder
        self._begin = begin

    def run(self, arguments: list[str], out: str, err: str, *, anew: bool = True) -> Result:
        """On a login table that is as at the first time, or as the last command left it."""
        if anew:
            self._begin()
        streams = {"stdout": self._open(out, "out"), "stderr": self._open(err, "err")}
        with self._monkeypatch.context() as patch:
            for name, stream in streams.items():
                patch.setattr(sys, name, stream)
            with Path(os.devnull).open() as nothing:
                patch.setattr(sys, "stdin", nothing)
                with pytest.raises(SystemExit) as ended:
                    main(arguments)
            opened = sys.stdout, sys.stderr
        for each in opened:
            with suppress(OSError):
                each.close()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, *((self._folder / name).read_text() for name in ("out", "err")))

    def run_well(self, arguments: list[str]) -> Result:
        """With nothing wrong: once for all tests of a command."""
        name = arguments[2]
        if name not in _WELL:
            _WELL[name] = self.run(arguments, "file", "file")
            _WELL[name] = Result(*map(self.comparable, _WELL[name]))
        return _WELL[name]

    def comparable(self, said: Any) -> Any:
        """What is said, without what differs from one time to the next."""
        return re.sub(r"\d", "0", said.replace(str(self._folder), "DIR")) if isinstance(said, str) else said

    def _open(self, kind: str, name: str) -> io.TextIOWrapper | None:
        file = self._folder / name
        file.write_text("")
        if kind == "closed":
            return None
        if kind == "unread":
            reader, writer = os.pipe()
            os.close(reader)
            return os.fdopen(writer, "w")
        return Path("/dev/full" if kind == "full" else file).open("w", errors="backslashreplace")


@pytest.fixture
def streams(settings_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Streams:
    """On a table with a login, with a service that nobody answers for."""
    settings_file.write_text(f"listen = inet:127.0.0.1:{free_port()}\n")

    def begin() -> None:
        redis = fakeredis.FakeRedis()
        put_behind(redis, monkeypatch)
        write_login(table_on(redis, "pbs:"), "192.0.2.7", Record(int(time.time()), "imap", "alice@example.com"), 3600)

    return Streams(monkeypatch, folder, begin)


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("command", [*WRITES, "demo", "--help", "--version"])
def test_an_output_that_cannot_be_written_is_no_answer(
    command: str, kind: str, streams: Streams, settings_file: Path, folder: Path
) -> None:
    words = [command] if command.startswith("-") else arguments_of(command, folder)
    healthy = streams.run_well(["-c", str(settings_file), *words]) if command != "demo" else Result(0, "told", "")
    result = streams.run(["-c", str(settings_file), *words], kind, "file")
    if not healthy.out:
        assert (result.status, streams.comparable(result.err)) == (healthy.status, healthy.err)
        return
    status, said = STREAMS[kind]
    assert result.status == status
    assert streams.comparable(result.err).removeprefix(healthy.err) == (f"pbs-policy: {said}\n" if said else "")


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("command", ["permit", "revoke", "deny", "undeny"])
def test_every_change_is_made_whether_or_not_the_output_is_read(
    command: str, kind: str, streams: Streams, settings_file: Path
) -> None:
    both = ["192.0.2.7", "198.51.100.7"]
    before = {"revoke": ["permit"], "undeny": ["deny"]}.get(command, [])
    for each in before:
        streams.run(["-c", str(settings_file), each, *both], "file", "file")
    left = {"permit": ["list", 2], "revoke": ["list", 0], "deny": ["denied", 2], "undeny": ["denied", 0]}
    listing, count = left[command]
    result = streams.run(["-c", str(settings_file), command, *both], kind, "file", anew=not before)
    assert result.status == STREAMS[kind][0]
    listed = streams.run(["-c", str(settings_file), str(listing), "-o", "jsonl"], "file", "file", anew=False)
    assert sum(json.loads(line)["kind"] in ("permit", "deny") for line in listed.out.splitlines()) == count


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("command", [*WRITES, "--helpp"])
def test_a_standard_error_that_cannot_be_written_changes_nothing(
    command: str, kind: str, streams: Streams, settings_file: Path, folder: Path
) -> None:
    words = [command] if command.startswith("-") else arguments_of(command, folder)
    healthy = streams.run_well(["-c", str(settings_file), *words])
    result = streams.run(["-c", str(settings_file), *words], "file", kind)
    assert result.status == healthy.status
    assert streams.comparable(result.out) == streams.comparable(healthy.out)


@pytest.mark.parametrize("command", WRITES)
def test_an_error_while_both_streams_are_full_has_its_own_status(
    command: str, streams: Streams, folder: Path
) -> None:
    if command == "install-hook":
        need("dovecot")  # which it looks for before the settings
    result = streams.run(["-c", f"{folder}/none.conf", *arguments_of(command, folder)], "full", "full")
    reads_settings = command in READS_SETTINGS and command != "doctor"
    assert result.status == (os.EX_CONFIG if reads_settings else os.EX_IOERR)


