"""The watching itself: what is heard and read goes into the state, ten times a second onto the screen, or as lines to
whoever reads them."""

from __future__ import annotations

import time
from typing import NoReturn

import click

from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.watch.screen import render
from pbs_policy.watch.source import Source
from pbs_policy.watch.state import State
from pbs_policy.watch.terminal import Terminal

POLL = 0.1
"""Seconds between two looks at the channel: the services publish each 0.2 s."""

LOOK = 1.0
"""Seconds between two looks at the table."""


class Feed:
    """Keeps `state` up to date from `source`. While Redis is unavailable it tries each `LOOK`, and says so."""

    def __init__(self, source: Source, state: State) -> None:
        self._source = source
        self._state = state
        self._next_look = 0.0
        self._is_away = False

    def begin(self) -> None:
        """The first look. Raises StoreUnavailable: then there is nothing to watch."""
        self._source.listen()  # first: what is published from now on is heard
        self._look()
        self._next_look = time.monotonic() + LOOK

    def step(self) -> None:
        """Take in what there is."""
        now, state = time.monotonic(), self._state
        is_due = now >= self._next_look
        try:
            if not self._is_away or is_due:
                for message in self._source.listen():
                    state.hear(message, now, time.time())
            if is_due:
                self._look()
                self._is_away = False
        except StoreUnavailable as error:
            self._is_away = True
            self._source.close()  # who is cut off without a word would never hear again
            state.set_redis(None, str(error), time.time())
        if is_due:
            state.tick(now, time.time())
            self._next_look = time.monotonic() + LOOK

    def _look(self) -> None:
        table, answer_time = self._source.look(tuple(self._state.addresses))
        self._state.see(table)
        self._state.set_redis(answer_time, "", time.time())


def show_screen(feed: Feed, state: State, terminal: Terminal, *, blocks: bool) -> None:
    """Draw until a key ends it. Raises `terminal.Ended`."""
    while True:
        feed.step()
        state.news.clear()  # the screen shows what is kept
        terminal.draw(render(state, *terminal.size, time.monotonic(), time.time(), blocks=blocks))
        for key in terminal.wait(POLL):
            if not state.press(key):
                return


def write_lines(feed: Feed, state: State) -> NoReturn:
    """Write a line for each event, until an exception ends it."""
    while True:
        feed.step()
        if text := "".join(event.line() + "\n" for event in state.take_news()):
            click.echo(text, nl=False)
        time.sleep(POLL)
