"""A file of Dovecot's configuration with some settings changed, all other bytes kept. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pbs_policy.dovecot.doveconf import split_lines


@dataclass
class _Block:
    first: int
    goes: bool
    lost: bool = False
    holds: bool = False


def edited(text: str, changes: Mapping[int, str | None]) -> str:
    """`text` with other values at these lines. None: the setting goes, or the whole block that begins there. A block
    that has lost its last setting or block goes, too."""
    lines = text.splitlines(keepends=True)
    kept = dict(enumerate(lines, 1))
    blocks = [_Block(0, goes=False)]
    for line in split_lines(text):
        if line.kind == "open":
            blocks.append(_Block(line.first, goes=line.first in changes))
        elif line.kind == "close" and len(blocks) > 1:
            block = blocks.pop()
            goes = block.goes or (block.lost and not block.holds)
            blocks[-1].lost |= goes
            blocks[-1].holds |= not goes
            if goes:
                for number in range(block.first, line.last + 1):
                    kept[number] = ""
        elif line.kind == "setting" and line.first in changes:
            value = changes[line.first]
            blocks[-1].lost |= value is None
            blocks[-1].holds |= value is not None
            for number in range(line.first, line.last + 1):
                kept[number] = ""
            if value is not None:
                head, _, rest = lines[line.first - 1].partition("=")
                comment = rest.rpartition(line.value)[2].lstrip('"') if line.first == line.last and line.value else ""
                kept[line.first] = f"{head}= {value}{comment}".rstrip() + "\n"
        else:
            blocks[-1].holds = True
    return "".join(kept.values())
