"""Times as people write them, read and shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbs_policy.duration import LONGEST, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1", 1), ("90", 90), ("90s", 90), ("30m", 1800), ("8h", 28_800), ("90d", 7_776_000), ("1w", 604_800),
        ("030m", 1800),
        ("1830d", LONGEST), ("158112000", LONGEST),
    ],
)  # fmt: skip
def test_a_time_as_people_write_it(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "", "0", "0s", "00m", "-1", "+1", "1.5h", "1h 30m", "1h30m", "30 m", " 30m", "30m ", "30M", "m", "30min",
        "1y", "1831d",
        "158112001", "9999999999", "999999999w", "\u0663\u0660m", "30\u217f", "soon", "30m\n",
    ],
)  # fmt: skip
def test_any_other_text_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected a time from 1s to 1830d such as 90s, 30m, 8h, 90d$"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.9, "0s"), (1, "1s"), (59.9, "59s"), (60, "1m"), (61, "1m 1s"), (3600, "1h"), (3601, "1h 1s"),
        (5400, "1h 30m"), (5430, "1h 30m"), (86_400, "1d"), (90_000, "1d 1h"), (12 * 86_400 + 3 * 3600 + 59,
        "12d 3h"),
        (-5, "0s"),
    ],
)  # fmt: skip
def test_a_time_is_shown_in_the_two_largest_units_that_say_it(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(1, LONGEST))
def test_what_is_shown_is_never_more_than_there_is(seconds: int) -> None:
    shown = sum(parse_duration(part) for part in format_duration(seconds).split())
    assert seconds * 0.95 < shown <= seconds


@given(st.one_of(st.text(max_size=12), st.from_regex(r"[0-9]{1,11}[smhdwy]?", fullmatch=True)))
def test_any_text_is_a_time_in_bounds_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert 0 < seconds <= LONGEST
