"""What doctor concludes from the logins that are there."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pbs_policy.doctor.use import check_use
from pbs_policy.table.login_table import Entry
from pbs_policy.table.records import Record


def entries(logins: Iterable[tuple[str, str]]) -> list[Entry]:
    return [Entry("login", address, Record(0, "pop3", user), 60.0) for address, user in logins]


def users(number: int) -> list[str]:
    return [f"user{each}@example.com" for each in range(number)]


@pytest.mark.parametrize(
    ("logins", "check", "level"),
    [
        ([("172.17.0.1", user) for user in users(5)], "use.private_addresses", "wrong"),
        ([("172.17.0.1", user) for user in users(2)], "use.private_addresses", "warning"),
        (
            [(host, user) for user in users(2) for host in ("fd00::1", "192.0.2.1")],
            "use.private_addresses",
            "warning",
        ),
        ([("203.0.113.7", user) for user in users(10)], "use.shared_addresses", "warning"),
        ([("2001:db8::7", "alice"), ("192.0.2.7", "bob")], "use.address_families", "warning"),
    ],
)
def test_what_logins_say_of_the_network_is_found(logins: list[tuple[str, str]], check: str, level: str) -> None:
    found = [each for each in check_use(entries(logins), "ipv4") if each.level != "good"]
    assert [(each.check, each.level) for each in found] == [(check, level)]
    assert found[0].mend


@pytest.mark.parametrize(
    "logins",
    [
        [("192.0.2.7", "alice"), ("2001:db8::7", "alice")],
        [("10.1.2.3", "alice"), ("10.1.2.4", "bob")],
        [("203.0.113.7", user) for user in users(9)],
        [("2001:db8::/64", "alice"), ("192.0.2.1", "Alice")],
        [("no address", "alice")],
    ],
)
def test_ordinary_use_has_no_fault(logins: list[tuple[str, str]]) -> None:
    assert [each for each in check_use(entries(logins), "ipv4") if each.level != "good"] == []


def test_what_cannot_be_known_of_use_is_not_looked_at() -> None:
    assert [each.level for each in check_use([], "all")] == ["not looked at"]
    found = {each.check: each.level for each in check_use(entries([("2001:db8::7", "alice")]), "")}
    assert found["use.address_families"] == "not looked at"
