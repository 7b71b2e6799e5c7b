"""docs/faults.md: how what was seen is written there, and read back to be compared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.figures import Bar, median, table
from tests.faults.fault import Fault
from tests.faults.observing import Seen
from tests.faults.watching import GOES_ON, INBOUND, LOGIN, RELAY, STRANGER

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"

COLUMNS = (LOGIN, RELAY, STRANGER, INBOUND)
_FIRST_ROW = "| fault | a login |"
_HEAD = ["fault", "a login", "who is logged in relays", "a stranger", "mail for your own domain", "back after"]

RARE = 0.05

TIMES, FLOODS, CHANGED = "Times and memory", "Floods", "Changed replies"
"""What bars are measured together, each with a line that says when."""

_TOP = """\
# Faults

What users see of each fault, through a real Postfix, Dovecot and Redis. `make faults` runs them and writes this page;
`make test` runs each for a moment and compares. Script, main.cf and Dovecot's configuration are the shipped ones.

- **A login** goes on, whatever happens; whether it was recorded is what the table says. The script waits for Redis
  0.3 s at the most.
- **Relaying**: `250` accepted, `450` try again later (the client does), `554` refused. Strangers are those who have
  never logged in, and those who have and are denied.
- **Mail for your own domain** is accepted before the service would be asked.
- *Back after*: from the moment at which Redis, the service or the network is there again to the first `OK`; median.

Where a column says "or", the fault comes again and again or passes, and whom it meets is a matter of chance.
"Rarely" is less than one in twenty: also what comes of a machine that has more to do than it can, where the script
gives up waiting for Redis, and the service says "try again later".
"""

_OF_BARS = """\
- *Replies of Redis*: one in a hundred is changed by a proxy, and how many were is what stands last. *Corrupted*: one
  byte is another. *Cut*: the connection ends in the middle. *Late*: every one, by 0.15 to 0.35 s. *Doubled*: it comes
  twice. *Swapped*: it comes behind the next one. *Displaced*: in its place comes an earlier one of the same shape,
  which no program could tell.
- *Connections that wait for no answer* send requests without a pause: for a third of them Redis has to be asked.
- *Others* are ten connections with 200 requests a second, of clients who are logged in, never were, or are denied.
"""


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


def rows(faults: Sequence[Fault], seen: Mapping[str, Sequence[Seen]]) -> str:
    """The table of faults."""
    found = []
    for fault in faults:
        each = seen[fault.name]
        cells = [in_words(column, sum((one.counts()[column] for one in each), Counter())) for column in COLUMNS]
        times = [time for one in each for time in one.back_after]
        back = f"{median(times):.2f} s" if times else ""
        found.append([f"**{fault.name}**: {fault.what}", *cells, back])
    return table(_HEAD, found, left=len(_HEAD))


def figures(faults: Sequence[Fault], seen: Mapping[str, Sequence[Seen]]) -> str:
    """How much was seen of each."""
    found = []
    for fault in faults:
        each = seen[fault.name]
        logins = [met for one in each for met in one.of(LOGIN)]
        relays = [met for one in each for kind in (RELAY, STRANGER) for met in one.of(kind)]
        inbound = [met for one in each for met in one.of(INBOUND)]
        asked = sum(sum(one.answers.values()) for one in each)
        lost = sum(count for one in each for (_, answer), count in one.answers.items() if answer == "lost")
        slowest = max((met.ended - met.began for met in logins if met.outcome == GOES_ON), default=0.0)
        harm = sum(len(one.harm()) for one in each)
        found.append(
            [fault.name, f"{len(logins):,}", f"{slowest:.2f}", f"{len(relays):,}", f"{len(inbound):,}", f"{asked:,}",
             f"{lost:,}", str(harm)]
        )  # fmt: skip
    head = ["fault", "logins", "slowest, s", "relay attempts", "inbound", "straight to the service", "lost", "harm"]
    return table(head, found)


def with_bars(text: str, bars: Iterable[Bar], title: str, made: str) -> str:
    """The page with these bars measured anew, or for the first time, and what it says of their measurement."""
    for bar in bars:
        row = "| " + " | ".join(bar.row()) + " |"
        text = _with_row(text, f"| {bar.what} |", row, "| bar |")
    line = f"{title}: {made}"
    if re.search(rf"^{title}: ", text, flags=re.MULTILINE):
        return re.sub(rf"^{title}: .*$", lambda _: line, text, flags=re.MULTILINE)
    return f"{text}\n{line}\n"


def with_fault(text: str, fault: Fault, seen: Sequence[Seen], made: str) -> str:
    """The page with this fault observed anew, or for the first time, apart from the others."""
    observed = {fault.name: seen}
    text = _with_row(text, f"| **{fault.name}**: ", rows([fault], observed).splitlines()[-1], _FIRST_ROW)
    text = _with_row(text, f"| {fault.name} |", figures([fault], observed).splitlines()[-1], "| fault | logins |")
    line = f"Of these, {fault.name}: {made}"
    return re.sub(rf"\n\nOf these, {fault.name}: .*", "", text).replace(
        f"\n\n{TIMES}: ", f"\n\n{line}\n\n{TIMES}: "
    )


def _with_row(text: str, beginning: str, row: str, head: str) -> str:
    """With `row` in place of the one with this beginning; else as the last one of the table with this head."""
    lines = text.splitlines()
    found = [number for number, line in enumerate(lines) if line.startswith(beginning)]
    if len(found) > 1:
        raise ValueError(f"the page has {len(found)} rows that begin with: {beginning}")
    if found:
        lines[found[0]] = row
    else:
        at = next(number for number, line in enumerate(lines) if line.startswith(head))
        while lines[at].startswith("|"):
            at += 1
        lines.insert(at, row)
    return "\n".join(lines) + "\n"


def page(
    faults: Sequence[Fault], seen: Mapping[str, Sequence[Seen]], bars: Sequence[Bar], made: str
) -> str:
    """The whole page; `made`: when and on what."""
    kept = table(["bar", "wanted", "measured", "met"], [bar.row() for bar in bars], left=4)
    return "\n".join(
        [
            _TOP,
            rows(faults, seen),
            "",
            "## The bars",
            "",
            _OF_BARS,
            kept,
            "",
            "## How much was seen",
            "",
            "During each fault and right after it. *Lost*: requests whose connection ended without a reply, because",
            "the service was killed or stopped; Postfix takes that for a 450. *Harm*: logins refused, strangers who",
            "relayed or were told `OK`, mail for the own domain that was not accepted.",
            "",
            figures(faults, seen),
            "",
            f"Faults: {made}",
            *(f"\n{title}: {made}" for title in (TIMES, FLOODS, CHANGED)),
            "",
        ]
    )
