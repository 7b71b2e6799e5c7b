"""Taking policy checks out of main.cf and master.cf while every other byte stays. Pure.

Each `name = value` of main.cf and each `-o name=value` of master.cf is searched that smtpd takes for restrictions: a
list, a restriction class, or a text that one of these refers to as `$name`. Any other text is the site's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator

from pbs_policy.postfix.restrictions import CHECK, PERMIT_LOCAL, REFUSING, Restriction, parse_restrictions, words

_BLANKS = " \t\r"
_COMMENT = re.compile(r"(?m)^[ \t]*#[^\n]*")
_LOGICAL = re.compile(r"(?m)^[^\s#][^\n]*(?:\n(?:[ \t\r][^\n]*|(?=\n|\Z)))*")
_OPTION = re.compile(r"(?<=\s)-o[ \t\n]*(?:(\{)[ \t\n]*([^\s={}]+)[ \t\n]*=|([^\s={}]+)=)")
_LIST = re.compile(r"smtpd_\w+_restrictions")
_REFERENCE = re.compile(r"\$[({]?(\w+)")

IsOurs = Callable[[Restriction], bool]


def restriction_names(main_cf: bytes, master_cf: bytes) -> frozenset[str]:
    """The parameters whose text smtpd takes for restrictions, of those that the two files set."""
    texts: dict[str, str] = {}
    for data, options in ((main_cf, False), (master_cf, True)):
        masked = _without_comments(data.decode("latin-1"))
        for name, begin, end in _values(masked, options):
            texts[name] = f"{texts.get(name, '')} {masked[begin:end]}"
    classes = _reached(texts, ["smtpd_restriction_classes"])
    named = [word for name in classes for word in words(texts[name])]
    return _reached(texts, [*filter(_LIST.fullmatch, texts), *named])


def _reached(texts: dict[str, str], names: Iterable[str]) -> frozenset[str]:
    """Those of `names` that have a text, and what their texts refer to."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in texts and name not in found:
            found.add(name)
            todo += _REFERENCE.findall(texts[name])
    return frozenset(found)


def take_out(
    data: bytes, is_ours: IsOurs, names: Collection[str], *, options: bool = False, permit_local: bool = False
) -> bytes:
    """The file without the restrictions that `is_ours` says, in the parameters with these `names`. `options`: it is a
    master.cf. `permit_local`: the PERMIT_LOCAL right before such a check is ours too.

    A warn_if_reject before the check goes with it: it would make the next restriction, which refuses relaying, a mere
    warning.
    """
    text = data.decode("latin-1")  # one letter for each byte
    masked = _without_comments(text)
    for name, begin, end in reversed(list(_values(masked, options))):
        if name not in names:
            continue
        for first, last, behind in reversed(list(_spans(masked[begin:end], is_ours, permit_local))):
            start, stop = _with_separators(masked, (begin, end), begin + first, begin + last, behind)
            text, masked = text[:start] + text[stop:], masked[:start] + masked[stop:]
            end -= stop - start
    return text.encode("latin-1")


def _without_comments(text: str) -> str:
    """Comments may stand inside a value, and are no part of it: blanks are there instead."""
    return _COMMENT.sub(lambda found: " " * len(found[0]), text)


def _values(masked: str, options: bool) -> Iterator[tuple[str, int, int]]:
    """The name of each parameter that is set, and where its value begins and ends."""
    for line in _LOGICAL.finditer(masked):
        if options:
            for option in _OPTION.finditer(masked, line.start(), line.end()):
                end = _end_of_option(masked, option.end(), line.end(), braces=bool(option[1]))
                yield option[2] or option[3], option.end(), end
        elif "=" in line[0]:
            name = line[0].partition("=")[0]
            yield name.strip(), line.start() + len(name) + 1, line.end()


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
