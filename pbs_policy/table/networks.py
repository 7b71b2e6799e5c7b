"""The prefix lengths in use among the networks of permits, and among those of denies.

A network is found as one key for each length in use: a client of 192.0.2.7 is in 192.0.2.0/24 and in 192.0.0.0/16.
Which lengths there are stands in Redis, as words such as `4/24 6/48` (IP version, bits), until the last of them ends.
A denied IPv6 address is found by its length too, `6/128` or that of its `ipv6_prefix`: that setting may change.
"""

from __future__ import annotations

from collections.abc import Iterable

Lengths = frozenset[tuple[int, int]]
"""Pairs of IP version and bits."""

_WORDS = {
    f"{version}/{bits}".encode(): (version, bits) for version, most in ((4, 32), (6, 129)) for bits in range(1, most)
}


def parse_lengths(value: bytes | None) -> Lengths:
    """The lengths in a key's value. What is no length is passed over: it names no network."""
    return frozenset(_WORDS[word] for word in value.split() if word in _WORDS) if value else frozenset()


def serialise_lengths(lengths: Iterable[tuple[int, int]]) -> bytes:
    """The value that holds `lengths`."""
    return b" ".join(b"%d/%d" % length for length in sorted(lengths))
