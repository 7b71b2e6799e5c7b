"""What the cells hand in and how it is written: medians, ratios, Markdown tables, bars."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class CannotRun(Exception):
    """A cell lacks something on this machine; the message is the sentence that stands in its place."""


@dataclass(frozen=True)
class Bar:
    """What was asked of a figure, and whether it was met; `met` None where something was only to be stated."""

    what: str
    wanted: str
    measured: str
    met: bool | None

    def row(self) -> list[str]:
        """As a row of the table of bars."""
        return [self.what, self.wanted, self.measured, {True: "yes", False: "**no**", None: "stated"}[self.met]]


@dataclass
class Section:
    """The results of one cell: blocks of Markdown in their order, and its bars."""

    title: str
    blocks: list[str] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)

    def text(self) -> str:
        """The section without its heading."""
        bars = [table(["bar", "wanted", "measured", "met"], [bar.row() for bar in self.bars], left=4)]
        return "\n\n".join([*self.blocks, *(bars if self.bars else [])])


class Ratio(NamedTuple):
    """How two series relate: the ratio of their medians, and the median of the ratios within each round.

    The second is the steadier one where the whole machine has slow rounds, the first where single runs have.
    """

    of_medians: float
    of_rounds: float

    def __str__(self) -> str:
        return f"{self.of_medians:.2f} ({self.of_rounds:.2f})"


def ratio(these: Sequence[float], those: Sequence[float]) -> Ratio:
    """Relate two series whose members at the same place are of the same round."""
    rounds = [this / that for this, that in zip(these, those, strict=True) if that]
    divisor = median(those)
    return Ratio(median(these) / divisor if divisor else 0.0, median(rounds))


def at_least(what: str, wanted: float, found: Ratio) -> Bar:
    """A bar on the ratio of medians."""
    return Bar(what, f"at least {wanted:.2f}", str(found), found.of_medians >= wanted)


def at_most(what: str, wanted: float, found: Ratio) -> Bar:
    """A bar on the ratio of medians."""
    return Bar(what, f"at most {wanted:.2f}", str(found), found.of_medians <= wanted)


def median(values: Iterable[float]) -> float:
    """The median, 0 of nothing."""
    known = list(values)
    return statistics.median(known) if known else 0.0


def spread(what: str, seconds: Sequence[float]) -> str:
    """A sentence on noise: between which times the middle half lies."""
    low, _, high = statistics.quantiles(seconds, n=4)
    return f"Noise: the middle half of {what} took {milliseconds(low)} to {milliseconds(high)} ms."


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table whose first `left` columns are text and the others numbers."""
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])


def thousands(rate: float) -> str:
    """A rate in thousands a second, three figures."""
    return f"{rate / 1000:.1f}"


def percent(share: float) -> str:
    """A share of one core."""
    return f"{share:.0%}"


def milliseconds(seconds: float) -> str:
    """A time in milliseconds."""
    return f"{seconds * 1000:.2f}"


def megabytes(size: float) -> str:
    """A size in units of 10^6 bytes."""
    return f"{size / 1e6:.1f}"


def plural(count: int, noun: str) -> str:
    """`1 request`, `2 requests`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
