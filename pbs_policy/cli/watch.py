"""`pbs-policy watch`: what the services decide and who logs in, as it happens."""

from __future__ import annotations

import os
import sys
import time

import click

from pbs_policy.bars import has_blocks
from pbs_policy.cli.session import Session
from pbs_policy.watch.live import Feed, show_screen, write_lines
from pbs_policy.watch.source import Source
from pbs_policy.watch.state import State
from pbs_policy.watch.terminal import Ended, Terminal


@click.command()
@click.option("--lines", is_flag=True, help="One line for each event, as where standard output is no terminal.")
@click.option("--filter", "pattern", default="", metavar="TEXT",
              help="Only events with this text in them: an address, a user, action=OK.")  # fmt: skip
@click.pass_obj
def watch(session: Session, lines: bool, pattern: str) -> int:
    """Logins and relay decisions as they happen, of every service that shares this Redis; who may relay now, and for
    how long still; and how the services and Redis are.

    Keys: q quits, p or the blank pauses the events, / filters them, s sorts who may relay, Esc ends a filter.

    The services publish their decisions only while somebody watches, at most 1,000 a second each; how many were left
    out is said. Times are UTC. Of a table with more than 10,000 keys, only logins from addresses whose decisions
    were seen are shown.

    \b
    Example:
      pbs-policy watch
      pbs-policy watch --filter 192.0.2.7
      pbs-policy watch --lines --filter action=OK >> relayed.log
    """
    settings, table = session.open_table()
    state = State(settings.key_prefix, time.monotonic(), pattern)
    source = Source(table)
    try:
        feed = Feed(source, state)
        feed.begin()
        is_screen = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        if lines or not is_screen:
            write_lines(feed, state)
        with Terminal() as terminal:
            show_screen(feed, state, terminal, blocks=has_blocks(sys.stdout.encoding))
    except Ended as end:
        return 128 + end.signal_number if end.signal_number else os.EX_OK
    finally:
        source.close()
    return os.EX_OK
