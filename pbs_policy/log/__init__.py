"""Lines of the log, with Postfix' words: info (a decision, a change of state), warning (the peer's fault) and error
(ours). Text from a peer is clipped and made printable here before it can reach a line. `writers`: where lines go.

A line that is the same as the last one of its word is counted and not written: `last message repeated 7 times: ...`
says so, at the latest after `REPEATS_TOLD`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii
from typing import BinaryIO

from pbs_policy.log.writers import Stream, Word, Writer, standard_error

LONGEST_VALUE = 320
"""Characters of a peer's text in a line: an address of RFC 5321 (64 + @ + 255) fits."""

REPEATS_TOLD = 10.0
"""Seconds after which repeats are told, and a line that does not come any more is forgotten."""

LAST_WAIT = 0.5
"""Seconds at the end of the service for the last lines to be taken."""

# What nearly every value is: then it needs no second look. The quote is left out, and the blank.
_PLAIN = re.compile(rf"[!#-~]{{1,{LONGEST_VALUE}}}").fullmatch


def printable(text: str, limit: int = LONGEST_VALUE) -> str:
    """`text` for one line of a log or terminal: what does not print becomes `?`, the rest is clipped with `...`."""
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def escaped(text: str, keeps: Callable[[str], bool] = str.isprintable) -> str:
    """`text` of any length, with its newlines and tabs: what does not print becomes `\\uXXXX`."""
    if keeps(text):
        return text
    return "".join([letter if keeps(letter) or letter in "\n\t" else _escape(letter) for letter in text])


def _escape(letter: str) -> str:
    """As JSON has it: two halves of a surrogate pair beyond U+FFFF."""
    code = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{code[at : at + 4]}" for at in range(0, len(code), 4))


def value(text: str) -> str:
    """`text` as the value of `name=value`: in quotes where a blank or quote could pass for the next field."""
    if _PLAIN(text):
        return text
    text = printable(text)
    if " " in text or '"' in text or not text:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def json_value(text: str) -> str:
    """`text`, made printable, as a string of JSON; nearly every text is printable as it is."""
    if len(text) > LONGEST_VALUE or not text.isprintable():
        text = printable(text)
    return encode_basestring_ascii(text)


class _Last:
    """The last line of a word, and how often it has come since it was written."""

    __slots__ = ("line", "repeats", "since")

    def __init__(self) -> None:
        self.line = ""
        self.repeats = 0
        self.since = 0.0


class Log:
    """Lines to `stream` (standard error by default), or to another `writer`, one event each. With `write_soon` those
    of one turn of the event loop are written together: a line then costs no system call of its own."""

    def __init__(
        self,
        stream: BinaryIO | None = None,
        *,
        writer: Writer | None = None,
        is_json: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_json = is_json
        self._writer = writer or (Stream(stream.write) if stream is not None else standard_error({}))
        self._monotonic = monotonic
        self._soon: Callable[[Callable[[], None]], object] | None = None
        self._lines: list[str] = []
        begins = self._writer.begins
        self._texts = {word: f"{begins[word]}{word}: " for word in begins}
        self._last: dict[Word, _Last] = {word: _Last() for word in begins}
        self._last_decision = _Last()
        self._lost_told = 0
        self._second = 0
        self._time = ""

    @property
    def lost(self) -> int:
        """How many lines could not be written."""
        return self._writer.lost

    def write_soon(self, soon: Callable[[Callable[[], None]], object]) -> None:
        """From now on write once per turn of the loop that `soon` (its call_soon) belongs to."""
        self._soon = soon

    def write_now(self) -> None:
        """Write what is waiting, and from now on each line at once: that loop comes to its end. No smtpd waits any
        more, so a slow reader is waited for, a little."""
        self._soon = None
        self.tell_repeats(0.0)
        self.flush()
        until = self._monotonic() + LAST_WAIT
        while self._writer.waiting and self._monotonic() < until:
            time.sleep(0.01)
            self.flush()

    def info(self, line: str) -> None:
        """A change of state."""
        self._event("info", line)

    def warning(self, line: str) -> None:
        """The peer's fault, or a setting that deserves a second thought."""
        self._event("warning", line)

    def error(self, line: str) -> None:
        """Our fault, or Redis'."""
        self._event("error", line)

    def decision(self, line: str) -> None:
        """A decision, as `decision_line` writes it: with `is_json` the members of an object."""
        last = self._last_decision
        if line == last.line:
            last.repeats += 1
            return
        if last.repeats:
            self._tell("info", last, is_members=self.is_json)
        last.line = line
        if self.is_json:
            line = self._object("info", line)
        self._add((self._writer.begins["info"] if self.is_json else self._texts["info"]) + line)
        last.since = 0.0  # `tell_repeats` begins to count: a decision costs no look at the clock

    def tell_repeats(self, after: float = REPEATS_TOLD) -> None:
        """Say of lines that were not written for `after` seconds how often they came. To be called every second."""
        now = self._monotonic()
        decision = self._last_decision
        for word, last in [*self._last.items(), ("info", decision)]:
            if not last.since:
                last.since = now
            if last.line and now - last.since >= after:
                if last.repeats:
                    self._tell(word, last, is_members=self.is_json and last is decision)
                    last.since = now
                else:
                    last.line = ""

    def flush(self) -> None:
        """Write what is waiting."""
        lines, self._lines = self._lines, []
        if lines and self.lost > self._lost_told and not self._writer.is_full:
            lost, self._lost_told = self.lost - self._lost_told, self.lost
            told = self._formed("warning", f"{lost} lines of the log were lost before this one")
            lines.insert(0, told)
        self._writer.write(lines)

    def _event(self, word: Word, line: str) -> None:
        last = self._last[word]
        now = self._monotonic()
        if line == last.line and now - last.since < REPEATS_TOLD:
            last.repeats += 1
            return
        if last.repeats:
            self._tell(word, last)
        last.line, last.since = line, now
        self._add(self._formed(word, line))

    def _formed(self, word: Word, line: str, members: str = "") -> str:
        if self.is_json:
            return self._writer.begins[word] + self._object(word, members or f'"message":{_json_line(line)}')
        return self._texts[word] + printable(line, len(line))

    def _tell(self, word: Word, last: _Last, *, is_members: bool = False) -> None:
        times, last.repeats = last.repeats, 0
        members = f'"repeated":{times},' + (last.line if is_members else f'"message":{_json_line(last.line)}')
        told = f"last message repeated {times} time{'s' * (times > 1)}: {last.line}"
        self._add(self._formed(word, told, members))

    def _object(self, word: Word, members: str) -> str:
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            self._time = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        return f'{{"time":"{self._time}.{int(now * 1000) % 1000:03d}Z","level":"{word}",{members}}}'

    def _add(self, line: str) -> None:
        self._lines.append(line)
        if self._soon is None:
            self.flush()
        elif len(self._lines) == 1:
            self._soon(self.flush)


def _json_line(line: str) -> str:
    """A whole line as a string of JSON: what a peer said in it was clipped already."""
    return encode_basestring_ascii(printable(line, 4_000))
