"""`list`, `show`, and the formats that every listing has."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from pbs_policy.address import ClientAddresses
from pbs_policy.bars import width_of, wrapped
from pbs_policy.cap import Cap
from pbs_policy.cli import lists, output
from pbs_policy.cli.output import FORMATS, Column
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.store import bulk
from pbs_policy.store.connect import RedisClient
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import Keys
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.records import Permit, Record
from pbs_policy.table.rows import read_time, write_time
from tests.commands import Pbs, Result, is_one_error
from tests.service import CLI
from tests.stores import connect, table_on, write_login

KEYS = Keys("pbs:")
HOUR = 3600
DAYS_AGO = int(time.time()) - 3 * 86_400 - 5 * HOUR - 1800
LEFT = 5400 + 50  # seconds: shown as 1h 30m, however slow the machine is
FIELDS = [
    "kind", "client_address", "user", "service", "since", "expires_at", "senders", "recipient_domains", "cap", "note",
    "recorded_by",
]  # fmt: skip
parse_target = ClientAddresses().parse_target


@pytest.fixture
def table(redis: Redis) -> LoginTable:
    return table_on(redis, "pbs:", now=lambda: DAYS_AGO)


def login(table: LoginTable, address: str, user: str, ttl: float = LEFT) -> None:
    write_login(table, address, Record(DAYS_AGO, "imap", user), ttl)


def permit(table: LoginTable, target: str, **conditions: Any) -> None:
    table.permit(parse_target(target), Permit(DAYS_AGO, "scanner@example.com", **conditions), LEFT)


FULL = {"senders": ("@example.com", "a@example.org"), "recipient_domains": ("example.net",), "cap": Cap(20, HOUR)}


# --- the formats


def test_a_list_is_a_table_of_logins_and_permits_with_their_conditions(pbs: Pbs, table: LoginTable) -> None:
    login(table, "192.0.2.7", "alice@example.com")
    login(table, "198.51.100.7", "")
    permit(table, "192.0.2.0/28", note="second floor", **FULL)
    permit(table, "2001:db8::7")
    day, until = time.strftime("%d %b", time.localtime(DAYS_AGO)), time.localtime(time.time() + LEFT)
    shown = pbs("list", "--sort", "address")
    assert Result(shown.status, re.sub(r"\d\d:\d\d", "HH:MM", shown.out), shown.err) == Result(
        0,
        "CLIENT ADDRESS  USER                 SERVICE  SINCE              LEFT           NOTE\n"
        f"192.0.2.0/28    scanner@example.com  manual   3d 5h ago, {day}  1h 30m, HH:MM  from @example.com "
        "a@example.org; to example.net; at most 20/1h; second floor\n"
        f"192.0.2.7       alice@example.com    imap     3d 5h ago, {day}  1h 30m, HH:MM\n"
        f"198.51.100.7    -                    imap     3d 5h ago, {day}  1h 30m, HH:MM\n"
        f"2001:db8::7     scanner@example.com  manual   3d 5h ago, {day}  1h 30m, HH:MM\n",
        "",
    )
    assert f"1h 30m, {time.strftime('%H:%M', until)}" in shown.out


def test_every_format_for_programs_has_the_same_fields(pbs: Pbs, table: LoginTable) -> None:
    login(table, "192.0.2.7", "alice@example.com")
    permit(table, "192.0.2.0/28", note="second floor", **FULL)
    array = pbs("list", "--sort", "address", "-o", "json")
    assert pbs("list", "--sort", "address", "--json") == array
    lines = pbs("list", "--sort", "address", "-o", "jsonl")
    shown = json.loads(array.out)
    assert [json.loads(line) for line in lines.out.splitlines()] == shown
    assert all(LEFT - 60 < read_time(entry.pop("expires_at")) - time.time() <= LEFT for entry in shown)
    assert shown == [
        {
            "kind": "permit", "client_address": "192.0.2.0/28", "user": "scanner@example.com", "service": "manual",
            "since": write_time(DAYS_AGO), "senders": ["@example.com", "a@example.org"],
            "recipient_domains": ["example.net"], "cap": "20/1h", "note": "second floor",
            "recorded_by": None,
        },
        {
            "kind": "login", "client_address": "192.0.2.7", "user": "alice@example.com", "service": "imap",
            "since": write_time(DAYS_AGO), "senders": [], "recipient_domains": [], "cap": None, "note": None,
            "recorded_by": "script",
        },
    ]  # fmt: skip
    heading, first, second = pbs("list", "--sort", "address", "-o", "tsv").out.splitlines()
    assert heading.split("\t") == FIELDS
    assert first.split("\t")[6:] == ["@example.com a@example.org", "example.net", "20/1h", "second floor", ""]
    assert second.split("\t")[:5] == ["login", "192.0.2.7", "alice@example.com", "imap", write_time(DAYS_AGO)]
    assert second.split("\t")[6:] == ["", "", "", "", "script"]


def test_an_empty_list_is_empty_in_each_format(pbs: Pbs) -> None:
    assert pbs("list") == Result(0, "", "")
    assert pbs("list", "-o", "json") == Result(0, "[]\n", "")
    assert pbs("list", "-o", "jsonl") == Result(0, "", "")
    assert pbs("list", "-o", "tsv") == Result(0, "\t".join(FIELDS) + "\n", "")


def test_a_key_without_an_end_is_shown_as_one(pbs: Pbs, redis: Redis) -> None:
    redis.set(KEYS.permit("192.0.2.7"), f"{DAYS_AGO} manual")
    assert "NO END: not honoured" in pbs("list").out
    assert json.loads(pbs("list", "--json").out)[0]["expires_at"] is None
    assert pbs("list", "-o", "tsv").out.splitlines()[1].split("\t")[5] == ""


UNPRINTABLE = "a\x1b[31m\tb\n\\\u202e\udcff@example.com"


def test_a_name_that_does_not_print_is_shown_safely_in_each_format(pbs: Pbs, table: LoginTable, redis: Redis) -> None:
    """Whoever chooses a user name must not write to an administrator's terminal, nor a line of his own."""
    login(table, "192.0.2.7", UNPRINTABLE)
    redis.set(b"pbs:login:\x1b]0;x\x07\t198.51.100.7", str(DAYS_AGO), ex=LEFT)
    for arguments in (["list"], ["list", "-o", "tsv"], ["list", "-o", "jsonl"], ["show", f"user:{UNPRINTABLE}"]):
        result = pbs(*arguments)
        assert (result.status, result.err) == (0, "")
        assert all(letter.isprintable() or letter in "\t\n" for letter in result.out)
        assert "\x1b" not in result.out
        assert len(result.out.splitlines()) == (2 if {"jsonl", "show"} & {*arguments} else 3)
    rows = [line.split("\t") for line in pbs("list", "-o", "tsv").out.splitlines()]
    assert {len(row) for row in rows} == {len(FIELDS)}
    assert {row[2] for row in rows[1:]} == {"a\\u001b[31m\\tb\\n\\\\\\u202e\ufffd@example.com", ""}
    users = [json.loads(line)["user"] for line in pbs("list", "-o", "jsonl").out.splitlines()]
    assert set(users) == {UNPRINTABLE.replace("\udcff", "\ufffd"), None}


def unescape(text: str) -> str:
    letters = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}
    return re.sub(
        r"\\(?:([\\tnr])|u(.{4})|U(.{8}))",
        lambda found: letters[found[1]] if found[1] else chr(int(found[2] or found[3], 16)),
        text,
    )


@given(st.lists(st.text(st.characters(codec=None)), min_size=1, max_size=3))
def test_any_text_is_one_cell_of_tsv_and_is_read_back_as_it_was(texts: list[str]) -> None:
    stream = io.BytesIO()
    with FORMATS["tsv"]([Column(f"f{number}") for number in range(len(texts))], stream) as rows:
        rows.write({f"f{number}": text for number, text in enumerate(texts)})
    data = stream.getvalue().decode("utf-8")
    assert all(letter.isprintable() or letter in "\t\n" for letter in data)
    assert data.count("\n") == 2
    shown = [re.sub("[\ud800-\udfff]", "\ufffd", text) for text in texts]
    assert [unescape(cell) for cell in data.split("\n")[1].split("\t")] == shown


@given(st.lists(st.text(), max_size=3))
def test_any_text_is_one_line_of_a_table(texts: list[str]) -> None:
    stream = io.BytesIO()
    with FORMATS["table"]([Column("text", "TEXT"), Column("hidden")], stream) as rows:
        for text in texts:
            rows.write({"text": text, "hidden": "x"})
    lines = stream.getvalue().decode("utf-8").splitlines()
    assert len(lines) == (len(texts) + 1 if texts else 0)
    assert all(line.isprintable() for line in lines)


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, rows: list[dict[str, Any]]) -> list[str]:
    """The lines of a table with these rows on a terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", Terminal(io.BytesIO(), "utf-8"))
    with FORMATS["table"]([Column(name, name.upper()) for name in rows[0]]) as table:
        for row in rows:
            table.write(row)
    sys.stdout.flush()
    return cast("Any", sys.stdout).buffer.getvalue().decode().splitlines()  # type: ignore[no-any-return]


def test_a_table_fits_the_terminal_and_nothing_of_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"address": "2001:db8:1111:2222:3333:4444:5555:6666", "user": "somebody.with.a.long.name@example.com",
           "left": "1h 30m", "note": "the scanner on the second floor"}  # fmt: skip
    lines = on_terminal(monkeypatch, 80, [row])
    assert max(map(len, lines)) <= 80
    starts = [lines[0].index(name) for name in ("ADDRESS", "USER", "LEFT", "NOTE")]
    columns = [
        "".join(line[start : end - 2 if end else None].rstrip() for line in lines[1:])
        for start, end in zip(starts, [*starts[1:], None], strict=True)
    ]
    assert columns[:3] == [row["address"], row["user"], row["left"]]
    assert " ".join(line[starts[3] :].strip() for line in lines[1:]).strip() == row["note"]


def test_wide_letters_take_two_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    users = ("\u5c71\u7530@example.com", "jose\u0301@example.com", "a@example.com")
    rows = [{"user": user, "left": "1h"} for user in users]
    lines = on_terminal(monkeypatch, 80, rows)
    assert [width_of(line[: line.index("1h")]) for line in lines[1:]] == [18, 18, 18]
    narrow = on_terminal(monkeypatch, 12, [{"user": "\u5c71\u7530" * 5, "left": "1h"}])
    assert max(map(width_of, narrow)) <= 12


@given(st.text(max_size=60), st.integers(2, 20))
def test_a_text_is_wrapped_without_loss(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert max(map(width_of, lines)) <= width
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_later_rows_of_a_table_stick_out_of_the_first_screenfuls_columns() -> None:
    stream = io.BytesIO()
    with FORMATS["table"]([Column("a", "A"), Column("b", "B")], stream) as rows:
        for _ in range(output.SCREENFUL):
            rows.write({"a": "short", "b": 1})
        assert stream.getvalue().startswith(b"A      B\nshort  1\n")
        rows.write({"a": "much longer", "b": 2})
    assert stream.getvalue().endswith(b"short  1\nmuch longer  2\n")


# --- what is listed, and in which order


def addresses(result: Result) -> list[str]:
    assert (result.status, result.err) == (0, "")
    return [json.loads(line)["client_address"] for line in result.out.splitlines()]


def test_a_list_is_sorted_on_demand(pbs: Pbs, table: LoginTable, redis: Redis) -> None:
    login(table, "192.0.2.10", "carol@example.com", 300)
    login(table, "192.0.2.9", "Bob@example.com", 100)
    login(table, "2001:db8::7", "alice@example.com", 200)
    permit(table, "192.0.2.0/28")
    redis.set(b"pbs:login:no-address", str(DAYS_AGO))
    order = ["192.0.2.0/28", "192.0.2.9", "192.0.2.10", "2001:db8::7", "no-address"]
    assert sorted(addresses(pbs("list", "-o", "jsonl"))) == sorted(order)
    assert addresses(pbs("list", "-o", "jsonl", "--sort", "address")) == order
    assert addresses(pbs("list", "-o", "jsonl", "--sort", "left")) == [
        "192.0.2.9", "2001:db8::7", "192.0.2.10", "192.0.2.0/28", "no-address"
    ]  # fmt: skip
    assert addresses(pbs("list", "-o", "jsonl", "--sort", "user")) == [
        "no-address", "2001:db8::7", "192.0.2.9", "192.0.2.10", "192.0.2.0/28"
    ]  # fmt: skip


def test_more_than_can_be_sorted_is_said(pbs: Pbs, table: LoginTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "SORT_LIMIT", 3)
    for number in range(3):
        login(table, f"192.0.2.{number}", "alice@example.com")
    assert len(addresses(pbs("list", "-o", "jsonl", "--sort", "left"))) == 3
    login(table, "192.0.2.9", "alice@example.com")
    result = pbs("list", "-o", "jsonl", "--sort", "left")
    assert is_one_error(result, 64, "more than 3 entries are too many for --sort")
    assert len(addresses(pbs("list", "-o", "jsonl"))) == 4


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_list_in_any_number_of_batches_is_complete(
    pbs: Pbs, table: LoginTable, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(bulk, "BATCH", size)
    opened: list[RedisClient] = []
    another = RedisClient.another

    def open_another(client: RedisClient) -> RedisClient:
        opened.append(client)
        return another(client)

    monkeypatch.setattr(RedisClient, "another", open_another)
    expected = []
    for number in range(50):
        login(table, f"192.0.2.{number}", "alice@example.com")
        login(table, f"192.0.2.{number}", "" if number % 3 else "bob@example.com")
        expected += [f"192.0.2.{number}"] * 2
        table.write([(b"SET", b"other:%d" % number, b"x")])
    assert sorted(addresses(pbs("list", "-o", "jsonl"))) == sorted(expected)
    assert bool(opened) == (size < 1000), "a small table needs no second connection"


def test_show_an_address_a_network_or_a_user(pbs: Pbs, table: LoginTable) -> None:
    login(table, "192.0.2.7", "alice@example.com")
    login(table, "192.0.2.7", "bob@example.com")
    login(table, "198.51.100.7", "alice@example.com")
    permit(table, "192.0.2.0/28")
    permit(table, "192.0.0.0/16")
    permit(table, "192.0.2.9")

    def shown(who: str) -> list[tuple[str, str]]:
        lines = pbs("show", who, "-o", "jsonl").out.splitlines()
        return sorted((entry["client_address"], entry["user"]) for entry in map(json.loads, lines))

    at_7 = [("192.0.2.7", "alice@example.com"), ("192.0.2.7", "bob@example.com")]
    around = [("192.0.0.0/16", "scanner@example.com"), ("192.0.2.0/28", "scanner@example.com")]
    assert shown("192.0.2.7") == around + at_7
    assert shown("::ffff:192.0.2.7") == around + at_7
    assert shown("192.0.2.0/28") == sorted([*around, *at_7, ("192.0.2.9", "scanner@example.com")])
    assert shown("192.0.2.0/24") == sorted([*around, *at_7, ("192.0.2.9", "scanner@example.com")])
    assert shown("198.51.100.0/30") == []
    assert shown("192.0.2.8/29") == [*around, ("192.0.2.9", "scanner@example.com")]
    assert shown("Alice@example.com") == [at_7[0], ("198.51.100.7", "alice@example.com")]
    assert shown("scanner@example.com") == [*around, ("192.0.2.9", "scanner@example.com")]


@pytest.mark.parametrize(
    "who", ["192.0.2.7", "192.0.2.0/28", "2001:db8::/32", "alice@example.com", "user:*", "user:jos\udce9"]
)
def test_show_where_there_is_nothing(pbs: Pbs, table: LoginTable, who: str) -> None:
    login(table, "192.0.2.70", "bob@example.com")
    assert pbs("show", who) == Result(1, "", "")
    assert pbs("show", "--json", who) == Result(1, "[]\n", "")


def test_what_waits_for_the_reader_grows_older(table: LoginTable, monkeypatch: pytest.MonkeyPatch) -> None:
    login(table, "192.0.2.7", "alice@example.com", 1000)
    login(table, "192.0.2.8", "alice@example.com", 1000)
    login(table, "192.0.2.9", "alice@example.com", 100)
    entries = (entry for entry in table.entries() if entry.target != "192.0.2.9")
    assert 990 < (next(entries).left or 0) <= 1000
    now = time.monotonic
    monkeypatch.setattr("pbs_policy.table.listing.time.monotonic", lambda: now() + 500)
    assert 490 < (next(entries).left or 0) <= 500
    assert next(entries, None) is None


# --- long lists, on a process of their own


MANY = 20_000


@pytest.fixture(scope="module")
def long_table() -> Iterator[str]:
    """The redis_url of a table with MANY logins."""
    import tempfile

    from tests.conftest import need

    need("redis")
    with tempfile.TemporaryDirectory(prefix="pbs-") as directory, PrivateRedis(Path(directory), port=None) as server:
        with connect(RedisUrl.parse(server.url), "", "") as redis:
            table = table_on(redis, "pbs:")
            for start in range(0, MANY, 500):
                commands = []
                for number in range(start, start + 500):
                    address, user = f"10.0.{number >> 8}.{number & 255}", b"user%d@example.com" % number
                    value = b"%d imap %s" % (DAYS_AGO, user)
                    for key in (KEYS.login(address), KEYS.login(address, user)):
                        commands.append((b"SET", key, value, b"EX", b"3600"))
                table.write(commands)
        yield server.url


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(long_table: str) -> Iterator[Start]:
    """Start a command as a process on the long table."""
    running: list[subprocess.Popen[bytes]] = []

    def call(*arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        process = subprocess.Popen([*CLI, "--set", f"redis_url={long_table}", *arguments], **streams)
        running.append(process)
        return process

    yield call
    for process in running:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


@pytest.mark.parametrize("form", list(FORMATS))
def test_a_long_list_is_complete_in_each_format(start: Start, form: str) -> None:
    process = start("list", "-o", form)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    if form == "json":
        found = [entry["client_address"] for entry in json.loads(out)]
    elif form == "jsonl":
        found = [json.loads(line)["client_address"] for line in out.splitlines()]
    else:
        found = [line.split()[1 if form == "tsv" else 0].decode() for line in out.splitlines()[1:]]
    assert len(found) == len(set(found)) == MANY


@pytest.mark.parametrize("form", list(FORMATS))
def test_a_reader_that_has_seen_enough_ends_the_list_quietly(start: Start, form: str) -> None:
    process = start("list", "-o", form)
    assert process.stdout
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr
    assert process.stderr.read() == b""


@pytest.mark.parametrize("form", list(FORMATS))
def test_a_full_disk_is_one_error(start: Start, form: str) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start("list", "-o", form, stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == os.EX_IOERR
    assert err == b"pbs-policy: cannot write the output: No space left on device\n"


def test_a_reader_that_takes_its_time_gets_everything(start: Start) -> None:
    process = start("list", "-o", "jsonl")
    assert process.stdout
    first = json.loads(process.stdout.readline())
    assert first["expires_at"] <= write_time(time.time() + HOUR)
    # The pipe is full, the command waits.
    assert wait_until(lambda: not _is_running(process.pid))
    assert len(process.stdout.readlines()) == MANY - 1
    assert process.wait(timeout=60) == 0


def _is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("R")


def test_progress_is_shown_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only where it takes long: at each look the clock of this test has gone on by two seconds."""
    monkeypatch.setattr("pbs_policy.cli.output.time.monotonic", iter(range(0, 10_000, 2)).__next__)
    main, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream, os.fdopen(main, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", stream)
        progress = output.Progress()
        progress.add(1000)
        progress.add(234)
        progress.clear()
        shown = b""
        while select.select([screen], [], [], 0.2)[0]:
            shown += screen.read(1000)
        assert shown == b"\r1,000 keys read\r1,234 keys read\r\x1b[K"
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    output.Progress().add(10**6)
    assert file.getvalue() == ""
