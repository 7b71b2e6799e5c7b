"""The table of installations in docs/doctor.md, written from what the tests hold: `python -m tests.doctor.page`."""

from __future__ import annotations

import re
from pathlib import Path

from tests.doctor.real_ones import FAULTS, SITES, Site

PAGE = Path(__file__).parent.parent.parent / "docs" / "doctor.md"
CHECKS = re.findall(r"^\| `([a-z_.]+)` \|", PAGE.read_text(), re.MULTILINE)
"""The names of the checks, as the page has them."""

_BEGIN, _END = "<!-- written by python -m tests.doctor.page -->\n", "<!-- end -->\n"


def table() -> str:
    """A row for each installation: as it is, and with its fault."""
    rows = ["| installation | as it is | with this fault | doctor says | fix |", "|---|---|---|---|---|"]
    rows += [_row(site) for site in SITES.values()]
    return "\n".join(rows) + "\n"


def _row(site: Site) -> str:
    fault = FAULTS[site.fault]
    warnings = dict.fromkeys(each.rpartition(" ")[2] for each in site.said)
    as_it_is = "good" + (f", and names {', '.join(f'`{each}`' for each in warnings)}" if warnings else "")
    level, _, check = fault.said.rpartition(" ")
    return (
        f"| {site.like} | {as_it_is} | {site.fault} | {level}: `{check}` | {'words' if fault.by_hand else 'lines'} |"
    )


def with_table(page: str) -> str:
    """The page with the table as it has to be."""
    before, _, rest = page.partition(_BEGIN)
    return f"{before}{_BEGIN}{table()}{_END}{rest.partition(_END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
