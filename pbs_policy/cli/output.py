"""Rows of named columns on standard output, written as they come: a table for people, JSON, JSON lines or TSV for
programs. A command describes its columns once (`Column`), opens an `Output`, and writes each row as a mapping.

Text from a peer is made printable in the table and escaped in TSV; JSON escapes it by itself.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple, Self

import click

from pbs_policy.bars import lines_of, widths_of
from pbs_policy.cli.sink import output_errors
from pbs_policy.duration import ago_at, left_until
from pbs_policy.log import printable
from pbs_policy.table.rows import read_time

Row = Mapping[str, Any]

SCREENFUL = 40
"""Rows of a table that are waited for to know how wide its columns are. Later ones may stick out."""

_CHUNK = 1 << 16  # characters that are written at once
_PATIENCE = 0.1  # seconds that a row waits for others at most
_encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps takes three times as long: it makes one each time
_CLIPPED = 1000  # characters of one cell: a list of senders is long, a screen is not endless


class Column(NamedTuple):
    """`name` is the field's in JSON and TSV; `heading` is the table's, "" where it is not shown there. `cell` is what
    the table says of a row; by default the field itself."""

    name: str
    heading: str = ""
    cell: Callable[[Row], str] | None = None


class Output:
    """One format, or with `write_text` none. `with` writes what belongs to the end, unless an exception ends it: half
    a JSON array is to look like one. Raises OSError, saying that it is the output that cannot be written."""

    def __init__(self, columns: Sequence[Column] = (), stream: BinaryIO | None = None) -> None:
        """`stream` takes the place of standard output."""
        self._stream = stream
        self._names = [column.name for column in columns]
        self._shown = [column for column in columns if column.heading]
        self._pending: list[str] = []
        self._size = 0
        self._written_at = 0.0
        self.count = 0
        self.progress = Progress()

    def write(self, row: Row) -> None:
        """Write one row, or keep it until there are enough."""
        self.count += 1
        self.write_text(self._line(row))

    def _line(self, row: Row) -> str:
        raise NotImplementedError

    def _end(self) -> str:
        return ""

    def write_text(self, text: str) -> None:
        """Write text as it is, or keep it until there is enough."""
        self._pending.append(text)
        self._size += len(text)
        if self._size >= _CHUNK or time.monotonic() - self._written_at > _PATIENCE:
            self._flush()

    def _flush(self) -> None:
        self.progress.clear()
        text, self._pending, self._size = "".join(self._pending), [], 0
        if text:
            self._write(text)
        self._written_at = time.monotonic()

    def _write(self, text: str) -> None:
        if self._stream is None:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        with output_errors():
            self._stream.write(text.encode("utf-8", "backslashreplace"))
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._pending.append(self._end())
        if kind is None or not issubclass(kind, OSError):
            self._flush()


class _JsonLines(Output):
    def _as_json(self, row: Row) -> str:
        return whole(_encode({name: row[name] for name in self._names}))

    def _line(self, row: Row) -> str:
        return self._as_json(row) + "\n"


class _JsonArray(_JsonLines):
    def _line(self, row: Row) -> str:
        return ("[\n  " if self.count == 1 else ",\n  ") + self._as_json(row)

    def _end(self) -> str:
        return "\n]\n" if self.count else "[]\n"


class _Tsv(Output):
    """A line of names, then the rows. Lists are separated by blanks, nothing at all stands for None."""

    def __enter__(self) -> Self:
        self._pending.append("\t".join(self._names) + "\n")
        return self

    def _line(self, row: Row) -> str:
        return "\t".join([_as_tsv(row[name]) for name in self._names]) + "\n"


class _Table(Output):
    """The widths are those of the first screenful, and fit a terminal. Where there is no row there is no heading,
    and none above a last column that is empty."""

    def __init__(self, columns: Sequence[Column] = (), stream: BinaryIO | None = None) -> None:
        super().__init__(columns, stream)
        self._first: list[Sequence[str]] = [[column.heading for column in self._shown]]
        self._room = room_of(stream)
        self._widths: list[int] = []

    def write(self, row: Row) -> None:
        self.count += 1
        cells = [self._cell(column, row) for column in self._shown]
        if self._widths:
            self.write_text(self._join(cells))
            return
        self._first.append(cells)
        if len(self._first) > SCREENFUL:
            self._begin()

    def _end(self) -> str:
        if self.count and not self._widths:
            self._begin()
        return ""

    def _begin(self) -> None:
        if not any(cells[-1] for cells in self._first[1:]):
            self._first[0] = [*self._first[0][:-1], ""]
        self._widths = widths_of(self._first, self._room)
        self.write_text("".join([self._join(cells) for cells in self._first]))

    def _cell(self, column: Column, row: Row) -> str:
        text = column.cell(row) if column.cell else _as_cell(row[column.name])
        return printable(text, _CLIPPED) or ("" if column is self._shown[-1] else "-")

    def _join(self, cells: Sequence[str]) -> str:
        return "\n".join(lines_of(cells, self._widths, wraps=bool(self._room))) + "\n"


def room_of(stream: BinaryIO | None = None) -> int:
    """How many columns a table may take: those of the terminal, if it goes to one."""
    return shutil.get_terminal_size().columns if stream is None and sys.stdout.isatty() else 0


def show_table(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> None:
    """A short table that is there as a whole; the columns of `numbers` stand to the right."""
    room = room_of()
    widths = widths_of(rows, room)
    for row in rows:
        for line in lines_of(row, widths, wraps=bool(room), numbers=numbers):
            click.echo(line)


def show_json(shown: Any) -> None:
    """What is there as a whole, as JSON: what does not print, the sink writes as JSON has it."""
    click.echo(whole(json.dumps(shown, indent=2, ensure_ascii=False)))


def counted(number: int, one: str, many: str = "") -> str:
    """`1 user`, `2 users`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


FORMATS: dict[str, type[Output]] = {"table": _Table, "json": _JsonArray, "jsonl": _JsonLines, "tsv": _Tsv}


def _json_means(context: click.Context, _: click.Parameter, is_set: bool) -> None:
    if is_set:
        context.params["format_name"] = "json"


def format_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options -o and --json, which a command gets as `format_name`: one of FORMATS."""
    command = click.option(
        "--json", is_flag=True, expose_value=False, callback=_json_means, help="Short for -o json."
    )(command)  # fmt: skip
    return click.option(
        "-o", "--output", "format_name", type=click.Choice(list(FORMATS)), default="table", show_default=True,
        callback=lambda context, _, text: context.params.get("format_name", text),
        help="A table for people; a JSON array, JSON lines or TSV for programs.",
    )(command)  # fmt: skip


class Progress:
    """How many `units` were read, on standard error, where that is a terminal and it takes more than a second; not
    between rows on the same terminal."""

    def __init__(self, units: str = "keys") -> None:
        self._units = units
        self._is_seen = sys.stderr.isatty()
        self._count = 0
        self._next_at = time.monotonic() + 1
        self._is_shown = False

    def add(self, count: int) -> None:
        """`count` more were read."""
        self._count += count
        if self._is_seen and time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + 0.5
            self._is_shown = True
            _control(f"\r{self._count:,} {self._units} read")

    def clear(self) -> None:
        """Make room for what is written now."""
        if self._is_shown:
            _control("\r\x1b[K")
            self._is_shown = False
        self._is_seen = self._is_seen and not sys.stdout.isatty()


def _control(text: str) -> None:
    """Write to the terminal past the sink: text that is ours. As there, what it does not take is lost."""
    with suppress(OSError):
        os.write(sys.stderr.fileno(), text.encode("ascii"))


def ago(since: str) -> str:
    """How long ago that time of a row was, and when, for people."""
    return ago_at(read_time(since), time.time())


def left(expires_at: str | None) -> str:
    """How long it is until that time of a row, and when that is; nothing where it has none."""
    return left_until(read_time(expires_at), time.time()) if expires_at else ""


def whole(text: str) -> str:
    """Text for programs: bytes that are not UTF-8 become U+FFFD, since half a surrogate pair is no JSON that others
    read."""
    return text if text.isascii() else _no_text.sub("\ufffd", text)


def _as_cell(field: Any) -> str:
    if field is None:
        return ""
    return " ".join(field) if isinstance(field, (list, tuple)) else str(field)


_no_text = re.compile("[\ud800-\udfff]")

# What nearly every field is: then it needs no second look.
_is_plain = re.compile(r"[ -\[\]-~]*").fullmatch
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def _as_tsv(field: Any) -> str:
    text = whole(_as_cell(field))
    if _is_plain(text):
        return text
    return "".join([_ESCAPES.get(letter) or (letter if letter.isprintable() else _escape(letter)) for letter in text])


def _escape(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if letter <= "\uffff" else f"\\U{ord(letter):08x}"
