"""The table of runs in docs/fuzzing.md: a row for each target, written from the fuzzer's own log."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import report
from tests.fuzz.targets import TARGETS

LOG = """\
#2\tINITED cov: 7 ft: 7 corp: 1/1b exec/s: 0 rss: 40Mb
#1048576\tpulse  cov: 55 ft: 254 corp: 67/9518b lim: 1110 exec/s: 20773 rss: 43Mb
Done 2473664 runs in 1201 second(s)
stat::number_of_executed_units: 2473664
"""


def test_a_run_that_came_to_its_end_has_found_nothing() -> None:
    assert report.read(LOG) == (2_473_664, 1201, 55, False)
    assert report.row("protocol", report.read(LOG), 12) == "| `protocol` | 2,473,664 | 1201 s | 55 | 12 | 0 |"


def test_a_run_that_was_cut_off_is_a_fault() -> None:
    outcome = report.read(LOG[: LOG.index("Done")] + "==1== ERROR: libFuzzer: fuzz target exited\n")
    assert outcome.executions == 1_048_576
    assert outcome.is_fault
    assert report.row("protocol", outcome, 12).endswith("| a fault |")
    assert report.read("").is_fault


def test_a_report_replaces_the_rows_of_its_targets_and_no_other_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = report.PAGE.read_text()
    page = tmp_path / "fuzzing.md"
    page.write_text(before)
    monkeypatch.setattr(report, "PAGE", page)
    report.write({"table": report.row("table", report.read(LOG), 3)})
    changed = [line for line in page.read_text().splitlines() if line not in before.splitlines()]
    assert changed == ["| `table` | 2,473,664 | 1201 s | 55 | 3 | 0 |"]
    assert len(page.read_text().splitlines()) == len(before.splitlines())


def test_each_target_is_in_the_page_with_what_must_hold_and_its_last_run() -> None:
    text = report.PAGE.read_text()
    for name in TARGETS:
        assert f"\n| {name} | " in text
        assert f"\n| `{name}` | " in text
