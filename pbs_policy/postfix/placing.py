"""Our check: what it is, whether it stands where it belongs in a list of restrictions, and how it is put there.

For `doctor/` and `install/`, so that what the one proposes the other takes for right. What a word means matters only
as far as it takes to know what stands before the point where unknown destinations are refused; a list with anything
in it that is not known is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from pbs_policy.postfix.main_cf import logical_lines
from pbs_policy.postfix.restrictions import (
    CHECK,
    PERMIT_LOCAL,
    REFUSING,
    SEPARATORS,
    Restriction,
    find_refusal,
    is_balanced,
    parse_policy_check,
    parse_restrictions,
    split_words,
)
from pbs_policy.shipped import shipped


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


def right_list(text: str, check: str, is_ours: Callable[[Restriction], bool], classes: Collection[str] = ()) -> str:
    """`text` with `check` where it belongs, and with no other that `is_ours`; all else in it stays, and something
    refuses behind it. Raises ListError where that is not certain."""
    found = parse_list(text, classes)
    for at in reversed(range(len(found))):
        if is_ours(found[at]):
            if found[at].is_warned:
                raise ListError(f"warn_if_reject stands before our {CHECK}")
            end = found[at + 1].start if at + 1 < len(found) else len(text)
            text = (text[: found[at].start] + text[end:]).rstrip(SEPARATORS)
    if not any(each.name in REFUSING for each in parse_restrictions(text)):
        text = ", ".join(filter(None, (text, REFUSING[0])))
    return insert_check(text, check, classes)


def find_place(restrictions: Sequence[Restriction]) -> int:
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


class Misplaced(NamedTuple):
    """Why our check is not where it belongs. `only_mail_in`: relaying is right, mail for our own domains waits."""

    why: str
    only_mail_in: bool = False


def misplaced(restrictions: Sequence[Restriction], ours: int, later: Sequence[Restriction] = ()) -> Misplaced | None:
    """What is wrong with the place of the restriction with the number `ours`. `later` are those of the list that
    Postfix asks after this one, which may be the one that refuses."""
    refusal = find_refusal(restrictions[:ours])
    if refusal is not None:
        name = restrictions[refusal].name
        return Misplaced(f"{name} stands before the policy service, which is then never asked about a relay attempt")
    if find_refusal([*restrictions[ours + 1 :], *later]) is None:
        return Misplaced(
            "nothing after the policy service refuses relaying: smtpd does not start, or is an open relay"
        )
    if not _has_permit_local(restrictions[:ours]):
        why = f"without {PERMIT_LOCAL} before it, mail for your own domains asks and waits for the service"
        return Misplaced(why, only_mail_in=True)
    return None


def check_for(endpoint: str) -> str:
    """The restriction for the policy service at `endpoint`, as the example in postfix-examples has it."""
    example = "postfix-examples/" + ("main.cf.unix" if endpoint.startswith("unix:") else "main.cf.inet")
    (check,) = (
        each.argument
        for _, line in logical_lines(shipped(example).read_bytes())
        for each in parse_restrictions(line.decode().partition("=")[2])
        if each.name == CHECK
    )
    words = " ".join(check.split())
    return f"{CHECK} {words.replace(parse_policy_check(words).endpoint, endpoint, 1)}"


def by_hand(name: str, endpoint: str) -> str:
    """What to do where the place is not certain."""
    why = f"{shipped('postfix-examples/README.md')} says why there"
    return f"put `{PERMIT_LOCAL}, {check_for(endpoint)}` right before {REFUSING[0]} in {name}. {why}"


def _has_permit_local(restrictions: Sequence[Restriction]) -> bool:
    return any(each.name == PERMIT_LOCAL for each in restrictions)


def _outside_braces(text: str) -> str:
    for word, _ in split_words(text):
        text = text.replace(word, "", 1)
    return text
