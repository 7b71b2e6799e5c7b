"""Who the clients are, by their addresses. Nobody but `LOGGED_IN` may ever be told OK, whatever happens."""

from __future__ import annotations

from redis import Redis

RELAYING = "192.0.2.10"
"""A client that is logged in, and relays through Postfix."""

LOGGED_IN = [f"192.0.2.{number}" for number in range(64, 128)]
"""Logged in as well; they ask the service directly."""

STRANGERS = [f"198.51.100.{number}" for number in range(256)]
"""Never logged in."""

DENIED = [f"203.0.113.{number}" for number in range(128)]
"""Logged in, and denied."""

LOGGING_IN = [f"192.0.2.{number}" for number in range(128, 192)]
LOGGING_IN += [f"2001:db8::{number:x}" for number in range(1, 65)]
"""They log in through Dovecot, and do not relay."""

SENDING_IN = "203.0.113.200"
"""A stranger with mail for our own domain."""

HALF_AN_HOUR = 1_800


def fill(redis: Redis) -> None:
    """Log in who is to be logged in, and deny who is to be denied; the denies first."""
    with redis.pipeline(transaction=True) as everything:
        for address in DENIED:
            everything.set(f"pbs:deny:{address}", "a test", ex=HALF_AN_HOUR)
        for address in (RELAYING, *LOGGED_IN, *DENIED):
            everything.set(f"pbs:login:{address}", "1795453232 imap alice@example.com", ex=HALF_AN_HOUR)
        everything.execute()
