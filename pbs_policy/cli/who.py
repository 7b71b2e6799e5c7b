"""Whom a command is about: an argument that names an address, a network or a user."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from pbs_policy.address import Target
    from pbs_policy.settings import Settings

class Who(NamedTuple):
    """An address or network (`target`), or a user."""

    target: Target | None
    user: str = ""


def parse_who(settings: Settings, text: str) -> Who:
    """Whom `text` names. Raises AddressError for what looks like an address or network and is none, UsageError for
    what names nobody."""
    from pbs_policy.address import looks_like_address

    addresses = settings.addresses
    if not text.strip():
        raise click.UsageError("expected an address, a network or a user, not an empty argument")
    if addresses.find(text) or looks_like_address(text):
        return Who(addresses.parse_target(text))
    return Who(None, text)


def parse_one_or_all(settings: Settings, text: str | None, is_all: bool) -> Who | None:
    """Whom `text` names; None for everybody (--all). Raises UsageError unless it is one of them, also for the name
    that listings and keys have for everybody: a deny of a user of that name would hold for nobody."""
    from pbs_policy.table.keys import EVERYBODY

    if text is not None and text.strip().lower() == EVERYBODY:
        raise click.UsageError(f"{EVERYBODY} is no address, network or user: for everybody it is --all")
    if is_all == (text is not None):
        raise click.UsageError("expected an address, a network or a user, or else --all")
    return parse_who(settings, text) if text is not None else None
