"""What an administrator may permit and deny, and how it is written. Raises ValueError, saying what was expected."""

from __future__ import annotations

import re

from pbs_policy.address import AddressError, Target
from pbs_policy.table.users import LITERAL, parse_user_name

WIDEST_PERMIT = {4: 16, 6: 32}
"""Bits of the widest network that may be permitted. IPv4 /16 is about the largest that one organisation has to
itself; an IPv6 /32 is what a registry gives a whole provider. Anything wider permits strangers: an open relay."""

LONGEST_TEXT = 320
"""Characters of a user, sender, note or reason."""


def refuse_permit(target: Target) -> None:
    """Raises AddressError, saying why, for an address or network that must not be permitted."""
    if target.excluded:
        raise AddressError(f"{target.text} is never permitted to relay: {target.excluded}")
    if target.length:
        version, bits = target.length
        if bits < WIDEST_PERMIT[version]:
            raise AddressError(
                f"{target.text} is wider than /{WIDEST_PERMIT[version]}: permitting the clients of more than one "
                "organisation makes an open relay"
            )


def refuse_deny(target: Target) -> None:
    """Raises AddressError for a network of everybody: none of that length is found by its name."""
    if target.length and not target.length[1]:
        raise AddressError(f"{target.text} is everybody, which is denied with --all")


def parse_text(text: str) -> str:
    """A note or reason: one line that prints."""
    if not text.isprintable() or len(text) > LONGEST_TEXT:
        raise ValueError(f"expected a line of at most {LONGEST_TEXT} printable characters")
    return text


def parse_user(text: str) -> str:
    """Whom a permit is for. A name that begins with "@" would pass for everybody of that domain."""
    try:
        user = parse_user_name(parse_text(text))
    except AddressError:
        user = None
    if not user or user.startswith("@"):
        raise ValueError(f"expected a user such as scanner@example.com, or {LITERAL} before any other name")
    return user


def parse_sender(text: str) -> str:
    """A permit's envelope sender, folded; `@example.com` is every one of that domain."""
    local_part, at, domain = parse_text(text).rpartition("@")
    if not at or any(letter in " @<>" for letter in local_part):
        raise ValueError("expected an address such as scanner@example.com, or @example.com for the whole domain")
    return _folded(local_part) + "@" + parse_domain(domain)


def parse_domain(text: str) -> str:
    """A permit's recipient domain, folded."""
    if not re.fullmatch(r"\w([\w-]*\w)?(\.\w([\w-]*\w)?)*", parse_text(text)):
        raise ValueError("expected a domain such as example.com")
    return _folded(text)


def _folded(text: str) -> str:
    """In lower case as bytes are folded: ASCII only."""
    return text.encode().lower().decode()
