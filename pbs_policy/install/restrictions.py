"""Our check put where it belongs in a list of restrictions, or not at all.

What a word means matters only as far as it takes to know what stands before the point where unknown destinations are
refused; a list with anything in it that is not known is not touched.
"""

from __future__ import annotations

from collections.abc import Collection

from pbs_policy.postfix.restrictions import (
    PERMIT_LOCAL,
    REFUSING,
    Restriction,
    is_balanced,
    parse_restrictions,
    split_words,
)


class ListError(ValueError):
    """The list is not one that ours can be put into; the message says why."""


def parse_list(text: str, classes: Collection[str] = ()) -> list[Restriction]:
    """The restrictions of a list. Raises ListError for what is not understood, `classes` among it."""
    if not is_balanced(text):
        raise ListError("its braces do not match")
    found = parse_restrictions(text)
    for each in found:
        if each.name in classes:
            what = "a restriction class (smtpd_restriction_classes), and may permit or refuse"
            raise ListError(f"{each.name} is {what}")
        if "$" in each.name.partition(":")[0]:
            raise ListError(f"{each.name} stands for another parameter's text")
        if not each.is_known:
            raise ListError(f"{each.name} is no restriction that is known here")
        if each.takes_argument and not each.argument:
            raise ListError(f"{each.name} has no argument")
    return found


def insert_check(text: str, check: str, classes: Collection[str] = ()) -> str:
    """`text` with `check` right before the one restriction that refuses unknown destinations.

    PERMIT_LOCAL is put before it where it is missing. Raises ListError where the place is not certain.
    """
    restrictions = parse_list(text, classes)
    place = find_place(restrictions)
    words = [check] if _has_permit_local(restrictions[:place]) else [PERMIT_LOCAL, check]
    if words[0] == PERMIT_LOCAL:
        for later in restrictions[place + 1 :]:
            if later.name not in ("permit", PERMIT_LOCAL):
                raise ListError(
                    f"{later.name} stands after {restrictions[place].name}, and the {PERMIT_LOCAL} that ours needs "
                    "before it would skip that for your own domains: move it to smtpd_recipient_restrictions"
                )
    at = restrictions[place].start
    between = ", " if "," in _outside_braces(text[:at]) else " "
    return text[:at] + between.join(words) + between + text[at:]


def find_place(restrictions: list[Restriction]) -> int:
    """The number of the restriction that refuses unknown destinations. Raises ListError unless there is just one,
    and it is reached."""
    places = [number for number, each in enumerate(restrictions) if each.name in REFUSING]
    if not places:
        raise ListError(f"there is no {' or '.join(REFUSING)} in it")
    if len(places) > 1:
        raise ListError(f"{' and '.join(restrictions[each].name for each in places)} stand in it")
    refusing = restrictions[places[0]]
    for each in restrictions[: places[0]]:
        if each.refuses or each.name == "permit":
            raise ListError(f"{each.name} stands before {refusing.name}, which is never reached")
    if refusing.is_warned:
        raise ListError(f"warn_if_reject makes {refusing.name} a mere warning")
    return places[0]


def stands_right(restrictions: list[Restriction], ours: int) -> bool:
    """Whether the restriction with the number `ours` stands where our check has to. Raises as find_place does."""
    return find_place(restrictions) == ours + 1 and _has_permit_local(restrictions[:ours])


def _has_permit_local(restrictions: list[Restriction]) -> bool:
    return any(each.name == PERMIT_LOCAL for each in restrictions)


def _outside_braces(text: str) -> str:
    for word, _ in split_words(text):
        text = text.replace(word, "", 1)
    return text
