"""Networks: how administrators name them, which of them hold a client, which prefix lengths are in use, and how soon
a running service knows of a new one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis import Redis

from pbs_policy.address import AddressError, ClientAddresses, Network, Target, networks_of, parse_network
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.service.upkeep import INTERVAL
from pbs_policy.store.question import Command
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.networks import Lengths, parse_lengths, serialise_lengths
from pbs_policy.table.records import Permit
from tests.service import Client, Service
from tests.stores import client_on, connect, table_on, target

lengths = st.frozensets(
    st.tuples(st.just(4), st.integers(1, 31)) | st.tuples(st.just(6), st.integers(1, 127)), max_size=40
)
clients = st.ip_addresses().map(str).map(ClientAddresses().parse)


# --- the lengths in use, as they stand in Redis


def test_the_lengths_in_use_are_words_of_version_and_bits() -> None:
    assert parse_lengths(b"4/24 6/48") == {(4, 24), (6, 48)}
    assert serialise_lengths([(6, 48), (4, 24), (4, 8)]) == b"4/8 4/24 6/48"
    assert parse_lengths(None) == parse_lengths(b"") == frozenset()


@given(lengths)
def test_the_lengths_are_read_as_they_were_written(known: Lengths) -> None:
    assert parse_lengths(serialise_lengths(known)) == known


@pytest.mark.parametrize(
    "word",
    [b"4", b"4/", b"/24", b"4/32", b"4/33", b"6/129", b"5/24", b"4/-1", b"4/024", b"4/+8", b"x", b"\xff", b"6/1e1"],
)
def test_what_is_no_length_is_passed_over(word: bytes) -> None:
    assert parse_lengths(b"4/24 " + word + b" 6/48") == {(4, 24), (6, 48)}


@given(st.binary())
@example(b"4/24" * 1000)
def test_any_value_gives_lengths_of_which_each_is_written_back(value: bytes) -> None:
    known = parse_lengths(value)
    assert parse_lengths(serialise_lengths(known)) == known
    assert all(0 <= bits < {4: 32, 6: 128}[version] for version, bits in known)


# --- the networks that hold a client


def test_the_networks_of_a_client_are_those_of_the_lengths_in_use_narrowest_first() -> None:
    known = [(4, 8), (6, 32), (4, 24), (4, 31), (6, 64)]
    assert networks_of("192.0.2.7", known) == ["192.0.2.6/31", "192.0.2.0/24", "192.0.0.0/8"]
    assert networks_of("2001:db8::7", known) == ["2001:db8::/64", "2001:db8::/32"]
    assert networks_of("192.0.2.7", []) == []


def test_a_client_that_is_a_network_itself_is_in_the_wider_ones_only() -> None:
    client = ClientAddresses(ipv6_prefix=64).parse("2001:db8:1:2::7").text
    assert networks_of(client, [(6, 48), (6, 64), (6, 96), (4, 24)]) == ["2001:db8:1::/48"]


@given(st.ip_addresses(), lengths)
@example(ip_address("2001:db8::1:0:0:1"), frozenset([(6, 127), (6, 80), (6, 65)]))
@example(ip_address("1:0:0:1::"), frozenset([(6, 60), (6, 64), (6, 16)]))
def test_they_are_named_as_the_standard_library_names_them(address: object, known: Lengths) -> None:
    client = ClientAddresses().parse(str(address))
    if client.excluded:
        return  # never asked for, and glibc writes some of them in another way
    wanted = sorted((bits for version, bits in known if version == ip_address(client.text).version), reverse=True)
    expected = [str(ip_network(f"{client.text}/{bits}", strict=False)) for bits in wanted]
    assert networks_of(client.text, known) == expected


# --- how an administrator names them


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("192.0.2.7", Target("192.0.2.7")),
        ("::ffff:192.0.2.7", Target("192.0.2.7")),
        ("2001:DB8::7", Target("2001:db8::7")),
        ("192.0.2.7/32", Target("192.0.2.7")),
        ("2001:db8::7/128", Target("2001:db8::7")),
        ("192.0.2.0/24", Target("192.0.2.0/24", (4, 24))),
        ("192.0.2.6/31", Target("192.0.2.6/31", (4, 31))),
        ("2001:0DB8:0::/32", Target("2001:db8::/32", (6, 32))),
        ("127.0.0.1", Target("127.0.0.1", None, "loopback")),
        ("127.0.0.0/8", Target("127.0.0.0/8", (4, 8), "loopback")),
        ("127.1.0.0/16", Target("127.1.0.0/16", (4, 16), "loopback")),
        ("fe80::/64", Target("fe80::/64", (6, 64), "link_local")),
        ("10.1.0.0/16", Target("10.1.0.0/16", (4, 16), "never_record")),
        ("10.1.2.0/24", Target("10.1.2.0/24", (4, 24), "never_record")),
        ("10.0.0.0/8", Target("10.0.0.0/8", (4, 8))),  # some of it is excluded, and stays so
    ],
)
def test_an_address_or_network_has_one_name(text: str, target: Target) -> None:
    assert ClientAddresses(never_record=(parse_network("10.1.0.0/16"),)).parse_target(text) == target


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("192.0.2.7/24", "bits set behind its prefix"),
        ("192.0.2.0/33", "not a network"),
        ("alice@example.com", "not an IP address"),
        ("alice/x@example.com", "not a network"),
        ("all", "not an IP address"),
        ("", "not an IP address"),
        ("::ffff:192.0.2.0/120", "write it as an IPv4 network"),
    ],
)
def test_what_names_none_is_refused_with_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(AddressError, match=said):
        ClientAddresses().parse_target(text)


def test_with_a_prefix_the_clients_network_is_a_client_and_nothing_is_narrower() -> None:
    addresses = ClientAddresses(ipv6_prefix=64)
    assert addresses.parse_target("2001:db8:1:2::/64") == Target("2001:db8:1:2::/64")
    assert addresses.parse_target("2001:db8:1:2::7") == Target("2001:db8:1:2::/64", host="2001:db8:1:2::7")
    assert addresses.parse_target("2001:db8:1::/48") == Target("2001:db8:1::/48", (6, 48))
    for text in ("2001:db8:1:2::/65", "2001:db8:1:2::/127"):
        with pytest.raises(AddressError, match="narrower than ipv6_prefix = 64"):
            addresses.parse_target(text)
    assert addresses.parse_target("192.0.2.0/31") == Target("192.0.2.0/31", (4, 31)), "IPv4 is never widened"


networks_of_any_size = st.ip_addresses().flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(lambda bits: ip_network((address, bits), strict=False))
)


@given(networks_of_any_size)
@example(ip_network("0.0.0.0/0"))
@example(ip_network("::/0"))
@example(ip_network("::/1"))
def test_a_network_that_can_be_named_is_found_for_each_of_its_clients(network: Network) -> None:
    """Or it is refused: a deny that nobody would ever look for is worse than none."""
    addresses = ClientAddresses()
    try:
        target = addresses.parse_target(str(network))
    except AddressError:
        return
    assert addresses.parse_target(target.text) == target
    if target.length is None or target.excluded:
        return
    written = parse_lengths(serialise_lengths([target.length]))
    for address in (network[0], network[-1]):
        client = addresses.parse(str(address))
        if not client.excluded and ip_address(client.text).version == network.version:
            assert target.text in networks_of(client.text, written)


# --- how the table keeps them


def lengths_in(redis: Redis, key: bytes) -> Lengths:
    return parse_lengths(cast("bytes | None", redis.get(key)))


@pytest.mark.parametrize("kind", ["permit", "deny"])
def test_the_length_of_a_network_is_known_for_as_long_as_any_network_of_its_kind(
    redis: Redis, table: LoginTable, kind: str
) -> None:
    def write(text: str, ttl: int) -> None:
        if kind == "permit":
            table.permit(target(text), Permit(1), ttl)
        else:
            table.deny(target(text), "spam", ttl)

    key, other = table.keys.permit_networks, table.keys.deny_networks
    if kind == "deny":
        key, other = other, key
    write("192.0.2.7", 500)
    assert not redis.exists(key), "an address is found without"
    write("192.0.2.0/24", 100)
    assert redis.ttl(key) > 100
    write("198.51.100.0/24", 1000)
    write("2001:db8::/48", 10)
    assert lengths_in(redis, key) == {(4, 24), (6, 48)}
    assert redis.ttl(key) > 1000
    assert not redis.exists(other)


@pytest.mark.parametrize("everybody", ["0.0.0.0/0", "::/0"])
def test_a_network_of_everybody_is_refused_rather_than_never_looked_for(table: LoginTable, everybody: str) -> None:
    with pytest.raises(AddressError, match="everybody, which is denied with --all"):
        table.deny(target(everybody), "spam", 60)
    with pytest.raises(AddressError, match="open relay"):
        table.permit(target(everybody), Permit(1), 60)


@pytest.mark.parametrize("is_cut", [False, True])
def test_two_administrators_at_the_same_moment_lose_no_length(
    redis: Redis, table: LoginTable, monkeypatch: pytest.MonkeyPatch, is_cut: bool
) -> None:
    """The second writes between the first one's look and its writing; also where the first one's connection is lost
    then: another would not know that somebody has written meanwhile."""
    table.permit(target("192.0.2.0/24"), Permit(1), 100)
    in_between: Iterator[str] = iter(["198.51.0.0/17"])
    slow = client_on(redis)
    ask = slow.ask

    def ask_slowly(commands: Sequence[Command]) -> list[Any]:
        replies = ask(commands)
        for text in in_between:
            table_on(redis, "pbs:").permit(target(text), Permit(1), 100)
            if is_cut:
                slow.close()
        return replies

    monkeypatch.setattr(slow, "ask", ask_slowly)
    LoginTable(slow, "pbs:").permit(target("203.0.113.0/25"), Permit(1), 100)
    assert not list(in_between), "the second administrator was there"
    assert lengths_in(redis, table.keys.permit_networks) == {(4, 24), (4, 17), (4, 25)}


# --- a running service


@pytest.fixture
def service(redis_server: PrivateRedis, start_service: Callable[..., Service]) -> Service:
    return start_service(redis_url=redis_server.url, usage_kept="0")


@pytest.fixture
def served(redis_server: PrivateRedis, service: Service) -> Iterator[tuple[LoginTable, Client]]:
    with connect(RedisUrl.parse(redis_server.url), "", "") as redis, service.connect() as client:
        yield table_on(redis, "pbs:"), client


def is_permitted(client: Client, address: str) -> bool:
    return client.ask(address) == "OK"


def test_a_permit_of_a_network_with_a_new_length_counts_within_a_second(served: tuple[LoginTable, Client]) -> None:
    table, client = served
    for network, address in [("192.0.2.0/24", "192.0.2.7"), ("2001:db8::/48", "2001:db8::7")]:
        assert client.ask(address) == "DUNNO"
        table.permit(target(network), Permit(1), 60)
        began = time.monotonic()
        assert wait_until(partial(is_permitted, client, address))
        assert time.monotonic() - began < INTERVAL + 5, "a busy machine is given more"
        assert client.ask("192.0.3.0") == "DUNNO"


def test_with_a_known_length_a_permit_counts_at_once_and_is_gone_at_once(served: tuple[LoginTable, Client]) -> None:
    """What a service remembers is where to look, never the permit."""
    table, client = served
    table.permit(target("192.0.2.0/24"), Permit(1), 60)
    assert wait_until(lambda: client.ask("192.0.2.7") == "OK")
    for _ in range(20):
        table.permit(target("198.51.100.0/24"), Permit(1), 60)
        assert client.ask("198.51.100.7") == "OK"
        table.revoke_all(within=ip_network("198.51.100.0/24"))
        assert client.ask("198.51.100.7") == "DUNNO"
    assert client.ask("192.0.2.7") == "OK"


@pytest.mark.parametrize(
    ("network", "address"),
    [("192.0.2.0/24", "192.0.2.7"), ("192.0.0.0/9", "192.0.2.7"), ("2001:db8::/33", "2001:db8::7")],
)
def test_a_deny_of_a_network_counts_for_the_very_next_request(
    served: tuple[LoginTable, Client], network: str, address: str
) -> None:
    table, client = served
    table.permit(target(address), Permit(1), 60)
    assert client.ask(address) == "OK"
    table.deny(target(network), "spam", 60)
    assert client.ask(address) == "DUNNO", "a length that no service has seen before"
    for _ in range(20):
        assert table.undeny(target(network))
        assert client.ask(address) == "OK"
        table.deny(target(network), "spam", 60)
        assert client.ask(address) == "DUNNO"


ISATAP = "2001:db8:1:2:0:5efe:198.51.100.11"


def test_a_deny_of_a_clients_network_holds_for_those_in_it_that_the_prefix_does_not_widen(
    redis_server: PrivateRedis, start_service: Callable[..., Service]
) -> None:
    service = start_service(redis_url=redis_server.url, ipv6_prefix="64")
    addresses = ClientAddresses(ipv6_prefix=64)
    with connect(RedisUrl.parse(redis_server.url), "", "") as redis:
        table = table_on(redis, "pbs:")
        for address in (ISATAP, "2001:db8:1:2::7"):
            table.permit(addresses.parse_target(address), Permit(1), 60)
            assert service.ask(address) == "OK"
        table.deny(addresses.parse_target("2001:db8:1:2::7"), "spam", 60)
        assert service.ask("2001:db8:1:2::7") == "DUNNO"
        assert service.ask(ISATAP) == "DUNNO"


def test_a_service_knows_when_it_starts_what_was_permitted_before(
    redis_server: PrivateRedis, start_service: Callable[..., Service]
) -> None:
    with connect(RedisUrl.parse(redis_server.url), "", "") as redis:
        table_on(redis, "pbs:").permit(target("192.0.2.0/24"), Permit(1), 60)
    service = start_service(redis_url=redis_server.url)
    assert service.ask("192.0.2.7") == "OK"


def test_after_an_outage_of_redis_new_lengths_are_learned_again(
    own_redis: Callable[..., PrivateRedis], start_service: Callable[..., Service]
) -> None:
    server = own_redis()
    service = start_service(redis_url=server.url)
    server.stop()
    assert service.waits_to_log("Redis is unavailable")
    server.start()
    with connect(RedisUrl.parse(server.url), "", "") as redis:
        table_on(redis, "pbs:").permit(target("192.0.2.0/24"), Permit(1), 60)
    assert wait_until(lambda: service.ask("192.0.2.7") == "OK")
