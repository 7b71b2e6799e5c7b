"""Under which names a user stands in the login table: folded, completed, and its `@domain`."""

from __future__ import annotations


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
