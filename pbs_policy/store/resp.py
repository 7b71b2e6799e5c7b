"""Commands as Redis reads them (RESP). Its replies are hiredis' to parse."""

from __future__ import annotations

import hiredis

_BY_HAND = not hasattr(hiredis, "pack_command")  # before 2.1, such as Debian 12's


def pack(parts: tuple[str | bytes, ...]) -> bytes:
    """The bytes of one command."""
    if _BY_HAND:
        words = [part.encode() if isinstance(part, str) else part for part in parts]
        return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])
    packed: bytes = hiredis.pack_command(parts)  # type: ignore[arg-type]  # its stub knows tuples of one item only
    return packed
