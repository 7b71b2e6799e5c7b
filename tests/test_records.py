"""The values of logins and permits: what was written is read back in full; what is not understood in full is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pbs_policy.cap import Cap
from pbs_policy.table.records import (
    WAYS,
    Permit,
    Record,
    parse_permit,
    parse_record,
    permit_from_fields,
    serialise_permit,
    serialise_record,
    user_of_record,
)

NOW = 1_700_000_000

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_lists = st.lists(_texts.filter(bool), max_size=3).map(tuple)
_caps = st.none() | st.builds(Cap, st.integers(1, 9_999_999), st.integers(1, 1830 * 86_400))
_permits = st.builds(Permit, st.integers(0, 10**12 - 1), _texts, _lists, _lists, _caps, _texts)


_BOB = "bob@example.com x"


@pytest.mark.parametrize(
    ("value", "record", "recorded_by"),
    [
        (f"{NOW}", Record(NOW), "last_login"),
        (f"{NOW} imap", Record(NOW, "imap"), "script"),
        (f"{NOW} pop3 {_BOB}", Record(NOW, "pop3", _BOB), "script"),
        (f"{NOW} imap-report {_BOB}", Record(NOW, "imap", _BOB, "report"), "report"),
        (f"{NOW} pop3-session {_BOB}", Record(NOW, "pop3", _BOB, "session"), "session"),
        (f"{NOW} my-imap-report {_BOB}", Record(NOW, "my-imap", _BOB, "report"), "report"),
        (f"{NOW} -report {_BOB}", Record(NOW, "-report", _BOB), "script"),
        (f"{NOW} imap-reports {_BOB}", Record(NOW, "imap-reports", _BOB), "script"),
        (f"{NOW} report imap-report", Record(NOW, "report", "imap-report"), "script"),
        ("0", Record(0), "last_login"),
        (f"{NOW} unknown {_BOB}", Record(NOW, user=_BOB), "script"),
        (f"{NOW} imap  alice", Record(NOW, "imap", " alice"), "script"),
        (f"{NOW} imap a\nb\tc", Record(NOW, "imap", "a\nb\tc"), "script"),
        (f"{NOW} imap \udcff\udcfe", Record(NOW, "imap", "\udcff\udcfe"), "script"),
    ],
)
def test_a_login_says_what_recorded_it_and_its_service_is_the_same(
    value: str, record: Record, recorded_by: str
) -> None:
    data = value.encode("utf-8", "surrogateescape")
    read = parse_record(data)
    assert read == (record if record.service or not record.user else record._replace(service="unknown"))
    assert read.recorded_by == recorded_by
    assert serialise_record(record) == data
    assert user_of_record(data) == record.user.encode("utf-8", "surrogateescape")


_words = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)


@given(_words, st.sampled_from(["", *WAYS]), st.binary(min_size=1, max_size=9))
def test_any_login_is_read_as_it_was_written(word: str, way: str, user: bytes) -> None:
    value = b"%d %s %s" % (NOW, (f"{word}-{way}" if way else word).encode(), user)
    record = parse_record(value)
    assert record is not None
    assert serialise_record(record) == value
    assert user_of_record(value) == user
    assert record.way == way or not way


@given(_permits)
def test_a_permit_is_read_as_it_was_written(permit: Permit) -> None:
    assert parse_permit(serialise_permit(permit)) == permit


def test_a_user_that_is_not_utf_8_is_read_as_it_was_written() -> None:
    for permit in (Permit(NOW, "\udcff"), Permit(NOW, "\udcff", note="x")):
        assert parse_permit(serialise_permit(permit)) == permit


def test_a_plain_record_is_a_permit_without_conditions() -> None:
    assert parse_permit(b"1700000000") == Permit(NOW)
    assert parse_permit(b"1700000000 manual scanner@example.com") == Permit(NOW, "scanner@example.com")
    assert serialise_permit(Permit(NOW, "scanner@example.com")) == b"1700000000 manual scanner@example.com"


def test_listings_show_a_permit_as_a_record_of_the_service_manual() -> None:
    assert Permit(NOW, "scanner@example.com", note="x").record == Record(NOW, "manual", "scanner@example.com")


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"only_on": "Sundays"}, "unknown field 'only_on'"),
        ({"given_at": None}, "given_at: expected Unix seconds"),
        ({"given_at": True}, "given_at: expected Unix seconds"),
        ({"given_at": 10**12}, "given_at: expected Unix seconds"),
        ({"given_at": "1700000000"}, "given_at: expected Unix seconds"),
        ({"user": ["a"]}, "user: expected text"),
        ({"note": 7}, "note: expected text"),
        ({"user": "\ud800"}, "user: expected text"),
        ({"senders": ["\ud800@example.com"]}, "senders: expected a list of texts"),
        ({"senders": "a@example.com"}, "senders: expected a list of texts"),
        ({"senders": []}, "senders: expected at least one"),
        ({"senders": [""]}, "senders: expected a list of texts"),
        ({"recipient_domains": [7]}, "recipient_domains: expected a list of texts"),
        ({"recipient_domains": []}, "recipient_domains: expected at least one"),
        ({"cap": ""}, "expected recipients per time such as 200/1h"),
        ({"cap": "0/1h"}, "expected recipients per time such as 200/1h"),
        ({"cap": "20"}, "expected recipients per time such as 200/1h"),
        ({"cap": 20}, "cap: expected text"),
    ],
)
def test_a_permit_with_a_field_that_is_not_understood_is_none_at_all(changed: dict[str, Any], fault: str) -> None:
    """It may be a condition: to honour the rest would permit more than was meant."""
    fields = {"given_at": NOW, "user": "scanner@example.com", **changed}
    with pytest.raises(ValueError, match=f"^{fault}$"):
        permit_from_fields(fields)
    assert parse_permit(json.dumps(fields).encode()) is None


@pytest.mark.parametrize(
    "value",
    [
        b"", b"{}", b"[]", b"null", b"{", b"\xff", b'"x"', b"[" * 100_000,
        b" ", b"yes", b"-1", b"+1", b"1.5", b" 1763881234", b"1763881234 ", b"1763881234\n", b"1234567890123",
        b"1763881234  alice", b"1763881234\timap", b"1763881234 im\xc3\xa9p alice", b"1763881234 a.b alice",
        b"1763881234 " + b"s" * 33, "\u0661".encode(),
    ],
)  # fmt: skip
def test_what_somebody_else_wrote_is_no_login_and_no_permit(value: bytes) -> None:
    assert parse_record(value) is None
    assert user_of_record(value) is None
    assert parse_permit(value) is None


@given(st.binary(max_size=60))
@example(b"1 pop3 ")
def test_any_value_is_a_permit_or_none_and_a_record_is_written_back_to_what_it_says(value: bytes) -> None:
    parse_permit(value)
    record = parse_record(value)
    assert (user_of_record(value) is None) == (record is None)
    assert record is None or parse_record(serialise_record(record)) == record


@pytest.mark.parametrize(
    ("text", "cap"),
    [("200/1h", Cap(200, 3600)), ("1/90", Cap(1, 90)), ("9/90m", Cap(9, 5400)), ("9999999/1s", Cap(9_999_999, 1))],
)
def test_a_cap_is_written_as_recipients_per_time(text: str, cap: Cap) -> None:
    assert Cap.parse(text) == Cap.parse(str(cap)) == cap


@pytest.mark.parametrize(
    "text",
    ["", "200", "/1h", "200/", "0/1h", "-1/1h", "1.5/1h", "200/1y", "200 /1h", "200/0", "1/1h/1h", "\u0663/1h"],
)
def test_what_is_no_cap_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected .* such as"):
        Cap.parse(text)
