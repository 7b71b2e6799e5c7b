"""docs/reference.md has every name that a command has in JSON, with the commands that print it, and no other."""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import fakeredis
import pytest

from pbs_policy.address import ClientAddresses
from pbs_policy.cap import Cap
from pbs_policy.decision.candidate import Candidate
from pbs_policy.decision.rules import DUNNO, OK, Decision
from pbs_policy.log import Log
from pbs_policy.postfix.protocol import RequestParser
from pbs_policy.postfix.query import serialise_request
from pbs_policy.service import decision_line
from pbs_policy.service.stats import Stats
from pbs_policy.table.keys import Keys
from pbs_policy.table.records import Permit, Record
from pbs_policy.table.usage import Usage
from tests.commands import Pbs, put_behind
from tests.pages import TOP
from tests.stand_ins import answering
from tests.stores import table_on, write_login

PAGE = (TOP / "docs" / "reference.md").read_text()
SECTION = PAGE.partition("\n## Names in JSON and TSV\n")[2].partition("\n## ")[0]
BY_REASON = {"answers", "counts", "since_start", "last_hour", "last_day"}
"""Members whose own names are data."""
TIMES = {"since", "expires_at", "last_use_at"}
COMMANDS = {
    "list": ["list", "--json"],
    "show": ["show", "192.0.2.7", "-o", "jsonl"],
    "denied": ["denied", "--json"],
    "export": ["export"],
    "check": ["check", "192.0.2.7", "--json"],
    "report": ["report", "--json"],
    "stats": ["stats", "--json"],
}


@pytest.fixture
def pbs(bare: Pbs, monkeypatch: pytest.MonkeyPatch) -> Pbs:
    """Commands on a Redis that has one of everything."""
    redis = fakeredis.FakeRedis()
    put_behind(redis, monkeypatch)
    table = table_on(redis, "pbs:")
    now, parse_target = int(table.now()), ClientAddresses().parse_target
    for user in ("alice@example.com", "bob@example.com"):
        write_login(table, "192.0.2.7", Record(now, "imap", user), 3600)
    full = Permit(now, "scanner", ("@example.com",), ("example.net",), Cap(20, 3600), "second floor")
    table.permit(parse_target("192.0.2.0/28"), full, 3600)
    table.deny(parse_target("198.51.100.7"), "spam", 3600)
    table.deny(parse_target("198.51.100.8"), "over its cap", 3600, is_automatic=True)
    table.deny_user(b"carol@example.com", "stolen", 3600)
    usage = Usage("pbs:", 86_400, table.now)
    usage.note("192.0.2.7", "alice@example.com", foreign_sender=1)
    stats = Stats(Keys("pbs:"), "mx1:7", "1.2", table.now)
    counts = {OK: {"login": 1}, DUNNO: {"no_login": 1}}
    table.write([*usage.commands(), *stats.commands(counts, {"connections": 1, "redis_connections": 1})])
    return bare


def members(shown: Any) -> Iterator[tuple[str, Any]]:
    """Every member of every object in what was printed."""
    for each in shown if isinstance(shown, list) else ():
        yield from members(each)
    for name, field in shown.items() if isinstance(shown, dict) else ():
        yield name, field
        if name not in BY_REASON:
            yield from members(field)


def printed(pbs: Pbs, arguments: list[str], *, is_lines: bool = False) -> Any:
    result = pbs(*arguments)
    assert (result.status, result.err) == (0, "")
    is_lines = is_lines or "--json" not in arguments
    return [json.loads(line) for line in result.out.splitlines()] if is_lines else json.loads(result.out)


def logged() -> list[Any]:
    stream = io.BytesIO()
    log = Log(stream, is_json=True)
    log.warning("a line")
    attributes = {"client_address": "192.0.2.7", "sender": "a@example.com", "recipient": "b@example.net"}
    request = RequestParser().next_request(serialise_request(attributes))
    assert request is not None
    login = Candidate(b"", "192.0.2.7", b"1 imap alice@example.com", b"alice@example.com")
    log.decision(decision_line.as_json(Decision(DUNNO, "login", login, would_be=OK), "192.0.2.7", request))
    log.flush()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def replayed(pbs: Pbs, tmp_path: Path) -> list[Any]:
    log = tmp_path / "mail.log"
    log.write_text(
        "Nov 28 10:00:00 mail postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[192.0.2.7]: 554 5.7.1 "
        "<b@example.net>: Relay access denied; from=<a@example.com> to=<b@example.net> proto=ESMTP helo=<x>\n"
    )
    with answering(b"action=DUNNO\n\n") as service:
        return list(printed(pbs, ["replay", "--listener", str(service.listener), str(log), "--json"], is_lines=True))


def test_each_name_is_in_the_reference_with_the_commands_that_print_it(pbs: Pbs, tmp_path: Path) -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for command, arguments in COMMANDS.items():
        for name, _ in members(printed(pbs, arguments)):
            found[name].add(command)
    others = {"log": logged(), "replay": replayed(pbs, tmp_path)}
    for command, lines in others.items():
        for name, _ in members(lines):
            found[name].add(command)
    rows = re.findall(r"^\| `(\w+)` \| .+ \| ([\w, ]+) \|$", SECTION, re.MULTILINE)
    assert len({name for name, _ in rows}) == len(rows)
    assert {name: set(commands.split(", ")) for name, commands in rows} == found


def test_each_time_is_iso_8601_in_whole_seconds(pbs: Pbs) -> None:
    seen = set()
    for arguments in COMMANDS.values():
        for name, field in members(printed(pbs, arguments)):
            if name in TIMES and field is not None:
                seen.add(name)
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", field)
                assert datetime.fromisoformat(field)
            assert not (isinstance(field, int | float) and field > 10**8), f"{name}: {field} looks like Unix seconds"
    assert seen == TIMES


def test_tsv_has_the_names_of_json(pbs: Pbs) -> None:
    for command in ("list", "denied"):
        (first, *_) = printed(pbs, [command, "--json"])
        assert pbs(command, "-o", "tsv").out.splitlines()[0].split("\t") == list(first)


def test_what_list_and_denied_print_is_what_export_writes(pbs: Pbs) -> None:
    listed = [*printed(pbs, ["list", "-o", "jsonl"]), *printed(pbs, ["denied", "-o", "jsonl"])]
    full = [{name: field for name, field in row.items() if field} for row in listed]
    for row in full:
        if row["kind"] == "permit":
            assert row.pop("service") == "manual"
    assert printed(pbs, ["export"]) == full
