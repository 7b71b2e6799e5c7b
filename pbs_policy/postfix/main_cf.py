"""Lines of a file in the manner of main.cf (postconf(5)): a line that begins with a blank continues the one before,
one that begins with `#` is a comment."""

from __future__ import annotations

from collections.abc import Iterator


def logical_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each line with its continuations joined: number of the first physical line, and the text. One that begins with
    a blank and has none before it is yielded with that blank. Empty lines and comments are skipped, also between a
    line and its continuation.
    """
    for lines in joined_lines(data):
        yield lines[0][0], b" ".join([text for _, text in lines]) if len(lines) > 1 else lines[0][1]


def joined_lines(data: bytes) -> Iterator[list[tuple[int, bytes]]]:
    """Each line with its continuations: their numbers and texts."""
    joined: list[tuple[int, bytes]] = []
    for at, line in enumerate(data.split(b"\n"), 1):
        text = line.strip()
        if not text or text[:1] == b"#":
            continue
        if joined and line[:1].isspace():
            joined.append((at, text))
            continue
        if joined:
            yield joined
        joined = [(at, line.rstrip())]
    if joined:
        yield joined
