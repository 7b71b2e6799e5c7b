"""docs/faults.md: its rows are written here, and read back to be compared; its text stands in the page alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.figures import Bar, median
from tests.faults.fault import Fault
from tests.faults.observing import Seen
from tests.faults.watching import GOES_ON, INBOUND, LOGIN, RELAY, STRANGER

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"

COLUMNS = (LOGIN, RELAY, STRANGER, INBOUND)
_FIRST_ROW = "| fault | a login |"

RARE = 0.05


def in_words(column: str, counts: Counter[str]) -> str:
    """One cell of the table."""
    if column != LOGIN:
        return _or(counts)
    of_record = Counter({each: counts[each] for each in ("recorded", "not recorded") if counts[each]})
    return f"{_or(counts - of_record)}, {_or(of_record)}"


def _or(counts: Counter[str]) -> str:
    """What was met, and then what was met rarely."""
    rare = [each for each in counts if counts[each] < RARE * counts.total()]
    words = " or ".join(sorted((each for each in counts if each not in rare), reverse=counts["recorded"] > 0))
    return ", rarely ".join([words, *sorted(rare)])


def outcomes_in(cell: str) -> frozenset[str]:
    """What a cell says that can be met."""
    return frozenset(re.split(r", rarely |, | or ", cell))


def documented(text: str) -> dict[str, dict[str, frozenset[str]]]:
    """The table of a page: for each fault, what its columns say."""
    rows: dict[str, dict[str, frozenset[str]]] = {}
    lines = text[text.index(_FIRST_ROW) :].splitlines()[2:]
    for line in lines:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[re.sub(r"\*\*(.*?)\*\*.*", r"\1", name)] = {
            column: outcomes_in(cell) for column, cell in zip(COLUMNS, cells, strict=False)
        }
    return rows


def with_fault(text: str, fault: Fault, seen: Sequence[Seen], made: str) -> str:
    """The page with this fault as it was seen now: what users see, and how much was seen."""
    cells = [in_words(column, sum((one.counts()[column] for one in seen), Counter())) for column in COLUMNS]
    times = [time for one in seen for time in one.back_after]
    back = f"{median(times):.2f} s" if times else ""
    text = _with_row(text, f"| **{fault.name}**: ", [f"**{fault.name}**: {fault.what}", *cells, back], _FIRST_ROW)
    logins = [met for one in seen for met in one.of(LOGIN)]
    relays = sum(len(one.of(kind)) for one in seen for kind in (RELAY, STRANGER))
    inbound = sum(len(one.of(INBOUND)) for one in seen)
    asked = sum(one.answers.total() for one in seen)
    lost = sum(count for one in seen for (_, answer), count in one.answers.items() if answer == "lost")
    slowest = max((met.ended - met.began for met in logins if met.outcome == GOES_ON), default=0.0)
    harm = sum(len(one.harm()) for one in seen)
    counts = [f"{len(logins):,}", f"{slowest:.2f}", *(f"{each:,}" for each in (relays, inbound, asked, lost, harm))]
    return _with_row(text, f"| {fault.name} |", [fault.name, *counts, made.split(",")[0]], "| fault | logins |")


def with_bars(text: str, bars: Iterable[Bar], title: str, made: str) -> str:
    """The page with these bars as they were measured now, and what it says of their measurement."""
    for bar in bars:
        text = _with_row(text, f"| {bar.what} |", bar.row(), "| bar |")
    line = f"{title}: {made}"
    return re.sub(rf"^{title}: .*$", lambda _: line, text, flags=re.MULTILINE)


def _with_row(text: str, beginning: str, cells: Sequence[str], head: str) -> str:
    """With these cells in place of the row with this beginning; else as the last one of the table with this head."""
    lines = text.splitlines()
    row = f"| {' | '.join(cells)} |"
    found = [number for number, line in enumerate(lines) if line.startswith(beginning)]
    if found:
        lines[found[0]] = row
    else:
        at = next(number for number, line in enumerate(lines) if line.startswith(head))
        while lines[at].startswith("|"):
            at += 1
        lines.insert(at, row)
    return "\n".join(lines) + "\n"
