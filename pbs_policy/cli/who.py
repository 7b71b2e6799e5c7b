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
    """Whom `text` names. Raises AddressError for what looks like an address or network and is none, and for what
    cannot be a user's name; UsageError for what names nobody. A whole domain (`@example.com`) passes."""
    from pbs_policy.table.users import parse_user_name

    if not text.strip():
        raise click.UsageError("expected an address, a network or a user, not an empty argument")
    user = text if text.startswith("@") else parse_user_name(text)
    return Who(settings.addresses.parse_target(text)) if user is None else Who(None, user)


def parse_one_or_all(settings: Settings, text: str | None, is_all: bool) -> Who | None:
    """Whom `text` names; None for everybody (--all). Raises UsageError unless it is one of them, also for words that
    mean everybody: a deny of a user of that name would hold for nobody."""
    from pbs_policy.table.users import means_everybody

    if text is not None and means_everybody(text):
        raise click.UsageError(f"{text.strip()} is no address, network or user: for everybody it is --all")
    if is_all == (text is not None):
        raise click.UsageError("expected an address, a network or a user, or else --all")
    return parse_who(settings, text) if text is not None else None
