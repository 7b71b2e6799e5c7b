"""The file of denies: what a line says, what is a fault, whom it denies, and that it is read anew."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbs_policy.address import ClientAddress, ClientAddresses
from pbs_policy.changing_file import FileFault
from pbs_policy.decision.denies import Denies
from pbs_policy.service.reload import Configuration
from pbs_policy.settings import load
from pbs_policy.settings.sources import SettingsError

DeniesOf = Callable[..., Denies]


@pytest.fixture
def denies_of(tmp_path: Path) -> DeniesOf:
    """Denies from a text."""

    def read(text: str | bytes, ipv6_prefix: int = 128, user_domain: str = "") -> Denies:
        file = tmp_path / "denies"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return Denies.load(file, ClientAddresses(ipv6_prefix), user_domain)

    return read


def faults_of(denies_of: DeniesOf, text: str | bytes) -> list[str]:
    """The faults of a file, each with the number of its line alone."""
    with pytest.raises(FileFault) as caught:
        denies_of(text)
    return [fault.partition("/denies:")[2] for fault in caught.value.faults]


def test_a_line_denies_an_address_a_network_or_a_user_and_says_why(denies_of: DeniesOf) -> None:
    denies = denies_of("""\
# comments and empty lines are passed over

192.0.2.7        spam since Monday
198.51.100.0/24\thosting network,
    # also within a continuation
    no customers of ours
2001:DB8::7
Alice@Example.com   password stolen
bob
""")
    name = denies.file
    assert [(each.kind, each.target, each.reason, each.place) for each in denies] == [
        ("address", "192.0.2.7", "spam since Monday", f"{name}:3"),
        ("address", "198.51.100.0/24", "hosting network, no customers of ours", f"{name}:4"),
        ("address", "2001:db8::7", "", f"{name}:7"),
        ("user", "alice@example.com", "password stolen", f"{name}:8"),
        ("user", "bob", "", f"{name}:9"),
    ]


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("192.0.2.7", 1),
        ("192.0.2.8", None),
        ("198.51.100.1", 3),
        ("198.51.100.77", 2),
        ("198.51.101.1", None),
        ("203.0.113.9", 4),
        ("2001:db8:1::5", 5),
        ("2001:db8:2::5", 6),
        ("2001:db9::5", None),
    ],
)
def test_the_narrowest_network_that_holds_an_address_denies_it(
    denies_of: DeniesOf, address: str, line: int | None
) -> None:
    denies = denies_of("""\
192.0.2.7
198.51.100.0/24
198.51.100.1/32
203.0.0.0/8
2001:db8:1::/48
2001:db8::/32
""")
    found = denies.of_address(ClientAddress(address))
    assert (found and int(found.place.rpartition(":")[2])) == line


def test_a_network_of_everybody_is_everybody(denies_of: DeniesOf) -> None:
    assert denies_of("0.0.0.0/0 closed").of_address(ClientAddress("192.0.2.7"))
    assert not denies_of("0.0.0.0/0 closed").of_address(ClientAddress("2001:db8::7"))
    assert denies_of("::/0 closed").of_address(ClientAddress("2001:db8::7"))


def test_an_ipv6_address_stands_for_what_names_the_client(denies_of: DeniesOf) -> None:
    assert not denies_of("2001:db8:1:2::7").of_address(ClientAddress("2001:db8:1:2::8"))
    assert denies_of("2001:db8:1:2::7", ipv6_prefix=64).of_address(ClientAddress("2001:db8:1:2::8"))
    assert not denies_of("2001:db8:1:2::7", ipv6_prefix=64).of_address(ClientAddress("2001:db8:1:3::7"))


def test_an_address_in_another_spelling_is_the_same(denies_of: DeniesOf) -> None:
    assert denies_of("::ffff:192.0.2.7").of_address(ClientAddress("192.0.2.7"))
    assert denies_of("2001:DB8:0:0::7").of_address(ClientAddress("2001:db8::7"))


def test_users_are_folded_and_completed(denies_of: DeniesOf) -> None:
    denies = denies_of("Alice reason\nBob@Example.net", user_domain="example.com")
    users = [b"alice@example.com", b"bob@example.net", b"alice", b"carol@example.com"]
    assert set(denies.of_users(users)) == {b"alice@example.com", b"bob@example.net"}
    assert denies.has_users
    assert not denies_of("192.0.2.7").has_users


def test_a_user_whose_name_has_a_slash_is_no_network(denies_of: DeniesOf) -> None:
    assert denies_of("a/b@example.com").of_users([b"a/b@example.com"])


def test_what_is_listed_twice_is_denied_for_the_first_reason(denies_of: DeniesOf) -> None:
    denies = denies_of("192.0.2.7 first\n192.0.2.7 second\nbob first\nBOB second")
    assert [each.reason for each in denies] == ["first", "first"]


def test_every_fault_is_named_with_its_line(denies_of: DeniesOf) -> None:
    hint = "expected an address, a network or a user, then a reason"
    no_user = "expected an address, a network or a user such as alice@example.com"
    no_user += "; if it is a user's name, put user: before it"
    text = b"""\
192.0.2.7 fine
192.0.2.777 a typing error
192.0.2.7/24
all
!192.0.2.9
!bob
if 192.0.2.0/24
@example.com
bob,carol
"john doe"@example.com
bob \xff
"""
    assert faults_of(denies_of, text) == [
        "2: not an IP address: '192.0.2.777' (expected 192.0.2.7 or 2001:db8::7)",
        "3: '192.0.2.7/24' has bits set behind its prefix (did you mean 192.0.2.0/24?)",
        f"4: 'all': {hint}; everybody is 0.0.0.0/0 and, on a line of its own, ::/0",
        f"5: '!192.0.2.9': {hint}; nothing is excepted (!)",
        f"6: '!bob': {hint}; nothing is excepted (!)",
        f"7: 'if': {hint}; there are no conditions",
        "8: '@example.com': a whole domain cannot be denied: deny its users, or their addresses",
        f"9: 'bob,carol': {no_user}",
        f"10: '\"john': {no_user}",
        "11: expected UTF-8 text without control characters",
    ]


@pytest.mark.parametrize(
    "name",
    ["192.0.2.8\u00a0spam", "[2001:db8::1]", "192.0.2.10-192.0.2.20", "192.0.2.*", "192.0.2.7;", "ALL", "Everybody"],
)
def test_a_mistyped_address_is_nobodys_name(denies_of: DeniesOf, name: str) -> None:
    (fault,) = faults_of(denies_of, f"{name} x")
    assert fault.startswith("1: ")


def test_an_odd_name_is_a_users_where_the_line_says_so(denies_of: DeniesOf) -> None:
    assert denies_of("user:All@x x\nuser:all x").of_users([b"all@x", b"all"]) == {b"all@x", b"all"}


def test_a_network_narrower_than_ipv6_prefix_is_a_fault(denies_of: DeniesOf) -> None:
    with pytest.raises(FileFault, match="narrower than ipv6_prefix = 64"):
        denies_of("2001:db8::/96", ipv6_prefix=64)


def test_a_file_that_everybody_can_change_by_now_is_not_read(denies_of: DeniesOf) -> None:
    denies = denies_of("192.0.2.7")
    denies.file.chmod(0o666)
    denies.file.write_text("# nobody\n")
    with pytest.raises(FileFault, match="can be changed by everybody"):
        denies.reload_if_changed()
    assert len(list(denies)) == 1


def test_a_large_file_costs_an_address_no_more_than_its_lengths(denies_of: DeniesOf) -> None:
    denies = denies_of("".join(f"198.51.{high}.{low}\n" for high in range(256) for low in range(256)))
    assert denies.content.lengths == frozenset()
    assert denies.of_address(ClientAddress("198.51.100.200"))


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.sampled_from([b"\n", b" ", b"#", b"192.0.2.7", b"192.0.2.0/24", b"::/0", b"alice@example.com", b"!"]),
        )
    )
)
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    file = tmp_path_factory.getbasetemp() / "any-denies"
    file.write_bytes(b"".join(pieces))
    faults = None
    try:
        denies = Denies.load(file, ClientAddresses(64), "example.com")
    except FileFault as error:
        faults = error.faults
    if faults is not None:
        assert faults
        assert all(fault.startswith(f"{file}:") and fault.isprintable() for fault in faults)
        return
    for each in denies:
        assert each.reason.isprintable()
        if each.kind == "user":
            assert denies.of_users([each.target.encode()])
        else:
            network = ip_network(each.target)
            assert denies.of_address(ClientAddress(str(network.network_address)))
            assert denies.of_address(ClientAddress(str(network.broadcast_address)))


# --- as a setting


def configuration(tmp_path: Path, text: str, *lines: str) -> tuple[Configuration, Path]:
    denies = tmp_path / "denies"
    denies.write_text(text)
    file = tmp_path / "pbs-policy.conf"
    file.write_text("".join(f"{line}\n" for line in (f"denies = {denies}", *lines)))
    return Configuration.begin(*load(file)), file


def test_a_reload_with_another_ipv6_prefix_or_user_domain_reads_the_file_for_it(tmp_path: Path) -> None:
    before, file = configuration(tmp_path, "2001:db8:1:2::7\nalice\n")
    assert before.denies
    file.write_text(file.read_text() + "ipv6_prefix = 64\nuser_domain = example.com\n")
    after = before.read_anew(lambda: load(file)).configuration
    assert after.denies
    assert after.denies.of_address(ClientAddress("2001:db8:1:2::8"))
    assert after.denies.of_users([b"alice@example.com"])
    file.write_text(file.read_text() + "ttl = 8h\n")
    assert after.read_anew(lambda: load(file)).configuration.denies is after.denies


def test_a_reload_to_a_faulty_file_changes_nothing(tmp_path: Path) -> None:
    before, file = configuration(tmp_path, "192.0.2.7\n")
    (tmp_path / "other").write_text("!192.0.2.7\n")
    file.write_text(f"denies = {tmp_path}/other\nttl = 8h\n")
    with pytest.raises(SettingsError, match=f"denies: {tmp_path}/other:1: "):
        before.read_anew(lambda: load(file))


def test_a_changed_file_is_read_anew_and_a_faulty_one_is_not(denies_of: DeniesOf) -> None:
    denies = denies_of("192.0.2.7")
    denies.file.write_text("192.0.2.8")
    assert denies.reload_if_changed()
    assert not denies.of_address(ClientAddress("192.0.2.7"))
    denies.file.write_text("192.0.2.9\nall")
    with pytest.raises(FileFault, match=r"/denies:2: 'all'"):
        denies.reload_if_changed()
    assert not denies.reload_if_changed()
    assert denies.of_address(ClientAddress("192.0.2.8"))
    assert not denies.of_address(ClientAddress("192.0.2.9"))
    denies.file.unlink()
    with pytest.raises(FileFault, match="No such file"):
        denies.reload_if_changed()
    assert denies.of_address(ClientAddress("192.0.2.8"))
