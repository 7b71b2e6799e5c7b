"""Log lines: one per event, and a peer's text can forge neither a line nor a field."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pbs_policy.log import LONGEST_VALUE, REPEATS_TOLD, Log, printable, value
from tests.stores import Clock

_FIELD = re.compile(r'(?P<name>[a-z_]+)=(?P<value>"(?:[^"\\]|\\.)*"|[^ "]+)(?: |$)')

_texts = st.one_of(
    st.text(max_size=60),
    st.text('ab= "\\\n\r\t\x1b\x85\u2028\u00a0\u202e\u3000\udcff', max_size=20),
    st.text(min_size=LONGEST_VALUE - 2, max_size=LONGEST_VALUE + 2, alphabet='a" \\'),
    st.sampled_from(
        ['" action=OK x="', "x action=OK", "a\ninfo: action=OK", "\\", '\\"', '"', '\\" action=OK', "a\\"]
    ),
)


def read_fields(line: str) -> dict[str, str]:
    """What a reader of the log makes of a line of fields: names, and values with their quotes taken off."""
    found = {}
    at = 0
    while at < len(line):
        match = _FIELD.match(line, at)
        assert match, f"no field at {line[at:]!r}"
        text = match["value"]
        found[match["name"]] = re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text
        at = match.end()
    return found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("alice@example.com", "alice@example.com"),
        ("jos\u00e9", "jos\u00e9"),
        ("sp ace", "sp ace"),
        ("a\tb\nc\rd\x00e\x1b[31mf\x7fg", "a?b?c?d?e?[31mf?g"),
        ("a\u2028b\u202ec\u00a0d\u3000e\x85f", "a?b?c?d?e?f"),
        ("\udce9", "?"),
        ("x" * LONGEST_VALUE, "x" * LONGEST_VALUE),
        ("x" * (LONGEST_VALUE + 1), "x" * (LONGEST_VALUE - 3) + "..."),
    ],
)
def test_what_does_not_print_is_a_question_mark_and_what_is_long_is_clipped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("alice@example.com", "alice@example.com"),
        ("prvs=1=alice", "prvs=1=alice"),
        ("back\\slash", "back\\slash"),
        ("sp ace", '"sp ace"'),
        ('qu"ote', '"qu\\"ote"'),
        ('a" action=OK b="\\', '"a\\" action=OK b=\\"\\\\"'),
        ("", '""'),
        ("a\nb", "a?b"),
    ],
)
def test_a_value_is_quoted_where_it_could_pass_for_more(text: str, shown: str) -> None:
    assert value(text) == shown


@given(_texts, st.integers(3, 50))
def test_printable_text_is_one_line_of_at_most_the_limit(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    assert len(shown.splitlines()) <= 1
    if text.isprintable() and len(text) <= limit:
        assert shown == text


@given(_texts, _texts, _texts)
@example('" action=OK x="', "\\", '\\"')
def test_no_text_forges_a_line_or_a_field(user: str, sender: str, recipient: str) -> None:
    line = f"action=DUNNO user={value(user)} sender={value(sender)} recipient={value(recipient)}"
    assert len(line.splitlines()) == 1
    given_texts = {"action": "DUNNO", "user": user, "sender": sender, "recipient": recipient}
    assert read_fields(line) == {name: printable(text) for name, text in given_texts.items()}


def test_each_line_begins_with_its_word_and_is_written_at_once() -> None:
    stream = io.BytesIO()
    log = Log(stream)
    log.info("one")
    assert stream.getvalue() == b"info: one\n"
    log.warning("two")
    log.error("thr\u00e9e \udcff")
    assert stream.getvalue().decode() == "info: one\nwarning: two\nerror: thr\u00e9e ?\n"


def test_the_lines_of_one_turn_of_the_loop_are_one_write() -> None:
    stream = io.BytesIO()
    soon: list[Callable[[], None]] = []
    log = Log(stream)
    log.write_soon(soon.append)
    log.info("one")
    log.info("two")
    assert stream.getvalue() == b""
    assert len(soon) == 1
    soon.pop()()
    assert stream.getvalue() == b"info: one\ninfo: two\n"
    log.info("three")
    assert len(soon) == 1
    log.flush()
    assert stream.getvalue() == b"info: one\ninfo: two\ninfo: three\n"


class _Full(io.BytesIO):
    def write(self, _: object) -> int:
        raise OSError(28, "No space left on device")


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    Log(_Full()).error("lost")


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


GONE = ("error", "Redis is gone")
TOLD = "error: last message repeated {} times: Redis is gone"
OK, DUNNO_7, DUNNO_8 = (("decision", f"action={each}") for each in ("OK", "DUNNO client=7", "DUNNO client=8"))


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        ([*[GONE] * 4, ("info", "of another word"), GONE, ("error", "the disk is full")],
         ["error: Redis is gone", "info: of another word", TOLD.format(4), "error: the disk is full"]),
        ([GONE, 1.0] * (2 * int(REPEATS_TOLD)), ["error: Redis is gone", TOLD.format(9), TOLD.format(10)]),
        ([("warning", "a peer left"), REPEATS_TOLD] * 3, ["warning: a peer left"] * 3),
        ([DUNNO_7, DUNNO_7, DUNNO_7, DUNNO_8, DUNNO_8, "the end"],
         ["info: action=DUNNO client=7", "info: last message repeated 2 times: action=DUNNO client=7",
          "info: action=DUNNO client=8", "info: last message repeated 1 time: action=DUNNO client=8"]),
        ([OK, 0.0, REPEATS_TOLD, OK], ["info: action=OK"] * 2),
    ],
    ids=["told when another comes", "told again and again", "written again later", "told at the end at the latest",
         "a decision is forgotten"],
)  # fmt: skip
def test_a_line_that_repeats_is_counted(
    said: list[tuple[str, str] | float | str], lines: list[str], clock: Clock
) -> None:
    """What is said, the seconds that pass until the next look at repeats, and the lines that come of it."""
    stream = io.BytesIO()
    log = Log(stream, monotonic=clock)
    for each in said:
        if isinstance(each, tuple):
            getattr(log, each[0])(each[1])
        elif isinstance(each, float):
            clock.time += each
            log.tell_repeats()
        else:
            log.write_now()
    assert stream.getvalue().decode().splitlines() == lines


def test_as_json_each_line_is_an_object_with_time_and_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_795_453_232.0478)
    stream = io.BytesIO()
    log = Log(stream, is_json=True)
    log.warning('a "quoted" word\nand a line \u00e9\udcff')
    log.decision('"action":"OK","user":"alice"')
    log.decision('"action":"OK","user":"alice"')
    log.error("one")
    log.error("one")
    log.write_now()
    lines = stream.getvalue().decode("ascii").splitlines()
    time_ = {"time": "2026-11-23T17:00:32.047Z"}
    assert [json.loads(line) for line in lines] == [
        {**time_, "level": "warning", "message": 'a "quoted" word?and a line \u00e9?'},
        {**time_, "level": "info", "action": "OK", "user": "alice"},
        {**time_, "level": "error", "message": "one"},
        {**time_, "level": "error", "repeated": 1, "message": "one"},
        {**time_, "level": "info", "repeated": 1, "action": "OK", "user": "alice"},
    ]
