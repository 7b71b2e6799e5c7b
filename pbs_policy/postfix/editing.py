"""Taking policy checks out of main.cf and master.cf while every other byte stays. Pure.

Each `name = value` of main.cf and each `-o name=value` of master.cf is searched, whatever the parameter is called: a
list, a restriction class, or a text that lists refer to as `$name`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from pbs_policy.postfix.restrictions import CHECK, PERMIT_LOCAL, REFUSING, Restriction, parse_restrictions

_BLANKS = " \t\r"
_COMMENT = re.compile(r"(?m)^[ \t]*#[^\n]*")
_LOGICAL = re.compile(r"(?m)^[^\s#][^\n]*(?:\n(?:[ \t\r][^\n]*|(?=\n|\Z)))*")
_OPTION = re.compile(r"(?<=\s)-o[ \t\n]*(?:(\{)[ \t\n]*[^\s={}]+[ \t\n]*=|[^\s={}]+=)")

IsOurs = Callable[[Restriction], bool]


def take_out(data: bytes, is_ours: IsOurs, *, options: bool = False, permit_local: bool = False) -> bytes:
    """The file without the restrictions that `is_ours` says. `options`: it is a master.cf. `permit_local`: the
    PERMIT_LOCAL right before such a check is ours too.

    A warn_if_reject before the check goes with it: it would make the next restriction, which refuses relaying, a mere
    warning.
    """
    text = data.decode("latin-1")  # one letter for each byte
    # Comments may stand inside a value, and are no part of it.
    masked = _COMMENT.sub(lambda found: " " * len(found[0]), text)
    for begin, end in reversed(list(_values(masked, options))):
        for first, last, behind in reversed(list(_spans(masked[begin:end], is_ours, permit_local))):
            start, stop = _with_separators(masked, (begin, end), begin + first, begin + last, behind)
            text, masked = text[:start] + text[stop:], masked[:start] + masked[stop:]
            end -= stop - start
    return text.encode("latin-1")


def _values(masked: str, options: bool) -> Iterator[tuple[int, int]]:
    """Where each value begins and ends."""
    for line in _LOGICAL.finditer(masked):
        if options:
            for option in _OPTION.finditer(masked, line.start(), line.end()):
                yield option.end(), _end_of_option(masked, option.end(), line.end(), braces=bool(option[1]))
        elif "=" in line[0]:
            yield line.start() + line[0].index("=") + 1, line.end()


def _end_of_option(masked: str, begin: int, end: int, *, braces: bool) -> int:
    depth = 0
    for at in range(begin, end):
        if masked[at] == "}" and braces and not depth:
            return at
        depth += (masked[at] == "{") - (masked[at] == "}")
        if not braces and masked[at].isspace():
            return at
    return end


def _spans(value: str, is_ours: IsOurs, permit_local: bool) -> Iterator[tuple[int, int, bool]]:
    """Begin and end of each check of ours with what goes along, and whether a restriction stands behind it."""
    found = parse_restrictions(value)
    for at, each in enumerate(found):
        if each.name != CHECK or not each.argument or not is_ours(each):
            continue
        first = at - 1 if each.is_warned else at
        refusing = at + 1 < len(found) and found[at + 1].name in REFUSING
        if permit_local and refusing and first and found[first - 1].name == PERMIT_LOCAL:
            first -= 1
        end = value.index(each.argument, each.start + len(each.name)) + len(each.argument)
        yield found[first].start, end, at + 1 < len(found)


def _with_separators(masked: str, value: tuple[int, int], start: int, end: int, behind: bool) -> tuple[int, int]:
    """The span with the separators that it needs no more, as far as the value goes, and with the whole line where
    nothing else is on it."""
    begin, stop = value
    while end < stop and masked[end] in _BLANKS + ",":
        end += 1
    ends_line = masked[end : end + 1] in ("", "\n")
    line = masked.rfind("\n", begin, start) + 1
    if ends_line and line and not masked[line:start].strip(_BLANKS + ","):
        return line, end + 1
    while start > begin and ends_line and masked[start - 1] in (_BLANKS if behind else _BLANKS + ","):
        start -= 1
    return start, end
