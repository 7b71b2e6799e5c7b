"""Command lines that are offered for pasting: whatever a user or key is named, the shell takes it for one word."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from redis import Redis

import pbs_policy
from pbs_policy.cli.denies import denies_against
from pbs_policy.cli.who import Who
from pbs_policy.command_line import command_line
from pbs_policy.decision.check import Enquiry
from pbs_policy.decision.rules import Rules
from pbs_policy.decision.words import explain
from pbs_policy.doctor import store_keys
from pbs_policy.postfix.protocol import as_request
from pbs_policy.postfix.query import serialise_request
from pbs_policy.settings import load
from pbs_policy.table.records import Record
from pbs_policy.table.users import parse_user_name
from tests.stores import client_on, table_on, write_login

ADDRESS = "192.0.2.7"
HOSTILE = [
    "a;touch${IFS}/x@example.com", "a'$(id)'@example.com", "`id`@example.com", "a b@example.com", "--all",
    "a&&id|id>x@example.com", 'a"b\\c@example.com', "~*?[a]@example.com", "-rf", "!!@example.com",
]  # fmt: skip


def words(line: str) -> list[str]:
    """The words that a shell makes of a line, none of which it runs."""
    script = "for word in " + line + "; do printf '%s\\0' \"$word\"; done"
    done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, check=True, cwd="/proc/self", timeout=20)
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_one_word_to_the_shell_and_no_option(name: str) -> None:
    *others, last = words(command_line("pbs-policy", "undeny", about=name))
    assert (others, last) == (["pbs-policy", "undeny", *(["--"] if name[0] == "-" else [])], name)
    assert words(command_line("chgrp", name, "/x y")) == ["chgrp", name, "/x y"]


def test_what_does_not_print_is_shown_as_a_question_mark() -> None:
    assert command_line("redis-cli", "DEL", about="a\nid\x1b\udcff") == "redis-cli DEL 'a?id??'"


@pytest.mark.parametrize("name", HOSTILE)
def test_check_offers_a_line_that_ends_the_deny_of_that_user_alone(redis: Redis, name: str) -> None:
    table = table_on(redis, "pbs:")
    write_login(table, ADDRESS, Record(int(table.now()), "pop3", name), 60)
    table.deny_user(table.name(name), "", 60)
    client = load(Path("/dev/null"))[0].addresses.parse(ADDRESS)
    request = as_request(serialise_request({"client_address": ADDRESS, "sender": "bob@example.net"}))
    rows = explain(Enquiry(table, Rules(), client, request)).rows
    change = next(row.change for row in rows if row.rule == "user denies")
    assert parse_user_name(words(change.strip("`"))[-1]) == name.lower()
    assert words(change.strip("`"))[:2] == ["pbs-policy", "undeny"]


@pytest.mark.parametrize("name", HOSTILE)
def test_permit_offers_a_line_that_ends_the_deny_of_that_user_alone(redis: Redis, name: str) -> None:
    table = table_on(redis, "pbs:")
    table.deny_user(table.name(name), "", 60)
    (said,) = denies_against(table, None, Who(None, name))
    assert parse_user_name(words(said.partition(" is denied: ")[2])[-1]) == name


@pytest.mark.parametrize("name", HOSTILE)
def test_doctor_offers_a_line_that_deletes_that_key_alone(redis: Redis, name: str) -> None:
    redis.set(f"pbs:login:{ADDRESS},{name}", "1700000000 pop3")
    found, _ = store_keys.check_keys(client_on(redis), load(Path("/dev/null"))[0])
    assert words(found.mend.rpartition(": redis-cli")[2]) == ["DEL", f"pbs:login:{ADDRESS},{name}"]


def test_no_other_place_puts_a_name_into_a_command_line() -> None:
    command = "pbs-policy ((un)?deny|revoke|permit)|redis-cli [A-Z]+|chgrp|chown|chmod [0-7]+|useradd|ls -l|install -"
    offers = re.compile(rf"""\bf["'][^\n]*\b({command})\s[^"'\n]*\{{""")
    folder = Path(pbs_policy.__file__).parent
    found = [
        f"{file.relative_to(folder)}: {line.strip()}"
        for file in sorted(folder.rglob("*.py"))
        for line in file.read_text().splitlines()
        if offers.search(line)
    ]
    assert found == []
