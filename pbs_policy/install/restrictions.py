"""Lists of smtpd access restrictions as main.cf has them: read, and ours put where it belongs.

Postfix' own lists are words between commas or blanks; a group in braces is one word (postconf(5)). What a word means
is known here only as far as it takes to know what stands before the point where unknown destinations are refused;
a list with anything else in it is not touched.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

REFUSING = ("reject_unauth_destination", "defer_unauth_destination")
"""What refuses a relay attempt, and what we are to be asked before."""

PERMIT_LOCAL = "permit_auth_destination"

SEPARATORS = ", \t\r\n"

# These take the next word as their argument, besides every check_*_access (postconf(5); RESTRICTION_CLASS_README).
_WITH_ARGUMENT = frozenset({
    "check_policy_service", "permit_dnswl_client", "permit_rhswl_client", "reject_rbl_client",
    "reject_rhsbl_client", "reject_rhsbl_helo", "reject_rhsbl_recipient", "reject_rhsbl_reverse_client",
    "reject_rhsbl_sender", "sleep",
})  # fmt: skip

_ALONE = frozenset({
    "defer", "defer_if_permit", "defer_if_reject", "defer_unauth_destination", "permit",
    "permit_auth_destination", "permit_inet_interfaces", "permit_mx_backup", "permit_mynetworks",
    "permit_naked_ip_address", "permit_sasl_authenticated", "permit_tls_all_clientcerts",
    "permit_tls_clientcerts", "reject", "reject_authenticated_sender_login_mismatch",
    "reject_invalid_helo_hostname", "reject_invalid_hostname", "reject_known_sender_login_mismatch",
    "reject_multi_recipient_bounce", "reject_non_fqdn_helo_hostname", "reject_non_fqdn_hostname",
    "reject_non_fqdn_recipient", "reject_non_fqdn_sender", "reject_plaintext_session",
    "reject_sender_login_mismatch", "reject_unauth_destination", "reject_unauth_pipelining",
    "reject_unauthenticated_sender_login_mismatch", "reject_unknown_client", "reject_unknown_client_hostname",
    "reject_unknown_helo_hostname", "reject_unknown_hostname", "reject_unknown_recipient_domain",
    "reject_unknown_reverse_client_hostname", "reject_unknown_sender_domain", "reject_unlisted_recipient",
    "reject_unlisted_sender", "reject_unverified_recipient", "reject_unverified_sender", "warn_if_reject",
})  # fmt: skip

_ENDS_THE_LIST = ("permit", "reject", "defer")


class ListError(ValueError):
    """The list is not one that ours can be put into; the message says why."""


@dataclass(frozen=True, slots=True)
class Restriction:
    """One restriction of a list: its name as Postfix knows it, its argument, and where in the text it stands."""

    name: str
    argument: str
    start: int
    end: int


def split_words(text: str) -> list[tuple[str, int]]:
    """The words of a list and where each begins. Raises ListError for braces that do not match."""
    words: list[tuple[str, int]] = []
    start, depth = -1, 0
    for at, letter in enumerate(text):
        if letter in SEPARATORS and not depth:
            if start >= 0:
                words.append((text[start:at], start))
            start = -1
            continue
        start = at if start < 0 else start
        depth += (letter == "{") - (letter == "}")
        if depth < 0:
            break
    if depth:
        raise ListError("its braces do not match")
    if start >= 0:
        words.append((text[start:], start))
    return words


def parse_list(text: str, classes: Collection[str] = ()) -> list[Restriction]:
    """The restrictions of a list. Raises ListError for what is not understood, `classes` among it."""
    found: list[Restriction] = []
    words = split_words(text)
    rest = iter(words)
    for word, start in rest:
        name = word.lower()
        if name in _WITH_ARGUMENT or (name.startswith("check_") and name.endswith("_access")):
            argument, at = next(rest, ("", 0))
            if not argument:
                raise ListError(f"{word} has no argument")
            found.append(Restriction(name, argument, start, at + len(argument)))
        elif word in classes:
            raise ListError(f"{word} is a restriction class (smtpd_restriction_classes), and may permit or refuse")
        elif "$" in word.partition(":")[0]:
            raise ListError(f"{word} stands for another parameter's text")
        elif name in _ALONE or ":" in word:  # type:table alone is the old form of check_..._access
            found.append(Restriction(name, "", start, start + len(word)))
        else:
            raise ListError(f"{word} is no restriction that is known here")
    return found


def policy_server(argument: str) -> str:
    """The server that an argument of check_policy_service names, in the short form or the one in braces."""
    if argument.startswith("{"):
        words = split_words(argument[1:-1])
        return words[0][0] if words else ""
    return argument


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
    before = restrictions[: places[0]]
    for number, each in enumerate(before):
        warned = number and before[number - 1].name == "warn_if_reject"
        if each.name in _ENDS_THE_LIST and not warned:
            raise ListError(f"{each.name} stands before {restrictions[places[0]].name}, which is never reached")
    if before and before[-1].name == "warn_if_reject":
        raise ListError(f"warn_if_reject makes {restrictions[places[0]].name} a mere warning")
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
