"""What came of a run, from the fuzzer's own log, as rows of the table in docs/fuzzing.md: `write` puts them there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.targets import TARGETS

PAGE = Path(__file__).parents[2] / "docs" / "fuzzing.md"
_DONE = re.compile(r"^Done (\d+) runs in (\d+) second", re.MULTILINE)
_SEEN = re.compile(r"^#(\d+)\t.* cov: (\d+) ", re.MULTILINE)


class Outcome(NamedTuple):
    """`executions` in `seconds`, and how many edges of the program's code were reached; whether a fault ended it."""

    executions: int
    seconds: int
    edges: int
    is_fault: bool

    def __str__(self) -> str:
        verdict = "a fault" if self.is_fault else "nothing found"
        return f"{self.executions} executions, {self.seconds} s, {self.edges} edges: {verdict}"


def read(log: str) -> Outcome:
    """The outcome that a log of libFuzzer tells. A run that was cut off is a fault."""
    done, seen = _DONE.search(log), list(_SEEN.finditer(log))
    executions = int(done[1]) if done else max((int(each[1]) for each in seen), default=0)
    edges = max((int(each[2]) for each in seen), default=0)
    return Outcome(executions, int(done[2]) if done else 0, edges, is_fault=done is None)


def row(name: str, outcome: Outcome, inputs: int) -> str:
    """A target's row."""
    verdict = "a fault" if outcome.is_fault else "0"
    return f"| `{name}` | {outcome.executions:,} | {outcome.seconds} s | {outcome.edges} | {inputs} | {verdict} |"


def write(rows: dict[str, str]) -> None:
    """Put rows in the place of those that the page has; of others it keeps what it says."""
    text = PAGE.read_text()
    for name in TARGETS:
        if name in rows:
            text = re.sub(rf"^\| `{name}` \| [\d-].*$", rows[name], text, flags=re.MULTILINE)
    PAGE.write_text(text)
