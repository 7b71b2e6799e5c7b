"""Whom a command is about: arguments that name addresses, networks or users, and `-` for the lines of standard input.
All are read before anything is done about the first of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import click

from pbs_policy.address import Target
from pbs_policy.log import printable
from pbs_policy.settings import Settings
from pbs_policy.table.keys import EVERYBODY
from pbs_policy.table.users import means_everybody, parse_user_name

T = TypeVar("T", bound=Hashable)

_MOST_INPUT = 1 << 24
"""Bytes of standard input: half a million lines."""


class Who(NamedTuple):
    """An address or network (`target`), or a user, or else everybody."""

    target: Target | None = None
    user: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """In the names that listings have."""
        if self.user:
            return {"user": self.user}
        return {"client_address": self.target.text if self.target else EVERYBODY}

    def __str__(self) -> str:
        """As it is shown."""
        return printable(self.target.text if self.target else self.user or "everybody")


def parse_who(settings: Settings, text: str) -> Who:
    """Whom `text` names. Raises AddressError for what looks like an address or network and is none, and for what
    cannot be a user's name; UsageError for what names nobody. A whole domain (`@example.com`) passes."""
    if not text.strip():
        raise click.UsageError("expected an address, a network or a user, not an empty argument")
    if means_everybody(text):  # a deny of a user of that name would hold for nobody
        raise click.UsageError(f"{text.strip()} is no address, network or user: for everybody it is --all")
    user = text if text.startswith("@") else parse_user_name(text)
    return Who(settings.addresses.parse_target(text)) if user is None else Who(None, user)


def parse_all(given: Sequence[str], parse: Callable[[str], Who], *, is_all: bool) -> list[Who]:
    """Whom the arguments name; with `is_all` (--all) everybody. Raises as `parse_each`, and UsageError unless it is
    one of them."""
    if is_all == bool(given):
        raise click.UsageError("expected addresses, networks or users, or else --all")
    return [Who()] if is_all else parse_each(given, parse)


def parse_each(given: Sequence[str], parse: Callable[[str], T]) -> list[T]:
    """What `parse` makes of each argument, or line of standard input in the place of `-`; what comes twice once.
    Raises what `parse` does, and UsageError for a fault in a line, and where there is no line."""
    found = dict.fromkeys(parse(text) for text in given if text != "-")
    if "-" in given:
        found.update(dict.fromkeys(_parse_lines(parse)))
    return list(found)


def _parse_lines(parse: Callable[[str], T]) -> Iterator[T]:
    data = sys.stdin.buffer.read(_MOST_INPUT + 1)
    if len(data) > _MOST_INPUT:
        raise click.UsageError(f"standard input has more than {_MOST_INPUT:,} bytes: give it in pieces")
    lines = [line.strip() for line in data.decode("utf-8", "surrogateescape").split("\n")]
    if not any(map(_names_somebody, lines)):
        raise click.UsageError("standard input names nobody: one address, network or user a line")
    for number, line in enumerate(lines, 1):
        if _names_somebody(line):
            try:
                yield parse(line)
            except (ValueError, click.UsageError) as error:
                raise click.UsageError(f"standard input, line {number}: {error}") from None


def _names_somebody(line: str) -> bool:
    return bool(line) and not line.startswith("#")
