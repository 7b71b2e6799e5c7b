"""Who of many is denied is exactly whom the service refuses for a deny: one table of denies for both."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.address import ClientAddresses
from pbs_policy.decision.check import Enquiry, check
from pbs_policy.decision.denied import read_denied
from pbs_policy.decision.denies import Denies
from pbs_policy.decision.rules import Rules
from pbs_policy.decision.sender import SenderRules
from pbs_policy.postfix.protocol import as_request
from pbs_policy.postfix.query import serialise_request
from pbs_policy.store.question import Answer, Question, carry_out
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.records import Record
from tests.stores import write_login

LOGINS = [
    ("192.0.2.7", "alice@example.com"),
    ("192.0.2.7", "bob@example.com"),
    ("192.0.2.8", "alice@example.com."),
    ("192.0.2.9", "alice+phone@example.com"),
    ("192.0.2.10", "Alice"),
    ("192.0.2.11", "@example.com"),
    ("198.51.100.7", "carol@example.com"),
    ("2001:db8:1:2::7", "carol@example.com"),
    ("2001:db8:1:2::8", "carol@example.com"),
    ("::ffff:203.0.113.7", "carol@example.com"),
]


@pytest.mark.parametrize("user_domain", ["", "example.com"])
@pytest.mark.parametrize("prefix", [128, 64])
@pytest.mark.parametrize(
    "deny",
    [
        "", "192.0.2.7", "192.0.2.0/24", "file 0.0.0.0/0", "2001:db8:1:2::7", "2001:db8:1:2::/64",
        "2001:db8::/32", "203.0.113.7", "all", "alice@example.com", "alice+phone@example.com", "alice",
        "carol@example.com", "auto 192.0.2.7",
        "auto 198.51.100.0/24", "auto 2001:db8:1:2::8", "file 192.0.2.0/24", "file 2001:db8:1:2::7",
        "file alice@example.com", "file bob@example.com", "by hand: users:deny", "another type",
    ],
)  # fmt: skip
def test_whom_the_service_refuses_for_a_deny_is_denied_and_nobody_else(
    table: LoginTable, redis: Redis, tmp_path: Path, deny: str, prefix: int, user_domain: str
) -> None:
    addresses = ClientAddresses(prefix)
    rules = SenderRules(user_domain=user_domain, recipient_delimiter="+")
    how, _, whom = deny.rpartition(" ")
    denies = None
    if how == "file":
        (tmp_path / "denies").write_text(f"{whom} spam\n")
        denies = Denies.load(tmp_path / "denies", addresses, user_domain)
    elif how == "by hand:":
        redis.set(f"pbs:{whom}", "1")
    elif how == "another":
        redis.hset("pbs:deny:192.0.2.7", "by", "hand")
    elif whom == "all":
        table.deny(None, "spam", 3600)
    elif "@" in whom or whom == "alice":
        table.deny_user(whom.encode(), "spam", 3600)
    elif whom:
        target = ClientAddresses(128).parse_target(whom)
        table.deny(target, "spam", 3600, is_automatic=how == "auto")
    logins = [(addresses.parse(address), user.encode()) for address, user in LOGINS]
    found = carry_out(read_denied(table.keys, rules, logins, denies), table.ask)
    expected = []
    for client, user in logins:
        redis.delete(*redis.keys("pbs:login:*") or ["pbs:none"])
        write_login(table, client.text, Record(int(table.now()), "imap", user.decode()), 3600)
        request = as_request(serialise_request({"client_address": client.text, "recipient": "bob@example.net"}))
        reason = check(Enquiry(table, Rules(senders=rules), client, request, denies=denies)).reason
        assert reason in ("login", "denied", "denied_user", "user_unknown")
        expected.append(reason != "login")
    assert found.logins == expected


def test_further_keys_are_read_in_the_same_moment(table: LoginTable, redis: Redis) -> None:
    redis.set("pbs:networks:deny", "4/24")
    redis.set("pbs:login:192.0.2.7", "1 imap alice@example.com")
    logins = [(ClientAddresses().parse("192.0.2.7"), b"alice@example.com")]
    procedure = read_denied(table.keys, SenderRules(), logins, None, [b"pbs:login:192.0.2.7", b"pbs:login:192.0.2.8"])
    asked: list[Question] = []

    def ask(question: Question) -> Answer:
        asked.append(question)
        return table.ask(question)

    found = carry_out(procedure, ask)
    assert b"pbs:login:192.0.2.7" in asked[-1].keys
    assert b"pbs:deny:192.0.2.0/24" in asked[-1].keys
    assert found.values[b"pbs:login:192.0.2.7"] == b"1 imap alice@example.com"
    assert found.values[b"pbs:login:192.0.2.8"] is None
