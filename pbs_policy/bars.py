"""Small bar plots as text, of block characters or of ASCII; and texts that fit into columns of a terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import combining, east_asian_width

_BLOCKS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_ASCII = " .:#"


def has_blocks(encoding: str | None) -> bool:
    """Whether an output's encoding has the block characters."""
    try:
        _BLOCKS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def plot(numbers: Sequence[float], height: int, *, blocks: bool) -> list[str]:
    """One column for each number, `height` lines: the largest number as high as it goes, none above 0 as nothing."""
    levels = _BLOCKS if blocks else _ASCII
    steps = len(levels) - 1
    most = max(numbers, default=0)
    filled = [max(1, round(number / most * height * steps)) if number > 0 else 0 for number in numbers]
    return [
        "".join(levels[min(max(each - below * steps, 0), steps)] for each in filled)
        for below in range(height - 1, -1, -1)
    ]


def width_of(text: str) -> int:
    """The columns that a text takes on a terminal: East Asian wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text)


def fit(text: str, width: int) -> str:
    """`text` in exactly `width` columns: filled up with blanks, or clipped with `..` where there is room for it."""
    over = width_of(text) - width
    if over <= 0:
        return text + " " * -over
    mark = ".." if width >= 5 else ""
    room = width - len(mark)
    clipped = ""
    for each in text:
        taken = width_of(each)
        if taken > room:
            break
        room -= taken
        clipped += each
    return clipped + " " * room + mark
