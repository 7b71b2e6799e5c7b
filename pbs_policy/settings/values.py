"""How the values of settings are written, as far as they have no file of their own (`duration`, `cap`, `address`,
`postfix/listener`, `store/redis_url`). Each parser raises ValueError, saying what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pbs_policy.address import Network, parse_network
from pbs_policy.cap import Cap
from pbs_policy.duration import parse_duration
from pbs_policy.postfix.listener import EXPECTED as LISTENER
from pbs_policy.postfix.listener import Listener


def _items(text: str) -> list[str]:
    return text.replace(",", " ").split()


def parse_listeners(text: str) -> tuple[Listener, ...]:
    listeners = tuple(Listener.parse(item) for item in _items(text))
    if not listeners:
        raise ValueError(f"expected at least one {LISTENER}")
    return listeners


def parse_listeners_or_none(text: str) -> tuple[Listener, ...]:
    return tuple(Listener.parse(item) for item in _items(text))


def parse_tcp_listeners(text: str) -> tuple[Listener, ...]:
    """Any number of listeners, none of them a unix socket: Dovecot reports to a URL with a host."""
    listeners = parse_listeners_or_none(text)
    if any(each.path for each in listeners):
        raise ValueError("expected inet:HOST:PORT, since Dovecot reports by TCP alone")
    return listeners


def parse_networks(text: str) -> tuple[Network, ...]:
    return tuple(parse_network(item) for item in _items(text))


def parse_yes_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("expected yes or no")
    return text == "yes"


def parse_ipv6_prefix(text: str) -> int:
    # RFC 6177: a site gets between a /48 and a /64; anything wider would permit strangers.
    if not text.isascii() or not text.isdecimal() or not 48 <= int(text) <= 128:
        raise ValueError("expected a number of bits from 48 to 128")
    return int(text)


def parse_mode(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError("expected an octal mode such as 0660")
    return int(text, 8)


def parse_path(text: str) -> str:
    """An absolute path without blanks, or nothing: a blank is more often a line that was swallowed than a name."""
    if text and not (text.startswith("/") and text.isprintable() and " " not in text):
        raise ValueError("expected an absolute path without blanks")
    return text


def parse_services(text: str) -> frozenset[str]:
    services = frozenset(_items(text))
    if not all(re.fullmatch(r"[A-Za-z0-9_-]{1,32}", service) for service in services):
        raise ValueError("expected words such as pop3 imap")
    return services


def parse_cap(text: str) -> Cap | None:
    return Cap.parse(text) if text else None


def parse_duration_or_0(text: str) -> int:
    """Seconds; 0 without a unit."""
    return 0 if text == "0" else parse_duration(text)


def choice(*choices: str) -> Callable[[str], str]:
    """A parser of one of these words."""
    return matching("|".join(choices), f"{', '.join(choices[:-1])} or {choices[-1]}")


def matching(pattern: str, expected: str) -> Callable[[str], str]:
    """A parser of text that the whole of a pattern matches."""
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {expected}")
        return text

    return parse


parse_key_prefix = matching(r"[\x21-\x7e]{1,64}", "1 to 64 printable ASCII characters without blanks")
parse_word = matching(r"\S*", "one word")
parse_log_to = matching(r"stderr|syslog(:/[^\s\0]+)?", "stderr, syslog or syslog:/PATH")
