"""Small bar plots as text, of block characters or of ASCII; and texts that fit into columns of a terminal. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest
from unicodedata import category, east_asian_width

_BLOCKS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_ASCII = " .:#"
_COMBINING = ("Mn", "Me")
_BETWEEN = "  "


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
    return sum(0 if category(each) in _COMBINING else 2 if east_asian_width(each) in "WF" else 1 for each in text)


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


def widths_of(rows: Sequence[Sequence[str]], room: int = 0) -> list[int]:
    """How wide each column of `rows` is. Where they take more than `room` columns of a terminal, if that is given,
    the widest are made narrower."""
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    over = sum(widths) + len(_BETWEEN) * (len(widths) - 1) - room if room else 0
    while over > 0 and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
        over -= 1
    return widths


def lines_of(
    cells: Sequence[str], widths: Sequence[int], *, wraps: bool, numbers: Collection[int] = ()
) -> Iterator[str]:
    """A row as a line of columns; those of `numbers` stand to the right. With `wraps`, what is wider than its column
    goes on below; else it sticks out."""
    if not (wraps or numbers) and all(map(str.isascii, cells)):
        yield _BETWEEN.join(map(str.ljust, cells, widths)).rstrip()  # nearly every row of a long list
        return
    pieces = [wrapped(cell, width) if wraps else [cell] for cell, width in zip(cells, widths, strict=True)]
    for line in zip_longest(*pieces, fillvalue=""):
        padded = []
        for at, (text, width) in enumerate(zip(line, widths, strict=True)):
            blanks = " " * (width - width_of(text))
            padded.append(blanks + text if at in numbers else text + blanks)
        yield _BETWEEN.join(padded).rstrip()


def wrapped(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns, between words where that is possible."""
    if width_of(text) <= width:
        return [text]
    lines = [""]
    for letter in text:
        if width_of(lines[-1]) + width_of(letter) <= width or not lines[-1]:
            lines[-1] += letter
        elif letter == " ":
            lines.append("")
        else:
            head, blank, rest = lines[-1].rpartition(" ")
            lines[-1:] = [head, rest + letter] if blank and head else [lines[-1], letter]
    return lines
