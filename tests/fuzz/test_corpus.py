"""The corpus, new inputs of Hypothesis, and faults that must be caught: without the fuzzer, in seconds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbs_policy.postfix import protocol
from pbs_policy.table import records
from tests.fuzz.run import CORPUS, TOP
from tests.fuzz.targets import TARGETS, load


def replay(target: str) -> None:
    """Run a target on its corpus."""
    module = load(target)
    inputs = sorted((CORPUS / target).iterdir())
    assert inputs
    for each in inputs:
        module.run(each.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_each_input_of_the_corpus_keeps_the_invariant(target: str) -> None:
    replay(target)


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_the_target_is_fed_it_keeps_the_invariant(target: str) -> None:
    module = load(target)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.sampled_from(module.WORDS) | st.binary(max_size=24), max_size=40).map(b"".join))
    def feed(data: bytes) -> None:
        module.run(data)

    feed()


def test_a_parser_that_forgets_where_a_piece_ended_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol.RequestParser, "receive", lambda self, data: setattr(self, "waiting", data))
    with pytest.raises(AssertionError):
        replay("protocol")


def test_a_request_that_shows_the_last_of_two_values_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def last(request: protocol.Request, name: bytes) -> bytes:
        return request.rpartition(b"\n" + name + b"=")[2].partition(b"\n")[0]

    monkeypatch.setattr(protocol, "first", last)
    with pytest.raises(AssertionError):
        replay("protocol")


def test_a_record_that_loses_its_users_last_letter_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "user_of_record", lambda _: b"alic")
    with pytest.raises(AssertionError):
        replay("table")


def test_each_target_is_in_the_page_with_what_must_hold_and_its_last_run() -> None:
    text = (TOP / "docs" / "fuzzing.md").read_text()
    for name in TARGETS:
        assert f"\n| {name} | " in text
        assert f"\n| `{name}` | " in text
