"""What `doveadm who` prints: of real Dovecots, of odd names, and rubbish."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbs_policy.dovecot.sessions import MailSession, NotSessions, parse_who
from tests.conftest import CAPTURES

ROW = {"username": "alice@example.com", "service": "imap", "pid": "7", "ip": "192.0.2.7"}
ALICE = MailSession("alice@example.com", "imap", "192.0.2.7")


def read(*rows: object) -> list[MailSession]:
    return parse_who(json.dumps(rows).encode())[0]


@pytest.mark.parametrize("number", [0, 1], ids=["2.3", "2.4"])
def test_what_a_real_dovecot_prints_is_read(number: int) -> None:
    versions = (CAPTURES / "doveadm-who.txt").read_text().split("=====")[1:]
    (printed,) = re.findall(r"^\$ doveadm -f json who -1\n +(.*)$", versions[number], re.MULTILINE)
    sessions, passed_over = parse_who(printed.encode())
    assert not passed_over
    assert len(sessions) == 12
    assert {each.service for each in sessions} == {"imap"}
    assert {each.address for each in sessions} == {"198.51.100.11", "198.51.100.12", "2001:db8:51::11"}
    assert {each.user for each in sessions} == {
        "josé@ex.test", "u4@ex.test", "u5@ex.test", "alice@ex.test", "sp ace@ex.test", "o'brien+tag@ex.test",
    }  # fmt: skip


def test_nobody_is_connected() -> None:
    assert read() == []


# As Dovecot 2.3.19 prints them, where auth_username_chars lets such names in.
@pytest.mark.parametrize(
    ("printed", "user"),
    [
        (rb"tab\there@example.com", "tab\there@example.com"),
        (rb"x\timap\t7\t192.0.2.9\nroot@example.com", "x\timap\t7\t192.0.2.9\nroot@example.com"),
        (rb"q\"u\\o@example.com", 'q"u\\o@example.com'),
        (rb"ctl\u0001@example.com", "ctl\x01@example.com"),
        (rb"u\u2028@example.com", "u\u2028@example.com"),
        (b"del\x7f@example.com", "del\x7f@example.com"),
        ("josé😀@example.com".encode(), "josé😀@example.com"),
        (b"192.0.2.99/bob@example.com", "192.0.2.99/bob@example.com"),
    ],
)
def test_an_odd_name_is_one_name(printed: bytes, user: str) -> None:
    row = b'[{"username":"%b","service":"imap","pid":"7","ip":"::ffff:192.0.2.7"}]' % printed
    assert parse_who(row)[0] == [MailSession(user, "imap", "::ffff:192.0.2.7")]


@pytest.mark.parametrize(
    ("printed", "service"),
    [("pop3", "pop3"), ("imap-login", "imap"), ("pop3-login", "pop3"), ("imap-hibernate", "imap"),
     ("imap-urlauth", "imap-urlauth"), ("submission", "submission")],
)  # fmt: skip
def test_a_session_of_a_login_process_or_a_hibernated_one_is_of_its_service(printed: str, service: str) -> None:
    assert read(ROW | {"service": printed, "dest_ip": "192.0.2.80"}) == [ALICE._replace(service=service)]


def test_several_connections_of_one_user_from_one_address_are_one_session() -> None:
    elsewhere = ALICE._replace(address="2001:db8::7")
    assert read(ROW, ROW | {"pid": "8"}, ROW | {"ip": elsewhere.address}) == [ALICE, elsewhere]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"username": "\ufffd\ufffd@example.com"}, "a user name that is not certain"),
        ({"username": "al\ud800ice"}, "a user name that is not certain"),
        ({"username": "a\0b"}, "a user name that is not certain"),
        ({"username": "a" * 1025}, "a user name that is not certain"),
        ({"username": ""}, "no user"),
        ({"ip": ""}, "no client address"),
        ({"service": "imap pop3"}, "a service with an unknown name"),
        ({"service": ""}, "a service with an unknown name"),
        ({"username": 7}, "a row without username, service and ip"),
        ({"ip": None}, "a row without username, service and ip"),
        ({"username": ["alice@example.com"]}, "a row without username, service and ip"),
    ],
)
def test_what_is_not_certain_is_passed_over_and_counted(row: dict[str, object], reason: str) -> None:
    sessions, passed_over = parse_who(json.dumps([ROW | row, ROW, ROW | row]).encode())
    assert sessions == [ALICE]
    assert passed_over == {reason: 2}


def test_a_row_that_is_no_row_is_counted() -> None:
    assert parse_who(b'[7,null,"x",[],{}]')[1] == {"a row without username, service and ip": 5}


@pytest.mark.parametrize(
    ("printed", "fault"),
    [
        (b"", "it is empty"),
        (b"username\tproto\tpid\tip\n", "it is not JSON"),
        (b'[{"username":"alice"', "it is not JSON"),
        (b'[{"username":"alice"}],{"username":"bob"}]', "it is not JSON"),  # 2.3 without -1
        (b"[" * 100_000, "it is not JSON"),
        (b'["\xff"]', "it is not UTF-8"),
        (b'{"username":"alice"}', "it is not a list"),
        (b"7", "it is not a list"),
    ],
)
def test_what_is_no_list_of_sessions_is_refused_as_a_whole(printed: bytes, fault: str) -> None:
    with pytest.raises(NotSessions, match=f"^{fault}$"):
        parse_who(printed)


LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufffd")


@given(st.lists(st.fixed_dictionaries({
    "username": st.text(LETTERS, min_size=1, max_size=99),
    "service": st.sampled_from(["imap", "pop3", "submission"]),
    "ip": st.ip_addresses().map(str),
})))  # fmt: skip
def test_every_session_that_is_printed_is_read_and_no_other(rows: list[dict[str, str]]) -> None:
    expected = [MailSession(row["username"], row["service"], row["ip"]) for row in rows]
    assert read(*rows) == list(dict.fromkeys(expected))


@given(st.binary() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode))
def test_rubbish_is_refused_or_names_nobody(printed: bytes) -> None:
    try:
        sessions, _ = parse_who(printed)
    except NotSessions:
        return
    assert sessions == []
