"""A permit's value: what was given is read back in full, and what is not understood in full is no permit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbs_policy.cap import Cap
from pbs_policy.table.records import Permit, Record, parse_permit, permit_from_fields, serialise_permit

NOW = 1_700_000_000

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_lists = st.lists(_texts.filter(bool), max_size=3).map(tuple)
_caps = st.none() | st.builds(Cap, st.integers(1, 9_999_999), st.integers(1, 1830 * 86_400))
_permits = st.builds(Permit, st.integers(0, 10**12 - 1), _texts, _lists, _lists, _caps, _texts)


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


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b"null", b"{", b"\xff", b'"x"', b"[" * 100_000])
def test_what_is_no_permit_is_none(value: bytes) -> None:
    assert parse_permit(value) is None


@given(st.binary(max_size=60))
def test_any_value_is_a_permit_or_none(value: bytes) -> None:
    parse_permit(value)


@pytest.mark.parametrize(("text", "cap"), [("200/1h", Cap(200, 3600)), ("1/90", Cap(1, 90)), ("9/90m", Cap(9, 5400))])
def test_a_cap_is_written_as_recipients_per_time(text: str, cap: Cap) -> None:
    assert Cap.parse(text) == Cap.parse(str(cap)) == cap


@pytest.mark.parametrize("text", ["", "200", "/1h", "200/", "0/1h", "-1/1h", "1.5/1h", "200/1y", "200 /1h"])
def test_what_is_no_cap_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Cap.parse(text)
