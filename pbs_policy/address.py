"""The one canonical form of a client address, and the addresses that are never permitted.

Whatever text names a client (Postfix's client_address, Dovecot's IP, an administrator's argument) becomes a key of
the login table only through `ClientAddresses.parse`, so that a login and a relay attempt of the same client meet:

- an IPv4 address mapped into IPv6 (::ffff:203.0.113.77, as Dovecot shows it behind a proxy) is the IPv4 address, and
  so is one behind NAT64's well-known prefix (64:ff9b::203.0.113.77, RFC 6052);
- IPv6 is compressed lower case (RFC 5952); with ipv6_prefix = 64 it is its network, 2001:db8:1:2::/64;
- but an address whose neighbours are strangers to it is never widened: NAT64's 64:ff9b:1::/48 (each operator chooses
  where in it the IPv4 address stands, RFC 8215, so it is not folded either), Teredo 2001::/32, 6to4 2002::/16, ISATAP
  (::0:5efe:a.b.c.d, ::200:5efe:a.b.c.d), ORCHID 2001:10::/28 and 2001:20::/28, and ::/48, where RFC 2765 put IPv4;
- a zone id (fe80::1%eth0) is refused: it means something on one host only.

The post-login script stands alone and does the same in its own lines; the contract tests hold the two together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple
from unicodedata import normalize

Network = IPv4Network | IPv6Network

WIDEST = {4: 7, 6: 15}
"""Bits: no network of one's own is as wide."""

_NAT64 = IPv6Network("64:ff9b::/96")
_HOLD_IPV4 = (IPv6Network("::ffff:0:0/96"), _NAT64)
_IPV4_BEHIND = frozenset(network.network_address.packed[:12] for network in _HOLD_IPV4)

# The addresses that ipv6_prefix does not widen: by their first octets, ORCHID's, and ISATAP's by those in the middle.
_STRANGERS = (bytes(6), bytes.fromhex("0064ff9b0001"), bytes.fromhex("20010000"), bytes.fromhex("2002"))
_ISATAP = (bytes.fromhex("00005efe"), bytes.fromhex("02005efe"))
_NEVER_WIDENED = tuple(
    map(IPv6Network, ("::/48", "64:ff9b:1::/48", "2001::/32", "2001:10::/28", "2001:20::/28", "2002::/16"))
)

# Nobody reaches a mail server from these, or everybody on the host does: a webmail logs in from 127.0.0.1.
_NEVER_PERMITTED: tuple[tuple[Network, str], ...] = (
    (IPv4Network("0.0.0.0/8"), "unspecified"),
    (IPv4Network("127.0.0.0/8"), "loopback"),
    (IPv4Network("169.254.0.0/16"), "link_local"),
    (IPv4Network("224.0.0.0/3"), "multicast"),  # 240.0.0.0/4 and broadcast, reserved as it is, with it
    (IPv6Network("::1/128"), "loopback"),
    (IPv6Network("::/96"), "unspecified"),  # with the IPv4-compatible addresses that RFC 4291 retired
    (IPv6Network("fe80::/10"), "link_local"),
    (IPv6Network("ff00::/8"), "multicast"),
)
# Nearly every client is settled by its first octet; the rest may take the slow way.
_SUSPECT_V4 = frozenset((0, 127, 169, *range(224, 256)))
_SUSPECT_V6 = frozenset((0x00, 0xFE, 0xFF))

# Nobody's name, but a mistyped address: also a list, a range, a wildcard, one with a port, and one in brackets.
_is_like_address = re.compile(
    r"[0-9]+\.[0-9.*,;:?\[\]-]*|[0-9]+\.[0-9]+\..*|\[.*|[0-9A-Fa-f.]*:[0-9A-Fa-f:.,;*?\[\]-]*(%.*)?", re.DOTALL
).fullmatch


class AddressError(ValueError):
    """The text is not a client address, or not a network; the message says what was expected."""


class ClientAddress(NamedTuple):
    """`text` is the canonical form. `excluded` says why it may never relay (`loopback`, ..., `never_record`), or
    is empty. `host` is the address itself where `text` is the network around it (ipv6_prefix)."""

    text: str
    excluded: str = ""
    host: str = ""

    def names_denied(self, lengths: Set[tuple[int, int]]) -> list[str]:
        """Under which names, besides `text`, a deny of this client may stand: the networks of `lengths` that hold the
        address itself, and where 6/128 is one of the lengths, the address. So what was written under another
        ipv6_prefix is found as well."""
        if not lengths:
            return []  # nearly always
        host = self.host or self.text
        names = [host] if (6, 128) in lengths else []
        return [name for name in (*names, *networks_of(host, lengths)) if name != self.text]


# ClientAddress(...) is a function of Python's around this, and takes twice the time.
_new_address = partial(tuple.__new__, ClientAddress)


class Target(NamedTuple):
    """What an administrator permits, denies or revokes: an address in its canonical form, or a network, whose
    `length` is its IP version and bits. `excluded` and `host` as for ClientAddress."""

    text: str
    length: tuple[int, int] | None = None
    excluded: str = ""
    host: str = ""

    @property
    def deny_length(self) -> tuple[int, int] | None:
        """The length by which a deny of this is found: of a network, and of every IPv6 address, so that its deny
        holds under another ipv6_prefix as well."""
        if self.length or ":" not in self.text:
            return self.length
        return 6, int(self.text.partition("/")[2] or 128)


@dataclass(frozen=True, slots=True)
class ClientAddresses:
    """How this site names its clients: `ipv6_prefix` (bits, 128 for single addresses) and the networks of
    `never_record`."""

    ipv6_prefix: int = 128
    never_record: tuple[Network, ...] = ()

    def parse(self, text: str) -> ClientAddress:
        """The canonical client address of `text`. Raises AddressError where it is not an IP address."""
        try:
            if ":" not in text:
                packed = inet_pton(AF_INET, text)
                # What inet_pton takes of IPv4, four numbers without leading zeros, is canonical.
                if packed[0] in _SUSPECT_V4 or self.never_record:
                    return ClientAddress(text, self._excluded(packed))
                return _new_address((text, "", ""))
            packed = inet_pton(AF_INET6, text)
        except (OSError, ValueError):
            zone = ", without a zone id" if "%" in text else ""
            raise AddressError(f"not an IP address: {text!r} (expected 192.0.2.7 or 2001:db8::7{zone})") from None
        if packed[:12] in _IPV4_BEHIND:
            packed = packed[12:]
            return ClientAddress(inet_ntop(AF_INET, packed), self._excluded(packed))
        host = inet_ntop(AF_INET6, packed)
        if self.ipv6_prefix == 128 or stands_alone(packed):
            return ClientAddress(host, self._excluded(packed))
        return ClientAddress(_network(AF_INET6, packed, self.ipv6_prefix), self._excluded(packed), host)

    def parse_target(self, text: str) -> Target:
        """The address or network that an administrator names. Raises AddressError where `text` is neither."""
        if "/" not in text:
            client = self.parse(text)
            return Target(client.text, None, client.excluded, client.host)
        network = parse_network(text)
        version, bits = network.version, network.prefixlen
        if bits == network.max_prefixlen:
            client = self.parse(str(network.network_address))
            return Target(client.text, None, client.excluded, client.host)
        if not any(lies_in(network, each) for each in _NEVER_WIDENED):
            if bits == self.ipv6_prefix:
                return Target(str(network), None, self._excluded(network.network_address.packed))
            if bits > self.ipv6_prefix:
                hint = f"is narrower than ipv6_prefix = {self.ipv6_prefix}, which names the clients"
                raise AddressError(f"{text!r} {hint}")
        exclusions = (*_NEVER_PERMITTED, *self._own_exclusions())
        why = next((name for excluded, name in exclusions if lies_in(network, excluded)), "")
        return Target(str(network), (version, bits), why)

    def _own_exclusions(self) -> list[tuple[Network, str]]:
        return [(network, "never_record") for network in self.never_record]

    def _excluded(self, packed: bytes) -> str:
        if packed[0] not in (_SUSPECT_V4 if len(packed) == 4 else _SUSPECT_V6) and not self.never_record:
            return ""
        address = ip_address(packed)
        for network, name in (*_NEVER_PERMITTED, *self._own_exclusions()):
            if address in network:
                return name
        return ""


def stands_alone(packed: bytes) -> bool:
    """Whether the neighbours of an IPv6 address are strangers to it, so that ipv6_prefix does not count for it."""
    return (
        packed.startswith(_STRANGERS)
        or (packed[:3] == b"\x20\1\0" and packed[3] >> 4 in (1, 2))  # ORCHID
        or packed[8:12] in _ISATAP
    )


def networks_of(client_address: str, lengths: Iterable[tuple[int, int]]) -> list[str]:
    """The networks that hold a client (in its canonical form), narrowest first, among those of `lengths`: pairs of
    IP version and bits."""
    text, _, prefix = client_address.partition("/")
    version, family, widest = (6, AF_INET6, int(prefix or 128)) if ":" in text else (4, AF_INET, 32)
    packed = inet_pton(family, text)
    fitting = sorted({bits for wanted, bits in lengths if wanted == version and bits < widest}, reverse=True)
    return [_network(family, packed, bits) for bits in fitting]


def _network(family: int, packed: bytes, bits: int) -> str:
    host_bits = len(packed) * 8 - bits
    network = int.from_bytes(packed) >> host_bits << host_bits
    return f"{inet_ntop(family, network.to_bytes(len(packed)))}/{bits}"


def lies_in(inner: Network, outer: Network) -> bool:
    """Whether every address of `inner` is one of `outer`."""
    # The comparison of versions is what the library's own types ask for, and cannot see.
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]  # of one version


def looks_like_address(text: str) -> bool:
    """Whether `text` must be an address or network, right or wrong, and is nobody's name."""
    # A slash belongs to a network, unless an "@" says that this is a mail address. Other digits and dots than ASCII's
    # look alike, so they count as those.
    return "@" not in text and bool("/" in text or _is_like_address(normalize("NFKC", text)))


def parse_network(text: str) -> Network:
    """The network `192.0.2.0/24` or single address `192.0.2.7` that `text` names.

    Raises AddressError where it is neither, and, as Postfix does for mynetworks, where bits are set behind the
    prefix: 192.0.2.7/24 may mean the one host or the whole network. Refused as well: a network of ::ffff:0:0/96 or
    64:ff9b::/96, which would hold nobody, since such a client is known by its IPv4 address; and a wider one with
    64:ff9b::/96 in it, which would not hold those clients. (::/0 and the like are IPv6 as a whole, and mean no IPv4.)
    """
    # One way to write a network, which the script knows too: no masks and no zone ids, though ip_network takes them.
    try:
        if not re.fullmatch(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?", text):
            raise ValueError(text)
        meant = ip_network(text, strict=False)
    except ValueError:
        raise AddressError(f"not a network: {text!r} (expected 192.0.2.0/24 or 2001:db8::/32)") from None
    if any(lies_in(meant, each) for each in _HOLD_IPV4):
        raise AddressError(f"{text!r} maps IPv4 into IPv6: write it as an IPv4 network")
    if lies_in(_NAT64, meant) and int(meant.network_address):
        raise AddressError(f"{text!r} holds {_NAT64}, whose clients are known by their IPv4 addresses: name those")
    try:
        return ip_network(text)
    except ValueError:
        raise AddressError(f"{text!r} has bits set behind its prefix (did you mean {meant}?)") from None
