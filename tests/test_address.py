"""Client addresses: one canonical form of each, what is refused, and what is never permitted."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pbs_policy.address import AddressError, ClientAddress, ClientAddresses, Network, Target, parse_network

PLAIN = ClientAddresses()

_v4 = st.integers(0, 2**32 - 1).map(IPv4Address)
_GROUPS = [0, 0, 0, 1, 0xFFFF, 0x2001, 0xDB8, 0xFE80, 0x64, 0xFF9B, 0x2002, 0x5EFE]
_v6 = st.one_of(
    st.integers(0, 2**128 - 1),
    # Mostly zeros, where the compression is: eight groups out of few values.
    st.lists(st.sampled_from(_GROUPS), min_size=8, max_size=8).map(
        lambda groups: sum(group << 16 * place for place, group in enumerate(groups))
    ),
).map(IPv6Address)


def holds_ipv4(address: IPv6Address) -> bool:
    return any(address in ip_network(network) for network in ("::ffff:0:0/96", "64:ff9b::/96"))


def is_isatap(address: IPv6Address) -> bool:
    return int(address) >> 32 & 0xFFFFFFFF in (0x5EFE, 0x02005EFE)


NEVER_WIDENED = ("::/48", "64:ff9b:1::/48", "2001::/32", "2001:10::/28", "2001:20::/28", "2002::/16")


def _spelt(address: IPv6Address, upper: bool, exploded: bool) -> str:
    text = address.exploded if exploded else address.compressed
    return text.upper() if upper else text


_v6_spellings = st.builds(_spelt, _v6, st.booleans(), st.booleans())


# --- the canonical form


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:203.0.113.77", "203.0.113.77"),
        ("::FFFF:203.0.113.77", "203.0.113.77"),
        ("::ffff:cb00:714d", "203.0.113.77"),
        ("0:0:0:0:0:ffff:203.0.113.77", "203.0.113.77"),
        ("0000:0000:0000:0000:0000:ffff:cb00:714d", "203.0.113.77"),
        ("2001:DB8::7", "2001:db8::7"),
        ("2001:0db8:0000:0000:0000:0000:0000:0007", "2001:db8::7"),
        ("2001:db8:0:0:0:0:2:1", "2001:db8::2:1"),
        # RFC 5952, section 4.2: "::" is the longest run, the first of two, and never a single group.
        ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
        ("2001:db8::1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
        ("2001:0:0:1:0:0:0:1", "2001:0:0:1::1"),
        ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
        ("2001:db8:aaaa:bbbb:cccc:dddd::1", "2001:db8:aaaa:bbbb:cccc:dddd:0:1"),
        ("2001:db8::192.0.2.33", "2001:db8::c000:221"),
        ("64:ff9b::192.0.2.33", "192.0.2.33"),
        ("64:FF9B:0:0:0:0:c000:221", "192.0.2.33"),
        ("64:ff9b::1:c000:221", "64:ff9b::1:c000:221"),
        ("64:ff9b:1::192.0.2.33", "64:ff9b:1::c000:221"),
        ("::ffff:0:c000:221", "::ffff:0:c000:221"),
        ("::1:ffff:c000:221", "::1:ffff:c000:221"),
    ],
)
def test_every_spelling_of_an_address_has_one_canonical_form(text: str, canonical: str) -> None:
    assert PLAIN.parse(text) == ClientAddress(canonical)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "unknown", "localhost", "192.0.2", "192.0.2.7.1", "192.0.2.256", "192.0.2.07", "192.0.2.007",
        "0300.0.2.7", "0xc0.0.2.7", "3221225991", " 192.0.2.7", "192.0.2.7 ", "192.0.2.7\n", "192.0.2.7\0", "\0",
        "192.0.2.7/32", "192.0.2.\u0667", "\uff11\uff19\uff12.0.2.7", "+192.0.2.7", "192.0.2.-7", "192,0,2,7",
        "[2001:db8::7]", "2001:db8::7 ", "2001:db8::7\0", "2001:db8::7/64", "2001:db8::%eth0", "2001:db8",
        "2001:db8:::7", "2001:db8::1::1", "2001:db8::12345", ":", ":::", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9",
        "::ffff:192.0.2.256", "::ffff:192.0.2.07", "2001:db8::g", "\udcff", "2001:db8::\u0667", "alice@example.com",
    ],
)  # fmt: skip
def test_what_is_not_an_address_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(AddressError, match=r"^not an IP address: .* \(expected 192\.0\.2\.7 or 2001:db8::7"):
        PLAIN.parse(text)


def test_a_zone_id_is_refused_by_name_because_it_means_something_on_one_host_only() -> None:
    with pytest.raises(AddressError, match=r", without a zone id\)$"):
        PLAIN.parse("fe80::1%eth0")


@given(_v6_spellings)
@example("::ffff:0:0")
@example("2001:db8:0:1:1:1:1:1")
def test_ipv6_is_named_as_the_standard_library_names_it(text: str) -> None:
    address = IPv6Address(text)
    if address in ip_network("::/96"):
        return  # the retired IPv4-compatible addresses: excluded, however they are written
    expected = str(IPv4Address(int(address) & 0xFFFFFFFF)) if holds_ipv4(address) else address.compressed
    assert PLAIN.parse(text).text == expected


@given(_v4)
def test_ipv4_is_the_same_alone_and_mapped_into_ipv6(address: IPv4Address) -> None:
    alone = PLAIN.parse(str(address))
    assert alone.text == str(address)
    mapped = IPv6Address(int(address) | 0xFFFF << 32)
    for text in (f"::ffff:{address}", mapped.compressed, mapped.exploded.upper()):
        assert PLAIN.parse(text) == alone


@given(st.one_of(_v4.map(str), _v6_spellings))
@example("::1.2.3.4")
def test_the_canonical_form_is_its_own_canonical_form(text: str) -> None:
    once = PLAIN.parse(text)
    assert PLAIN.parse(once.text) == once


@given(st.one_of(st.text(max_size=40), st.text("0123456789abcdf.:%/ ", max_size=20)))
def test_any_text_is_an_address_or_refused_as_the_standard_library_has_it(text: str) -> None:
    try:
        found = PLAIN.parse(text)
    except AddressError:
        if "%" not in text:  # the standard library knows zone ids
            with pytest.raises(ValueError):
                ip_address(text)
        return
    packed = ip_address(text).packed
    address = ip_address(text)
    folded = isinstance(address, IPv6Address) and holds_ipv4(address)
    assert ip_address(found.text).packed == (packed[12:] if folded else packed)


# --- what is never permitted: each range at both of its edges, and one address further


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.0.0.0", "unspecified"),  # noqa: S104 - nobody listens here
        ("0.255.255.255", "unspecified"),
        ("1.0.0.0", ""),
        ("126.255.255.255", ""),
        ("127.0.0.0", "loopback"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.255", "loopback"),
        ("128.0.0.0", ""),
        ("169.253.255.255", ""),
        ("169.254.0.0", "link_local"),
        ("169.254.255.255", "link_local"),
        ("169.255.0.0", ""),
        ("223.255.255.255", ""),
        ("224.0.0.0", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.0", "multicast"),
        ("255.255.255.255", "multicast"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::2", "unspecified"),
        ("::127.0.0.1", "unspecified"),
        ("::ffff:ffff", "unspecified"),
        ("::1:0:0", ""),
        ("::fffe:0:0", ""),
        ("fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""),
        ("fe80::", "link_local"),
        ("febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "link_local"),
        ("fec0::", ""),
        ("feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""),
        ("ff00::", "multicast"),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "multicast"),
        ("::ffff:0.0.0.0", "unspecified"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.1.1", "link_local"),
        ("::ffff:255.255.255.255", "multicast"),
        ("64:ff9b::", "unspecified"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("64:ff9b::169.254.1.1", "link_local"),
        ("64:ff9b::224.0.0.1", "multicast"),
        ("64:ff9b::192.0.2.7", ""),
        ("64:ff9b:1::127.0.0.1", ""),
        ("10.0.0.1", ""),
        ("192.168.0.1", ""),
        ("fd00::1", ""),
    ],
)
@pytest.mark.parametrize("never_record", [(), (parse_network("203.0.113.0/24"),)], ids=["", "never_record"])
def test_the_edges_of_what_is_never_permitted(text: str, why: str, never_record: tuple[Network, ...]) -> None:
    """With never_record set, the check by first octet is not the short way any more: it has to say the same."""
    assert ClientAddresses(never_record=never_record).parse(text).excluded == why


@given(st.one_of(_v4, _v6))
@example(IPv6Address("fec0::1"))
def test_loopback_multicast_and_link_local_are_what_the_standard_library_says(
    address: IPv4Address | IPv6Address,
) -> None:
    excluded = PLAIN.parse(str(address)).excluded
    if isinstance(address, IPv6Address) and holds_ipv4(address):
        address = IPv4Address(int(address) & 0xFFFFFFFF)
    assert (excluded == "loopback") == address.is_loopback
    assert (excluded == "link_local") == address.is_link_local
    if address.is_unspecified:
        assert excluded == "unspecified"
    if address.is_multicast:
        assert excluded == "multicast"


def test_never_record_excludes_its_networks_and_no_neighbour() -> None:
    addresses = ClientAddresses(never_record=(parse_network("192.0.2.128/25"), parse_network("2001:db8:1::/48")))
    assert addresses.parse("192.0.2.127").excluded == ""
    assert addresses.parse("192.0.2.128").excluded == "never_record"
    assert addresses.parse("192.0.2.255").excluded == "never_record"
    assert addresses.parse("::ffff:192.0.2.255").excluded == "never_record"
    assert addresses.parse("64:ff9b::192.0.2.255").excluded == "never_record"
    assert addresses.parse("64:ff9b::192.0.2.127").excluded == ""
    assert addresses.parse("2001:db8:0:ffff::").excluded == ""
    assert addresses.parse("2001:db8:1::").excluded == "never_record"
    assert addresses.parse("2001:db8:1:ffff:ffff:ffff:ffff:ffff").excluded == "never_record"
    assert addresses.parse("2001:db8:2::").excluded == ""
    assert addresses.parse("127.0.0.1").excluded == "loopback"


def test_never_record_of_everything_leaves_nobody() -> None:
    addresses = ClientAddresses(never_record=(parse_network("0.0.0.0/0"), parse_network("::/0")))
    assert addresses.parse("192.0.2.7").excluded == addresses.parse("2001:db8::7").excluded == "never_record"


# --- ipv6_prefix


def test_with_a_prefix_an_ipv6_address_is_its_network_and_ipv4_is_never_widened() -> None:
    addresses = ClientAddresses(ipv6_prefix=64)
    assert addresses.parse("2001:db8:1:2:3:4:5:6").text == "2001:db8:1:2::/64"
    assert addresses.parse("2001:db8:1:2::").text == "2001:db8:1:2::/64"
    assert addresses.parse("2001:db8:1:3::1").text == "2001:db8:1:3::/64"
    assert addresses.parse("192.0.2.7").text == addresses.parse("::ffff:192.0.2.7").text == "192.0.2.7"


def test_a_prefix_does_not_hide_what_is_never_permitted() -> None:
    addresses = ClientAddresses(ipv6_prefix=48, never_record=(parse_network("2001:db8::7"),))
    assert addresses.parse("fe80::1").excluded == "link_local"
    assert addresses.parse("::1").excluded == "loopback"
    assert addresses.parse("2001:db8::7").excluded == "never_record"
    assert addresses.parse("2001:db8::8").excluded == ""


@given(_v6, st.integers(48, 127))
def test_a_network_is_named_as_the_standard_library_names_it(address: IPv6Address, prefix: int) -> None:
    network = ip_network((int(address), prefix), strict=False)
    if holds_ipv4(address) or is_isatap(address) or any(address in ip_network(each) for each in NEVER_WIDENED):
        return
    assert ClientAddresses(ipv6_prefix=prefix).parse(address.compressed).text == network.compressed


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("64:ff9b::198.51.100.11", "198.51.100.11"),
        ("64:ff9b:0:0:0:1:c633:640b", "64:ff9b::/64"),
        ("64:ff9b:1:2:3:4:5:6", "64:ff9b:1:2:3:4:5:6"),
        ("64:ff9b:2:2:3:4:5:6", "64:ff9b:2:2::/64"),
        ("2001:0:53aa:64c:2:3:4:5", "2001:0:53aa:64c:2:3:4:5"),
        ("2001:1:53aa:64c:2:3:4:5", "2001:1:53aa:64c::/64"),
        ("2002:c633:640b:1:2:3:4:5", "2002:c633:640b:1:2:3:4:5"),
        ("2003:c633:640b:1:2:3:4:5", "2003:c633:640b:1::/64"),
        ("2001:db8:1:2:0:5efe:198.51.100.11", "2001:db8:1:2:0:5efe:c633:640b"),
        ("2001:db8:1:2:200:5efe:198.51.100.11", "2001:db8:1:2:200:5efe:c633:640b"),
        ("2001:db8:1:2:100:5efe:198.51.100.11", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:0:5eff:198.51.100.11", "2001:db8:1:2::/64"),
        ("2001:f:ffff:ffff::1", "2001:f:ffff:ffff::/64"),
        ("2001:10::1", "2001:10::1"),
        ("2001:2f:ffff:ffff::1", "2001:2f:ffff:ffff::1"),
        ("2001:30::1", "2001:30::/64"),
        ("::ffff:0:198.51.100.11", "::ffff:0:c633:640b"),
        ("0:0:1::1", "0:0:1::/64"),
    ],
)
def test_an_address_whose_neighbours_are_strangers_is_never_widened(text: str, name: str) -> None:
    """Otherwise one login would permit all of IPv4 (NAT64), or everybody who uses the same relay or tunnel."""
    host = str(IPv6Address(text)) if "/" in name else ""
    assert ClientAddresses(ipv6_prefix=64).parse(text) == ClientAddress(name, "", host)


@given(st.sampled_from(NEVER_WIDENED), st.integers(0, 2**112), st.integers(48, 128))
def test_in_a_network_of_strangers_no_prefix_counts(network: str, offset: int, prefix: int) -> None:
    whole = ip_network(network)
    address = whole[offset % whole.num_addresses]
    assert isinstance(address, IPv6Address)
    if address not in ip_network("::/96") and not holds_ipv4(address):
        assert ClientAddresses(ipv6_prefix=prefix).parse(str(address)).text == address.compressed


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("2001:db8:1:2::/64", None),
        ("2001:db8::/32", (6, 32)),
        ("2002:c633:640b:1::/64", (6, 64)),
        ("2002:c633:640b:1:2::/80", (6, 80)),
        ("64:ff9b:1:2::/64", (6, 64)),
        ("2001::/32", (6, 32)),
    ],
)
def test_where_no_prefix_counts_a_network_is_a_network_however_narrow(text: str, length: tuple[int, int]) -> None:
    assert ClientAddresses(ipv6_prefix=64).parse_target(text) == Target(text, length)


@given(st.integers(0, 2**128 - 1).map(IPv6Address), st.integers(48, 127))
@example(IPv6Address("2001:db8::5eff:0:1"), 95)
@example(IPv6Address("2001:db8::5efe:0:1"), 95)
def test_a_widened_client_is_the_network_of_its_name(address: IPv6Address, prefix: int) -> None:
    addresses = ClientAddresses(ipv6_prefix=prefix)
    client = addresses.parse(str(address))
    if "/" in client.text:
        assert addresses.parse_target(client.text).text == client.text


# --- networks of never_record


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("192.0.2.7/32", "192.0.2.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:db8::7", "2001:db8::7/128"),
    ],
)
def test_a_network_or_a_single_address_is_a_network(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    ("text", "meant"),
    [("192.0.2.7/24", "192.0.2.0/24"), ("192.0.2.128/0", "0.0.0.0/0"), ("2001:db8::1/64", "2001:db8::/64")],
)
def test_bits_behind_the_prefix_are_refused_because_they_may_mean_the_one_host(text: str, meant: str) -> None:
    with pytest.raises(AddressError) as refused:
        parse_network(text)
    assert str(refused.value) == f"{text!r} has bits set behind its prefix (did you mean {meant}?)"


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "/24", "example.com", "192.0.2.0/33", "192.0.2.0/-1", "192.0.2.0/", "192.0.2.0/24/24", "192.0.2/24",
        "2001:db8::/129", "192.0.2.0/\u0662\u0664", "42", "192.0.2.0/24 ", "192.0.2.0/255.255.255.0",
        "192.0.2.0/0.0.0.255", "fe80::1%eth0", "2001:db8::%1/64",
    ],
)  # fmt: skip
def test_what_is_not_a_network_is_refused_with_what_was_expected(text: str) -> None:
    """A mask is a second spelling that the script does not know, and a zone id means something on one host only."""
    with pytest.raises(AddressError, match=r"^not a network: .* \(expected 192\.0\.2\.0/24 or 2001:db8::/32\)$"):
        parse_network(text)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("::ffff:0:0/96", "maps IPv4 into IPv6: write it as an IPv4 network"),
        ("::ffff:192.0.2.0/120", "maps IPv4 into IPv6: write it as an IPv4 network"),
        ("64:ff9b::/96", "maps IPv4 into IPv6: write it as an IPv4 network"),
        ("64:ff9b::192.0.2.0/120", "maps IPv4 into IPv6: write it as an IPv4 network"),
        ("64:ff9b::192.0.2.7", "maps IPv4 into IPv6: write it as an IPv4 network"),
        ("64:ff9b::/64", "holds 64:ff9b::/96, whose clients are known by their IPv4 addresses: name those"),
        ("64:ff9b::/32", "holds 64:ff9b::/96, whose clients are known by their IPv4 addresses: name those"),
        ("40::/10", "holds 64:ff9b::/96, whose clients are known by their IPv4 addresses: name those"),
    ],
)
def test_a_network_that_would_not_hold_its_clients_is_refused(text: str, error: str) -> None:
    with pytest.raises(AddressError) as refused:
        parse_network(text)
    assert str(refused.value) == f"{text!r} {error}"


@pytest.mark.parametrize("text", ["::/0", "::/9", "64:ff9b:1::/48", "64:ff9a::/32", "2002::/16"])
def test_a_network_that_holds_all_clients_it_names_is_taken(text: str) -> None:
    assert str(parse_network(text)) == text


@given(st.text(max_size=30))
def test_any_text_is_a_network_or_refused(text: str) -> None:
    with suppress(AddressError):
        parse_network(text)
