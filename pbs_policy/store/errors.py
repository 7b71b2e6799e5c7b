"""What can go wrong with Redis, whatever it is asked with. Who only catches these does not load redis-py."""

from __future__ import annotations


class StoreUnavailable(Exception):
    """Redis cannot be asked: refused, mute, or it answers with an error. The message says which and where."""


class StoreRefused(StoreUnavailable):
    """Redis answered, and with an error: its own words are the message. `where` is the server."""

    where = ""


class NotTheMaster(StoreUnavailable):
    """The server that answers is a replica."""
