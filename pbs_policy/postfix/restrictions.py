"""Lists of smtpd access restrictions as Postfix reads them, and what check_policy_service is given. Pure.

A list is words between commas or blanks; a group in braces is one word (postconf(5)). What cannot be right is read as
smtpd would read it; `is_balanced`, `is_known` and `PolicyCheck.fault` tell that smtpd does not take it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from pbs_policy.postfix.listener import Listener

RELAY, RECIPIENT = "smtpd_relay_restrictions", "smtpd_recipient_restrictions"
LISTS = (RELAY, "smtpd_client_restrictions", "smtpd_helo_restrictions", "smtpd_sender_restrictions", RECIPIENT,
         "smtpd_data_restrictions", "smtpd_end_of_data_restrictions", "smtpd_etrn_restrictions")  # fmt: skip
"""Every list of restrictions that smtpd has for clients."""

CHECK = "check_policy_service"
PERMIT_LOCAL = "permit_auth_destination"
REFUSING = ("reject_unauth_destination", "defer_unauth_destination")
"""What refuses a relay attempt, and what we are to be asked before."""

REFUSALS = frozenset({"reject", "defer", *REFUSING})
"""What ends a relay attempt when it comes before us, and of which smtpd wants one. A `defer_if_permit` is no end."""

SEPARATORS = ", \t\r\n"

# These take the next word as their argument (postconf(5)).
_WITH_ARGUMENT = re.compile(
    r"check_policy_service|check_\w+_access|(?:reject|permit)_(?:rbl|rhsbl|dnswl|rhswl)_\w+|sleep"
)

_ALONE = REFUSALS | {
    "defer_if_permit", "defer_if_reject", "permit", "permit_auth_destination", "permit_inet_interfaces",
    "permit_mx_backup", "permit_mynetworks", "permit_naked_ip_address", "permit_sasl_authenticated",
    "permit_tls_all_clientcerts", "permit_tls_clientcerts", "reject_authenticated_sender_login_mismatch",
    "reject_invalid_helo_hostname", "reject_invalid_hostname", "reject_known_sender_login_mismatch",
    "reject_multi_recipient_bounce", "reject_non_fqdn_helo_hostname", "reject_non_fqdn_hostname",
    "reject_non_fqdn_recipient", "reject_non_fqdn_sender", "reject_plaintext_session",
    "reject_sender_login_mismatch", "reject_unauth_pipelining", "reject_unauthenticated_sender_login_mismatch",
    "reject_unknown_client", "reject_unknown_client_hostname", "reject_unknown_helo_hostname",
    "reject_unknown_hostname", "reject_unknown_recipient_domain", "reject_unknown_reverse_client_hostname",
    "reject_unknown_sender_domain", "reject_unlisted_recipient", "reject_unlisted_sender",
    "reject_unverified_recipient", "reject_unverified_sender", "warn_if_reject",
}  # fmt: skip

_HOST_AND_PORT = re.compile(r"(\[[^]]*\]|[^:]+):\w+")
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - replaced, not listened on
_LOCALHOST = ("localhost", *_ANY_ADDRESS, *_ANY_ADDRESS.values())


class Restriction(NamedTuple):
    """One restriction of a list, and where in the text it begins. `is_warned`: warn_if_reject stands before it.
    `stands_in` is the parameter whose text that is, where it is known: a list or a restriction class."""

    name: str
    argument: str = ""
    start: int = 0
    is_warned: bool = False
    stands_in: str = ""

    @property
    def is_known(self) -> bool:
        """Whether Postfix 3.7 has it; a type:table alone is the old form of check_..._access."""
        return self.takes_argument or self.name in _ALONE or ":" in self.name

    @property
    def takes_argument(self) -> bool:
        """Whether the next word is its argument."""
        return _WITH_ARGUMENT.fullmatch(self.name) is not None

    @property
    def refuses(self) -> bool:
        """Whether nothing that relays gets past it."""
        return self.name in REFUSALS and not self.is_warned


class PolicyCheck(NamedTuple):
    """What `check_policy_service` was given: the endpoint and its attributes. `fault` says why smtpd rejects it, and
    `mend` what to write instead, where that is certain."""

    endpoint: str
    attributes: dict[str, str]
    fault: str = ""
    mend: str = ""


def split_words(text: str) -> list[tuple[str, int]]:
    """The words of a list and where each begins; braces stay on."""
    found: list[tuple[str, int]] = []
    start, depth = -1, 0
    for at, letter in enumerate(f"{text} "):
        if at == len(text) or (letter in SEPARATORS and not depth):
            if start >= 0:
                found.append((text[start:at], start))
            start = -1
            continue
        start = at if start < 0 else start
        depth = max(0, depth + (letter == "{") - (letter == "}"))
    return found


def words(text: str) -> list[str]:
    """The words of a list."""
    return [word for word, _ in split_words(text)]


def is_balanced(text: str) -> bool:
    """Whether each brace has its other half."""
    depth = 0
    for letter in text:
        depth += (letter == "{") - (letter == "}")
        if depth < 0:
            return False
    return not depth


def parse_restrictions(text: str) -> list[Restriction]:
    """The restrictions of a list, those that Postfix knows in lower case. One that lacks its argument has ""."""
    found: list[Restriction] = []
    items = iter(split_words(text))
    for word, start in items:
        name = word.lower()
        warned = bool(found) and found[-1].name == "warn_if_reject"
        each = Restriction(name if Restriction(name).is_known and ":" not in word else word, "", start, warned)
        found.append(each._replace(argument=next(items, ("", 0))[0]) if each.takes_argument else each)
    return found


def find_refusal(restrictions: Sequence[Restriction]) -> int | None:
    """The number of the first restriction that no relay attempt gets past."""
    return next((at for at, each in enumerate(restrictions) if each.refuses), None)


def parse_policy_check(argument: str) -> PolicyCheck:
    """The argument of check_policy_service: an endpoint, or an endpoint with attributes (SMTPD_POLICY_README)."""
    endpoint, *rest = words(_without_braces(argument)) or [""]
    attributes: dict[str, str] = {}
    if endpoint.partition(":")[0] not in ("inet", "unix", "local"):
        if _HOST_AND_PORT.fullmatch(endpoint):
            return PolicyCheck(endpoint, attributes, f"inet: is missing before {endpoint}", f"inet:{endpoint}")
        return PolicyCheck(endpoint, attributes, f"{endpoint!r} is neither inet:HOST:PORT nor unix:PATH")
    for item in rest:
        name, equals, value = _without_braces(item).partition("=")
        if not equals:
            return PolicyCheck(endpoint, attributes, f"no = in {item!r} (braces around `name = value` with blanks?)")
        attributes[name.strip()] = value.strip()
    return PolicyCheck(endpoint, attributes)


def _without_braces(text: str) -> str:
    return text[1:-1].strip() if text.startswith("{") and text.endswith("}") else text


def is_at(endpoint: str, listener: Listener, queue_directory: str) -> bool:
    """Whether what Postfix asks at `endpoint` is meant to be this listener, with the transport or without.

    A path without a leading slash is below the queue directory. An absolute one may be meant as seen from inside the
    chroot or from outside: that it is ours can be told either way, not that it is found there.
    """
    kind, _, rest = endpoint.rpartition(":") if endpoint.count(":") == 1 else endpoint.partition(":")
    if kind in ("unix", "local"):
        inside = str(PurePosixPath(queue_directory, rest.lstrip("/")))
        return listener.path != "" and listener.path in (rest, inside)
    host, _, port = endpoint.removeprefix("inet:").rpartition(":")
    host = host.strip("[]") or "localhost"
    if listener.path or port != str(listener.port):
        return False
    if "localhost" in (host, listener.host):
        return host in _LOCALHOST and listener.host in _LOCALHOST
    return listener.host in (host, *_ANY_ADDRESS)


def endpoint_of(listener: Listener, queue_directory: str) -> str:
    """How main.cf names a listener: a path relative to the queue directory is found chrooted or not, and a service
    that listens on every address is asked on this host's own."""
    if listener.path and PurePosixPath(listener.path).is_relative_to(queue_directory):
        return f"unix:{PurePosixPath(listener.path).relative_to(queue_directory)}"
    return str(Listener(_ANY_ADDRESS.get(listener.host, listener.host), listener.port, listener.path))
