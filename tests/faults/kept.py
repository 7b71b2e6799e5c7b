"""What has been seen so far, in a file: a run takes half an hour, and one that was interrupted goes on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tests.faults.observing import Seen
from tests.faults.watching import Met

FILE = Path(__file__).parents[2] / "build" / "faults.jsonl"


def load(file: Path = FILE) -> list[Seen]:
    """In the order in which it was kept; nothing where there is no file."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [_parse(json.loads(line)) for line in lines]


def keep(seen: Seen, file: Path = FILE) -> None:
    """Add what was seen of one fault."""
    file.parent.mkdir(exist_ok=True)
    fields = {**vars(seen), "answers": [[group, answer, count] for (group, answer), count in seen.answers.items()]}
    with file.open("a") as kept:
        kept.write(json.dumps(fields) + "\n")


def forget(file: Path = FILE) -> None:
    """The next run begins anew."""
    file.unlink(missing_ok=True)


def _parse(fields: dict[str, list[list[object]]]) -> Seen:
    met, later = ([Met(*each) for each in fields[name]] for name in ("met", "met_later"))  # type: ignore[arg-type]
    # type: ignore: JSON has no other types; what was written here is what is read.
    answers = Counter({(group, answer): count for group, answer, count in fields["answers"]})
    return Seen(**{**fields, "met": met, "met_later": later, "answers": answers})  # type: ignore[arg-type]
