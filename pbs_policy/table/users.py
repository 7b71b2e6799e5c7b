"""Under which names a user stands in the login table: folded, completed, and its `@domain`; and how an administrator
names one.

What an administrator types may be a mistyped address, and a deny of a user of that name would hold for nobody. So a
name is a user's only where it is plain. Any other name that a mail system really has, `john doe` say, is written
`user:john doe`.
"""

from __future__ import annotations

import re

from pbs_policy.address import AddressError, looks_like_address
from pbs_policy.log import printable

LITERAL = "user:"
"""Before a user's name: it is taken as it stands."""

_HINT = "expected an address, a network or a user such as alice@example.com"
_EVERYBODY = ("all", "everybody", "everyone", "anybody", "anyone")
# No blanks, quotes, brackets, lists or wildcards, and nothing that looks like an option; one "@" at most, with
# something on both sides.
_is_plain_user = re.compile(
    r"(?![!'-])[^\s\"'`<>()\[\]{}:;,*?\\@]([^\s\"`<>()\[\]{}:;,*?\\@]*[^\s\"'`<>()\[\]{}:;,*?\\@])?(@[\w-]+(\.[\w-]+)*)?"
).fullmatch


def parse_user_name(text: str) -> str | None:
    """The user that an administrator names; None where `text` is about an address or network, right or wrong. Raises
    ValueError for what is neither."""
    if text.startswith(LITERAL) and (name := text.removeprefix(LITERAL)).strip():
        return name
    if means_everybody(text):
        raise AddressError(f"{printable(text)!r} is no address, network or user")
    if looks_like_address(text):
        return None
    if not text.isprintable() or not _is_plain_user(text):
        raise AddressError(f"{printable(text)!r}: {_HINT}; if it is a user's name, put {LITERAL} before it")
    return text


def means_everybody(text: str) -> bool:
    """Whether a word stands for everybody, and is taken for nobody's name."""
    return text.strip().lower() in _EVERYBODY


def write_user_name(user: str) -> str:
    """A user's name as `parse_user_name` reads it."""
    try:
        is_plain = not user.startswith(LITERAL) and parse_user_name(user) is not None
    except ValueError:
        is_plain = False
    return user if is_plain else LITERAL + user


def complete_user(user: bytes, user_domain: str) -> bytes:
    """The name under which a user is known in keys: folded, and with `user_domain` where it has no domain.

    b"" for a user without a name and for one that begins with "@": its key would be that of a whole domain.
    """
    name = user.lower()
    if not name or name.startswith(b"@"):
        return b""
    if user_domain and b"@" not in name:
        name += b"@" + user_domain.encode("utf-8", "surrogateescape").lower()
    return name


def names_of_user(user: bytes, user_domain: str) -> tuple[bytes, ...]:
    """Under which names a login of `user` is found besides its address: the user, and its `@domain` if it has one.

    A user whose name begins with "@" has none: it would pass for everybody of that domain.
    """
    name = complete_user(user, user_domain)
    domain = domain_of(name)
    return (name, b"@" + domain) if domain else (name,) if name else ()


def domain_of(name: bytes) -> bytes:
    """The domain of a user as keys name them; b"" where there is none: `example.com` alone is a name, no domain."""
    local_part, _, domain = name.rpartition(b"@")
    return domain if local_part else b""
