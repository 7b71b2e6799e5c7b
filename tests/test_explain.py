"""The explanation of a decision: it never says anything else than the decision, and its advice works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from redis import Redis

from pbs_policy.address import ClientAddresses, parse_network
from pbs_policy.cap import Cap
from pbs_policy.decision.check import Enquiry
from pbs_policy.decision.row import Row
from pbs_policy.decision.rules import Rules
from pbs_policy.decision.sender import SenderRules
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.decision.words import MOST_OTHERS, ORDER, Explanation, explain
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.duration import ago_at
from pbs_policy.postfix.protocol import Request, as_request
from pbs_policy.postfix.query import serialise_request
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.records import Permit
from pbs_policy.table.users import names_of_user
from tests.stores import connect, table_on

NOW = 1_700_000_000
ADDRESS = "192.0.2.7"
CLIENT = ClientAddresses().parse(ADDRESS)
NETWORK = ClientAddresses().parse_target("192.0.2.0/24")
HOUR = 3600
LEFT = 5400 + 50  # seconds: shown as 1h 30m, however slow the machine is
Match = Literal["off", "domain", "address"]
MATCHES: tuple[Match, ...] = ("off", "domain", "address")

ALICE, BOB, CAROL = "alice@example.com", "bob@example.net", "carol@example.com"
DOMAINS = frozenset({b"example.net", b"example.org"})


def table_of(redis: Redis, user_domain: str = "") -> LoginTable:
    return table_on(redis, "pbs:", user_domain=user_domain, now=lambda: NOW)


def request_of(sender: str = "", recipient: str = "", tls: bool = False, instance: str = "") -> Request:
    return as_request(serialise_request({
        "client_address": ADDRESS, "sender": sender, "recipient": recipient, "instance": instance,
        "encryption_protocol": "TLSv1.3" if tls else "",
    }))  # fmt: skip


def put(table: LoginTable, key: bytes | str, value: bytes | str, left: int | None) -> None:
    """Set a key for `left` seconds, or for ever."""
    key, value = (each.encode() if isinstance(each, str) else each for each in (key, value))
    table.write([(b"SET", key, value, *((b"EX", b"%d" % left) if left else ()))])


def log_in(
    table: LoginTable,
    user: str,
    service: str = "pop3",
    ago: int = 600,
    left: int | None = LEFT,
    domains: bool = True,
    user_domain: str = "",
) -> None:
    """What the post-login script writes; `domains` where its settings say sender_match = domain."""
    value = f"{NOW - ago} {service} {user}".rstrip()
    names = names_of_user(user.encode(), user_domain)
    for name in (b"", *(names if domains else names[:1])):
        put(table, table.keys.login(ADDRESS, name), value, left)


def fill(table: LoginTable, what: bytes, number: int, left: int = LEFT) -> None:
    """Let a cap have counted `number` recipients."""
    key, _ = table.keys.counted(what)
    if number:
        table.write([(b"SADD", key, *[b"%d" % each for each in range(number)]), (b"EXPIRE", key, b"%d" % left)])


def step_of(explanation: Explanation, rule: str) -> Row:
    return next(step for step in explanation.rows if step.rule == rule)


def first_refusal(explanation: Explanation) -> Row | None:
    return next((step for step in explanation.rows if step.verdict == "refuse"), None)


# --- which permission is followed


def test_the_denied_user_was_the_last_to_log_in_and_the_sender_has_been_here_too(redis: Redis) -> None:
    table = table_of(redis)
    log_in(table, BOB, ago=600)
    log_in(table, ALICE, ago=60)
    table.deny_user(ALICE.encode(), "stolen password", HOUR)
    explanation = explain(Enquiry(table, Rules(), CLIENT, request_of(BOB)))
    assert explanation.decision.action == "OK"
    assert step_of(explanation, "logins").saw.startswith(f"{BOB} (pop3, by script) 10m ago")
    also = f"also {ALICE} (pop3, by script) {ago_at(NOW - 60, NOW)}, 1h 30m left"
    assert step_of(explanation, "logins").details == (also,)


def test_the_senders_own_login_is_followed_also_where_the_sender_has_an_extension(redis: Redis) -> None:
    table = table_of(redis)
    log_in(table, ALICE, ago=600)
    log_in(table, BOB, ago=60)
    table.deny_user(BOB.encode(), "stolen password", HOUR)
    rules = Rules(senders=SenderRules(recipient_delimiter="+"))
    explanation = explain(Enquiry(table, rules, CLIENT, request_of("alice+x@example.com")))
    assert explanation.decision.action == "OK"
    assert explanation.decision.record
    assert explanation.decision.record.user == ALICE
    assert {row.verdict for row in explanation.rows} == {"pass"}
    assert step_of(explanation, "logins").saw.startswith(f"{ALICE} (pop3, by script) 10m ago")


def test_a_permit_in_a_denied_network_is_refused_for_the_deny(redis: Redis) -> None:
    table = table_of(redis)
    table.permit(ClientAddresses().parse_target(ADDRESS), Permit(NOW), LEFT)
    table.deny(NETWORK, "spam", LEFT)
    explanation = explain(Enquiry(table, Rules(), CLIENT, request_of(ALICE)))
    refusal = first_refusal(explanation)
    assert refusal
    assert (refusal.rule, refusal.reason, refusal.change) == ("denies", "denied", "`pbs-policy undeny 192.0.2.0/24`")
    assert step_of(explanation, "logins").verdict == "pass"


# --- the advice: whoever follows it gets OK


def test_no_login_advises_a_login_or_a_permit(redis: Redis) -> None:
    table = table_of(redis)
    explanation = explain(Enquiry(table, Rules(), CLIENT, request_of(ALICE)))
    step = step_of(explanation, "logins")
    assert (step.verdict, step.reason) == ("refuse", "no_login")
    assert step.saw == "nobody has logged in from 192.0.2.7, or it is too long ago"
    assert step.change == "log in to POP3 or IMAP from 192.0.2.7, or `pbs-policy permit 192.0.2.7`"
    log_in(table, ALICE)
    assert explain(Enquiry(table, Rules(), CLIENT, request_of(ALICE))).decision.action == "OK"


@pytest.mark.parametrize(("denied", "name"), [("192.0.2.0/24", "192.0.2.0/24"), ("", "--all")])
def test_a_deny_is_told_also_where_nobody_is_logged_in(redis: Redis, denied: str, name: str) -> None:
    table = table_of(redis)
    table.deny(ClientAddresses().parse_target(denied) if denied else None, "spam", 60)
    explanation = explain(Enquiry(table, Rules(), CLIENT, request_of(ALICE)))
    step = step_of(explanation, "logins")
    assert explanation.decision.reason == "no_login"
    assert step.details[-1].startswith(f"besides, {denied or 'everybody'} is denied: spam, ")
    assert step.change.startswith(f"`pbs-policy undeny {name}`, and then log in")


def explain_sender(table: LoginTable, sender: str, match: Match, maps: SenderMaps | None = None) -> Explanation:
    return explain(Enquiry(table, Rules(senders=SenderRules(match)), CLIENT, request_of(sender), maps))


@pytest.mark.parametrize("match", ["domain", "address"])
@pytest.mark.parametrize("sender", [BOB, "john doe@example.net", 'jo"hn@example.net', "jos\u00e9@example.net"])
def test_sender_mismatch_advises_the_line_that_sender_maps_needs(
    redis: Redis, tmp_path: Path, match: Match, sender: str
) -> None:
    table = table_of(redis)
    log_in(table, ALICE)
    step = step_of(explain_sender(table, sender, match), "senders")
    looked_for = "@example.net" if match == "domain" else sender
    assert step.saw == f"{sender} sends, looked for {looked_for}; logged in: {ALICE} (sender_match = {match})"
    assert step.change.startswith("set sender_maps to a file with the line `")
    assert step.change.endswith("`, or set sender_match = off")
    file = tmp_path / "senders"
    file.write_text(f"eve@example.net {BOB}\n")
    step = step_of(explain_sender(table, sender, match, SenderMaps.load(file, "")), "senders")
    assert step.change.endswith(f" to {file} (sender_maps), or set sender_match = off")
    with file.open("a") as stream:
        stream.write(step.change.split("`")[1] + "\n")
    explanation = explain_sender(table, sender, match, SenderMaps.load(file, ""))
    assert explanation.decision.action == "OK"
    assert step_of(explanation, "senders").saw == f"{sender} sends, {ALICE} is logged in (sender_match = {match})"


def test_a_sender_that_the_maps_know_gets_one_user_more(redis: Redis, tmp_path: Path) -> None:
    table = table_of(redis)
    log_in(table, ALICE)
    file = tmp_path / "senders"
    file.write_text(f"{BOB} {CAROL}\n")
    step = step_of(explain_sender(table, BOB, "address", SenderMaps.load(file, "")), "senders")
    assert step.saw == f"{BOB} sends, looked for {BOB}, {CAROL}; logged in: {ALICE} (sender_match = address)"
    assert step.change == f"add {ALICE} to the line of {BOB} in {file} (sender_maps), or set sender_match = off"


@pytest.mark.parametrize(
    ("user", "match", "sender", "change"),
    [
        (ALICE, "address", f"prvs=1a={ALICE}", "set batv = fold, which takes the sender's tag off"),
        (ALICE, "address", "", "set null_sender = permit, or set sender_match = off"),
        (ALICE, "domain", "alice", "have the client send from a full address such as alice@example.com"),
        (ALICE, "address", "a@b@example.com", "have the client send from a full address such as alice@example.com"),
        ("", "address", ALICE, "record logins by the post-login script, which knows their users"),
        ("two words", "address", ALICE, "have the client send as two words, or set sender_match = off"),
    ],
)
def test_other_sender_mismatches_have_advice_of_their_own(
    redis: Redis, user: str, match: Match, sender: str, change: str
) -> None:
    table = table_of(redis)
    log_in(table, user)
    assert step_of(explain_sender(table, sender, match), "senders").change.startswith(change)


def test_a_script_that_records_no_domains_is_found_out(redis: Redis) -> None:
    table = table_of(redis)
    log_in(table, ALICE, domains=False)
    step = step_of(explain_sender(table, CAROL, "domain"), "senders")
    assert step.change.startswith("let the post-login script read sender_match = domain too")
    log_in(table, ALICE, domains=True)
    assert explain_sender(table, CAROL, "domain").decision.action == "OK"


def test_the_null_sender_is_not_restricted_where_it_is_permitted(redis: Redis) -> None:
    table = table_of(redis)
    log_in(table, ALICE)
    rules = Rules(senders=SenderRules("address", null_sender="permit"))
    explanation = explain(Enquiry(table, rules, CLIENT, request_of("")))
    assert explanation.decision.action == "OK"
    assert step_of(explanation, "senders").saw == "the null sender sends, null_sender = permit"


def test_what_a_permit_asks_is_said_with_what_was_there(redis: Redis) -> None:
    table = table_of(redis)
    permit = Permit(NOW - 60, "printer", ("@example.net",), ("example.org",), Cap(3, HOUR), "the one in room 7")
    table.permit(NETWORK, permit, LEFT)
    explanation = explain(Enquiry(table, Rules(), CLIENT, request_of(ALICE, "x@example.com")))
    assert step_of(explanation, "permits") == Row(
        "permits", "pass", "1 of 192.0.2.7, 192.0.2.0/24", details=(
            "192.0.2.0/24: for printer; senders @example.net; recipients in example.org; cap 3/1h; "
            "the one in room 7; 1h 30m left (sender_mismatch)",
        ),
    )  # fmt: skip
    assert step_of(explanation, "senders") == Row(
        "senders", "refuse", f"{ALICE} sends, the permit is for @example.net",
        f"give the permit for 192.0.2.0/24 anew with {ALICE} among its senders", "sender_mismatch",
    )  # fmt: skip
    explanation = explain(Enquiry(table, Rules(), CLIENT, request_of(BOB, "x@example.com")))
    assert step_of(explanation, "senders").verdict == "pass"
    assert step_of(explanation, "recipients") == Row(
        "recipients", "refuse", "to x@example.com, the permit is for example.org",
        "give the permit for 192.0.2.0/24 anew with example.com among its recipient domains", "recipient_mismatch",
    )  # fmt: skip
    assert explain(Enquiry(table, Rules(), CLIENT, request_of(BOB, "x@example.org"))).decision.reason == "permit"


def test_what_is_no_permit_is_named(redis: Redis) -> None:
    table = table_of(redis)
    redis.set(table.keys.permit(ADDRESS), '{"given_at": 1, "colour": "red"}', HOUR)
    assert step_of(explain(Enquiry(table, Rules(), CLIENT, request_of())), "permits") == Row(
        "permits", "pass", "none for 192.0.2.7",
        details=("192.0.2.7: what stands there is no permit, and is not honoured",),
    )  # fmt: skip


def refusal(table: LoginTable, rules: Rules, **request: Any) -> tuple[str, str, str]:
    """The first step that refuses."""
    step = first_refusal(explain(Enquiry(table, rules, CLIENT, request_of(**request))))
    assert step
    return step.rule, step.saw, step.change


@pytest.mark.parametrize(
    ("user", "service", "left", "rules", "expected"),
    [
        (ALICE, "managesieve", LEFT, Rules(services=frozenset({"pop3", "imap"})), (
            "services", "logged in by managesieve, services = imap pop3",
            "add managesieve to services, where the post-login script reads them too, or log in by one of imap pop3",
        )),
        ("", "", LEFT, Rules(services=frozenset({"pop3", "imap"})), (
            "services", "logged in by a service not recorded, services = imap pop3",
            "record logins by the post-login script, which knows their service, or empty services",
        )),
        ("mallory@victim.example", "pop3", LEFT, Rules(login_domains=DOMAINS), (
            "domains", "mallory@victim.example is logged in, login_domains = example.net example.org",
            "if victim.example is a domain of yours, add it to login_domains, where the post-login script reads it "
            "too",
        )),
        ("alice", "pop3", LEFT, Rules(login_domains=DOMAINS), (
            "domains", "alice is logged in, login_domains = example.net example.org",
            "set user_domain, which completes users without a domain",
        )),
        ("", "pop3", LEFT, Rules(login_domains=DOMAINS), (
            "domains", "a user not recorded is logged in, login_domains = example.net example.org",
            "record logins by the post-login script, which knows their users, or empty login_domains",
        )),
        (ALICE, "pop3", LEFT, Rules(require_tls=True), (
            "require_tls", "require_tls = yes, the session is not encrypted",
            "have the client use STARTTLS, or set require_tls = no",
        )),
        (ALICE, "pop3", None, Rules(), (
            "end", "pbs:login:192.0.2.7 has none, and is not honoured",
            "`pbs-policy revoke 192.0.2.7`, and have whatever wrote pbs:login:192.0.2.7 give it an end (SET ... EX)",
        )),
    ],
)  # fmt: skip
def test_a_login_that_a_rule_refuses_is_told_with_what_to_change(
    redis: Redis, user: str, service: str, left: int | None, rules: Rules, expected: tuple[str, str, str]
) -> None:
    table = table_of(redis)
    log_in(table, user, service, left=left)
    assert refusal(table, rules) == expected


def test_denies_are_told_with_their_reason_and_the_time_left(redis: Redis) -> None:
    table = table_of(redis)
    log_in(table, ALICE)
    explanation = explain(Enquiry(table, Rules(), CLIENT, request_of()))
    assert step_of(explanation, "denies").saw == "none against 192.0.2.7, all"
    assert step_of(explanation, "user denies").saw == f"none against alice, {ALICE}"
    table.deny_user(ALICE.encode(), "stolen password", LEFT)
    rule, saw, change = refusal(table, Rules())
    assert (rule, change) == ("user denies", f"`pbs-policy undeny {ALICE}`")
    assert saw == f"{ALICE} is denied: stolen password, 1h 30m left"
    table.deny(NETWORK, "spam", LEFT)
    table.deny(None, "", LEFT + HOUR)
    assert refusal(table, Rules()) == (
        "denies",
        "192.0.2.0/24 is denied: spam, 1h 30m left; everybody is denied: no reason given, 2h 30m left",
        "`pbs-policy undeny 192.0.2.0/24` and `pbs-policy undeny --all`",
    )


def test_caps_are_told_as_how_many_of_how_many_and_when_the_period_ends(redis: Redis) -> None:
    table = table_of(redis)
    log_in(table, ALICE)
    rules = Rules(address_cap=Cap(5, HOUR), user_cap=Cap(200, HOUR))
    assert step_of(explain(Enquiry(table, rules, CLIENT, request_of())), "caps").saw == (
        f"address 192.0.2.7: 0 of 5/1h recipients; user {ALICE}: 0 of 200/1h recipients"
    )
    fill(table, b"address:192.0.2.7", 5)
    fill(table, b"user:" + ALICE.encode(), 7, LEFT + HOUR)
    rule, saw, change = refusal(table, rules)
    assert rule == "caps"
    assert saw == (
        "address 192.0.2.7: 5 of 5/1h recipients, the period ends in 1h 30m; "
        f"user {ALICE}: 7 of 200/1h recipients, the period ends in 2h 30m"
    )
    assert change == "wait 1h 30m, or raise max_recipients_per_address"
    permit = Permit(NOW, cap=Cap(2, HOUR))
    table.permit(ClientAddresses().parse_target(ADDRESS), permit, HOUR)
    redis.delete(table.keys.login(ADDRESS))
    fill(table, b"permit:192.0.2.7", 2)
    assert refusal(table, rules) == (
        "caps",
        "permit 192.0.2.7: 2 of 2/1h recipients, the period ends in 1h 30m",
        "wait 1h 30m, or give the permit for 192.0.2.7 anew with a larger cap",
    )


@pytest.mark.parametrize(
    ("text", "reason"), [("127.0.0.1", "loopback"), ("ff02::1", "multicast"), ("203.0.113.7", "never_record")]
)
def test_an_excluded_address_is_explained_without_redis(text: str, reason: str) -> None:
    client = ClientAddresses(never_record=(parse_network("203.0.113.0/24"),)).parse(text)
    nowhere = connect(RedisUrl.parse("unix:///nonexistent/redis.sock"), "", "")
    explanation = explain(Enquiry(table_of(nowhere), Rules(), client, request_of()))
    assert tuple(step.rule for step in explanation.rows) == ORDER
    first, *rest, answer = explanation.rows
    assert (first.rule, first.verdict, first.reason) == ("address", "refuse", reason)
    assert first.change
    assert {step.verdict for step in rest} == {"not asked"}
    assert answer.reason == explanation.decision.reason == reason


# --- who else is behind the address


@pytest.mark.parametrize("number", [1, 2, MOST_OTHERS + 1, MOST_OTHERS + 5])
def test_who_else_is_behind_the_address_is_named_up_to_ten(redis: Redis, number: int) -> None:
    table = table_of(redis)
    for at in range(number):
        log_in(table, f"user{at}@example.com", ago=60 * (number - at))
    explanation = explain(Enquiry(table, Rules(), CLIENT, request_of()))
    step = step_of(explanation, "logins")
    assert step.saw == f"user{number - 1}@example.com (pop3, by script) {ago_at(NOW - 60, NOW)}, 1h 30m left"
    others = [f"user{at}@example.com" for at in reversed(range(number - 1))]
    assert [entry.record.user for entry in explanation.others] == others[:MOST_OTHERS]
    assert explanation.more == max(0, number - 1 - MOST_OTHERS)
    lines = list(step.details)
    assert (lines[-1:] == [f"and {explanation.more} more"]) == bool(explanation.more)
    assert [line.split()[1] for line in lines[: len(explanation.others)]] == others[:MOST_OTHERS]


def test_the_services_own_acl_user_may_ask_all_but_who_else_is_there(
    own_redis: Callable[..., PrivateRedis],
) -> None:
    rights = ("+get", "+mget", "+pttl", "+scard", "+sismember")
    server = own_redis("--user", "service", "on", ">secret", "~pbs:*", "-@all", *rights)
    url = RedisUrl.parse(server.url)
    with connect(url, "", "") as admin, connect(url, "service", "secret") as limited:
        log_in(table_of(admin), BOB)
        log_in(table_of(admin), ALICE, ago=60)
        explanation = explain(Enquiry(table_of(limited), Rules(address_cap=Cap(5, HOUR)), CLIENT, request_of()))
    assert explanation.decision.action == "OK"
    assert explanation.more is None
    (line,) = step_of(explanation, "logins").details
    assert line.startswith("who else is logged in from there cannot be listed: ")


def test_what_is_not_printable_is_not_shown(redis: Redis) -> None:
    table = table_of(redis)
    redis.set(table.keys.login(ADDRESS), b"1 pop3 a\x1b[2Jb\xff\nc", HOUR)
    table.deny_user(b"a\x1b[2jb\xff\nc", "\x1b[2J", HOUR)
    for sender in ("x\x1b[2J@example.com", "jos\udce9@example.com"):
        for match in MATCHES:
            for step in explain_sender(table, sender, match).rows:
                assert all(text.isprintable() for text in (step.saw, step.change, *step.details))
