"""A terminal taken over for the time of a `with`: keys come one by one, the screen is another one, the cursor is
gone. It is given back as it was on every way out: at the end, by an exception, by SIGTERM and its like, and while we
are stopped (SIGTSTP).

Signals only write to a pipe, which `wait` looks at: what they ask for is done there, and never in the middle of a
line.
"""

from __future__ import annotations

import codecs
import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, Self

from pbs_policy.log import escaped
from pbs_policy.watch.screen import BAD, DIM, GOOD, HEAD, NEWS, ScreenLine

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"
_COLOURS = {HEAD: "\x1b[1m", DIM: "\x1b[2m", GOOD: "\x1b[32m", BAD: "\x1b[31m", NEWS: "\x1b[36m"}
_WITHOUT_COLOUR = {HEAD: "\x1b[1m", DIM: "\x1b[2m"}

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_SIGNALS = (*_ENDING, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)

_KEYS = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace", "\x1b": "escape"}
# What a terminal sends for a key that has no character, such as an arrow: none of them means anything here.
_SEQUENCE = re.compile(r"\x1b[\[O][0-9;?]*[ -/]*[@-~]|\x1b.", re.DOTALL)


class Ended(Exception):
    """A signal asks us to end, or the terminal is gone (`signal_number` 0)."""

    def __init__(self, signal_number: int = 0) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Terminal:
    """The terminal behind standard input and standard output. Both must be one."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._in = sys.stdin.fileno()
        self._out = sys.stdout.fileno()
        self._encoding = sys.stdout.encoding
        self._colours = _WITHOUT_COLOUR if environment.get("NO_COLOR") else _COLOURS
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._shown: list[str] = []
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._attributes = termios.tcgetattr(self._in)
        self._heard, self._told = os.pipe()
        for descriptor in (self._heard, self._told):
            os.set_blocking(descriptor, False)
        try:
            for each in _SIGNALS:
                self._handlers[each] = signal.signal(each, self._note)
            self._take()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()
        for each, handler in self._handlers.items():
            signal.signal(each, handler)
        os.close(self._heard)
        os.close(self._told)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, at least one of each."""
        try:
            columns, lines = os.get_terminal_size(self._out)
        except OSError:
            columns, lines = 80, 24
        return max(1, columns), max(1, lines)

    def draw(self, lines: Sequence[ScreenLine]) -> None:
        """Show these lines from the top; only what has changed is sent. Raises Ended where nobody is there."""
        texts = [self._paint(line) for line in lines]
        shown = self._shown + [""] * (len(texts) - len(self._shown))
        texts += [""] * (len(shown) - len(texts))
        rows = enumerate(zip(texts, shown, strict=True), 1)
        changed = [f"\x1b[{row};1H{text}\x1b[K" for row, (text, old) in rows if text != old]
        self._shown = texts
        if changed:
            self._write("".join(changed))

    def wait(self, seconds: float) -> Iterator[str]:
        """The keys that are pressed within this time, at once; a character, or one of the names of `State.press`.

        Raises Ended where a signal says so, or the terminal is gone.
        """
        ready, _, _ = select.select([self._in, self._heard], [], [], seconds)
        if self._heard in ready:
            for each in os.read(self._heard, 64):
                self._obey(signal.Signals(each))
        if self._in in ready:
            try:
                data = os.read(self._in, 1024)
            except OSError:
                data = b""
            if not data:
                raise Ended
            yield from keys(self._decoder.decode(data))

    def _note(self, number: int, _: FrameType | None) -> None:
        with suppress(BlockingIOError):  # thousands are waiting already
            os.write(self._told, bytes([number]))

    def _obey(self, which: signal.Signals) -> None:
        if which in _ENDING:
            raise Ended(which)
        if which == signal.SIGTSTP:
            self._give_back()
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTSTP)  # here we stand still, until SIGCONT
            signal.signal(signal.SIGTSTP, self._note)
        if which in (signal.SIGTSTP, signal.SIGCONT):
            self._take()
        self._shown = []
        self._write("\x1b[2J")

    def _take(self) -> None:
        tty.setcbreak(self._in, termios.TCSADRAIN)
        self._shown = []
        self._write(_ENTER)

    def _give_back(self) -> None:
        # A terminal that is gone has nothing to be given back.
        with suppress(Ended):
            self._write(_LEAVE)
        with suppress(termios.error):
            termios.tcsetattr(self._in, termios.TCSANOW, self._attributes)

    def _write(self, text: str) -> None:
        data = text.encode(self._encoding, "replace")
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except OSError:
            raise Ended from None

    def _paint(self, line: ScreenLine) -> str:
        colour, text = self._colours.get(line.style), escaped(line.text)
        return f"{colour}{text}\x1b[0m" if colour and text else text


def keys(text: str) -> Iterator[str]:
    """The keys in what a terminal has sent."""
    for each in _SEQUENCE.sub("", text):
        yield _KEYS.get(each, each)
