"""The whole decision as one table: every stand of the login table against every `sender_match` and kind of sender.

What is expected follows from the rules as `expect` states them, from nothing in the code. Logins are written by the
post-login script's own recorder; each case takes the way of `pbs-policy check`, and a sample of them that of Postfix,
over TCP to a running service.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fakeredis
import pytest
from redis import Redis

from pbs_policy.address import ClientAddresses
from pbs_policy.cap import Cap
from pbs_policy.decision.check import Enquiry, check, make_case
from pbs_policy.decision.decide import decide
from pbs_policy.decision.rules import DEFER, Decision, Rules
from pbs_policy.decision.rules import unavailable as say_unavailable
from pbs_policy.decision.sender import SenderRules
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.decision.words import ORDER, Explanation, explain
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.log import printable
from pbs_policy.postfix.protocol import as_request
from pbs_policy.shipped import shipped
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.store.question import Answer, Question, carry_out
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.records import Permit
from tests.service import Service, request
from tests.stores import connect, table_on, target

ADDRESS = "192.0.2.7"
PREFIX = "t:"
ALICE, BOB, CAROL = "alice@example.com", "bob@example.com", "carol@example.net"
MAPS = f"sales@example.org {ALICE}\n"
"""Of sender_maps: alice may also send as sales@example.org."""

Match = Literal["off", "domain", "address"]
MATCHES: tuple[Match, ...] = ("off", "domain", "address")

SENDERS = {
    "matching": ALICE,
    "same domain": "dave@example.com",
    "foreign": "mallory@example.net",
    "null": "",
    "map": "sales@example.org",
}


# --- the writers of the table, as they are in life


@cache
def _recorder() -> Any:
    path = shipped("dovecot-hooks/pbs-postlogin").with_name("pbs_postlogin.py")
    return compile(path.read_text(), str(path), "exec")


class Script:
    """The post-login script's own recording of a login, its commands carried out on `redis`."""

    def __init__(self, redis: Redis, settings_file: Path, **settings: str) -> None:
        settings_file.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        self._file = str(settings_file).encode()
        self._recorder: dict[str, Any] = {"__name__": "recorder"}
        exec(_recorder(), self._recorder)  # noqa: S102 - the script's module, with our Redis in place of its own
        execute: Callable[..., Any] = redis.execute_command
        self._recorder["tell_redis"] = lambda _, commands: [execute(*each) for each in commands]

    def log_in(self, address: str, user: str, service: str = "pop3") -> None:
        """Record one login, as Dovecot has it done."""
        self._recorder["record_login"](self._file, service, {b"IP": address.encode(), b"USER": user.encode()})


def settings_of(match: Match, **settings: str) -> dict[str, str]:
    """The lines of the settings file that concern a login."""
    return {"key_prefix": PREFIX, "sender_match": match, "ttl": "1h", **settings}


def ask(
    table: LoginTable, rules: Rules, address: str = ADDRESS, *, maps: SenderMaps | None = None, **attributes: str
) -> tuple[str, str]:
    """Action and reason for one request, as the service decides it; the text after DEFER_IF_REJECT left off. What
    `pbs-policy check` says of it, rule by rule, is the same."""
    asked = as_request(request(address, **attributes))
    client = ClientAddresses().parse(address)
    try:
        decision = check(Enquiry(table, rules, client, asked, maps))
        assert_the_rows_say_so(explain(Enquiry(table, rules, client, asked, maps)), decision)
    except StoreUnavailable:
        decision = say_unavailable(rules)
    return decision.action.partition(" ")[0], decision.reason


def assert_the_rows_say_so(explanation: Explanation, decision: Decision) -> None:
    """An explanation has this decision; its first refusal is the decision's, with what to change; no rule behind that
    was asked."""
    assert explanation.decision._replace(left=0) == decision._replace(left=0)
    *rows, answer = explanation.rows
    assert tuple(row.rule for row in explanation.rows) == ORDER
    refusals = [row.reason for row in explanation.rows if row.verdict == "refuse"]
    assert set(refusals) == ({decision.reason} if decision.action != "OK" else set()), rows
    verdicts = [row.verdict for row in rows]
    if refusals:
        first = verdicts.index("refuse")
        assert rows[first].change
        assert set(verdicts[:first]) <= {"pass"}, rows
        assert {(row.verdict, row.change, row.reason) for row in rows[first + 1 :]} <= {("not asked", "", "")}, rows
    else:
        assert set(verdicts) == {"pass"}, rows
    assert (answer.verdict == "pass") == (decision.action == "OK")
    if decision.reason == "login":
        assert decision.record is not None
        (login,) = (row for row in rows if row.rule == "logins")
        assert login.saw.startswith(printable(decision.record.user) or "no user recorded")


# --- the rules, stated


class Login(NamedTuple):
    user: str
    has_end: bool = True


@dataclass(frozen=True)
class Stand:
    """What stands in Redis. Logins in the order in which they happened."""

    logins: tuple[Login, ...] = ()
    permit: Literal["", "live", "without end"] = ""
    is_denied: bool = False
    denied_user: str = ""
    is_available: bool = True

    def __str__(self) -> str:
        words = [f"login of {each.user}" + ("" if each.has_end else " without end") for each in self.logins]
        words += [f"permit {self.permit}"] if self.permit else []
        words += ["deny of the address"] if self.is_denied else []
        words += [f"deny of {self.denied_user}"] if self.denied_user else []
        words += [] if self.is_available else ["Redis unavailable"]
        return ", ".join(words) or "nothing"


def justifies(login: Login, match: Match, sender: str) -> bool:
    """Whether a login of this user lets this sender through, if everything else is well."""
    if match == "off":
        return True
    if not sender:
        return False
    mapped = sender == SENDERS["map"] and login.user == ALICE
    if match == "domain":
        return mapped or sender.split("@")[1] == login.user.split("@")[1]
    return mapped or sender == login.user


def looked_at(stand: Stand, match: Match, sender: str) -> list[Login]:
    """The logins that are weighed: with `off` the last one counts for everybody behind the address, with `domain` the
    last one of the domain; a user whom the sender names (by address or map) is found whoever came after him."""
    fitting = [login for login in stand.logins if justifies(login, match, sender)]
    own = [login for login in fitting if match != "off" and (login.user == ALICE and sender == SENDERS["map"])]
    if match == "address":
        return fitting
    return fitting[-1:] + [login for login in own if login not in fitting[-1:]]


def expect(stand: Stand, match: Match, sender: str) -> tuple[str, str]:
    """Action and reason."""
    if not stand.is_available:
        return "DEFER_IF_REJECT", "unavailable"
    logins = looked_at(stand, match, sender)
    if not stand.permit and not stand.logins:
        return "DUNNO", "no_login"
    if not stand.permit and not logins:
        return "DUNNO", "sender_mismatch"
    if stand.is_denied:
        return "DUNNO", "denied"
    if stand.permit == "live":
        return ("DUNNO", "denied_user") if names_denied(stand, match, sender) else ("OK", "permit")
    reasons = [_of_login(stand, login, match, sender) for login in logins]
    if "denied_user" in reasons and "login" not in reasons:
        # The denied user's neighbour is not denied with him: in his own name he still relays.
        own = [login for login in stand.logins if login.user == sender and login not in logins]
        reasons += [_of_login(stand, login, match, sender) for login in own]
    if "login" in reasons:
        return "OK", "login"
    if "denied_user" in reasons:
        return "DUNNO", "denied_user"
    if stand.permit == "without end" or "key_without_end" in reasons:
        return "DUNNO", "key_without_end"
    raise AssertionError("the rules say nothing of this stand")


def _of_login(stand: Stand, login: Login, match: Match, sender: str) -> str:
    if not login.has_end:
        return "key_without_end"
    return "denied_user" if login.user == stand.denied_user or names_denied(stand, match, sender) else "login"


def names_denied(stand: Stand, match: Match, sender: str) -> bool:
    """Whether the sender is the denied user's, whoever is logged in."""
    mapped = match != "off" and sender == SENDERS["map"] and stand.denied_user == ALICE
    return bool(stand.denied_user) and (sender == stand.denied_user or mapped)


def stands() -> Iterator[Stand]:
    """Every combination of logins, permit and denies. An expired login is one that is not there any more."""
    logins: list[tuple[Login, ...]] = [
        (),
        (Login(ALICE),),
        (Login(ALICE, has_end=False),),
        (Login(BOB),),
        (Login(CAROL),),
        (Login(ALICE), Login(BOB)),
        (Login(BOB), Login(ALICE)),
        (Login(ALICE, has_end=False), Login(BOB)),
        (Login(ALICE), Login(CAROL)),
    ]
    permits: list[Literal["", "live", "without end"]] = ["", "live", "without end"]
    for each in itertools.product(logins, permits, [False, True], ["", ALICE, BOB]):
        yield Stand(*each)
    yield Stand((Login(ALICE),), "live", is_available=False)


def write(stand: Stand, redis: Redis, match: Match, directory: Path) -> None:
    """Make it so, through those who write the table in life."""
    table = table_on(redis, PREFIX)
    script = Script(redis, directory / "script.conf", **settings_of(match))
    for login in stand.logins:
        script.log_in(ADDRESS, login.user)
        if not login.has_end:
            for key in redis.scan_iter(match=f"{PREFIX}login:*"):
                redis.persist(key)
    if stand.permit:
        table.permit(target(ADDRESS), Permit(1_700_000_000, "scanner"), 3600)
        if stand.permit == "without end":
            redis.persist(table.keys.permit(ADDRESS))
    if stand.is_denied:
        table.deny(target(ADDRESS), "spam", 3600)
    if stand.denied_user:
        table.deny_user(table.name(stand.denied_user), "spam", 3600)


@pytest.fixture
def maps(tmp_path: Path) -> SenderMaps:
    file = tmp_path / "maps"
    file.write_text(MAPS)
    return SenderMaps.load(file, "")


@pytest.fixture
def unavailable() -> Redis:
    """A Redis that refuses every connection."""
    server = fakeredis.FakeServer()
    server.connected = False
    return fakeredis.FakeRedis(server=server)


@pytest.mark.parametrize("stand", list(stands()), ids=str)
def test_every_stand_with_every_match_and_every_sender(
    stand: Stand, redis: Redis, unavailable: Redis, maps: SenderMaps, tmp_path: Path
) -> None:
    wrong = []
    for match in MATCHES:
        redis.flushall()
        write(stand, redis, match, tmp_path)
        table = table_on(redis if stand.is_available else unavailable, PREFIX)
        for kind, sender in SENDERS.items():
            expected = expect(stand, match, sender)
            seen = ask(table, Rules(SenderRules(match)), maps=maps, sender=sender)
            if seen != expected:
                wrong.append(f"sender_match={match}, {kind} sender: {seen}, expected {expected}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("kind", SENDERS)
def test_an_expired_login_is_none(redis: Redis, tmp_path: Path, maps: SenderMaps, match: Match, kind: str) -> None:
    write(Stand((Login(ALICE),)), redis, match, tmp_path)
    for key in redis.scan_iter(match=f"{PREFIX}login:*"):
        redis.pexpire(key, 0)
    rules = Rules(SenderRules(match))
    assert ask(table_on(redis, PREFIX), rules, maps=maps, sender=SENDERS[kind]) == ("DUNNO", "no_login")


@pytest.mark.parametrize("is_permit", [False, True])
def test_what_ends_between_the_rounds_permits_nothing(redis: Redis, tmp_path: Path, is_permit: bool) -> None:
    write(Stand(() if is_permit else (Login(ALICE),), "live" if is_permit else ""), redis, "off", tmp_path)
    table = table_on(redis, PREFIX)
    case = make_case(Enquiry(table, Rules(), ClientAddresses().parse(ADDRESS), as_request(request(ADDRESS))))
    found, _ = table.read(case.keys)
    assert carry_out(decide(case, found), table.ask).action == "OK"
    redis.delete(table.keys.login(ADDRESS), table.keys.permit(ADDRESS))
    decision = carry_out(decide(case, found), table.ask)
    assert (decision.action, decision.reason) == ("DUNNO", "no_login")


@pytest.mark.parametrize("match", MATCHES)
def test_a_sample_of_the_table_is_true_of_a_running_service(
    redis_server: PrivateRedis, start_service: Callable[..., Service], tmp_path: Path, match: Match
) -> None:
    file = tmp_path / "maps"
    file.write_text(MAPS)
    settings = {**settings_of(match), "sender_maps": str(file), "log_decisions": "all", "usage_kept": "0"}
    service = start_service(redis_url=redis_server.url, **settings)
    sample = [each for each in stands() if each.is_available][::7]
    with connect(RedisUrl.parse(redis_server.url), "", "") as redis, service.connect() as client:
        for stand in sample:
            redis.flushall()
            write(stand, redis, match, tmp_path)
            for sender in SENDERS.values():
                action, reason = expect(stand, match, sender)
                name = f"{len(service.log())}@example.net"
                assert client.ask(ADDRESS, sender=sender, recipient=name) == action, f"{stand}, from <{sender}>"
                assert service.waits_to_log(f"recipient={name}"), "each decision is logged"
                line = next(line for line in service.log().splitlines() if f"recipient={name}" in line)
                assert f"action={action} client_address={ADDRESS} reason={reason} " in line, f"{stand}, <{sender}>"


def test_a_running_service_without_redis_defers(
    start_service: Callable[..., Service], own_redis: Callable[..., PrivateRedis]
) -> None:
    server = own_redis()
    service = start_service(redis_url=server.url)
    server.stop()
    assert service.ask(ADDRESS) == DEFER


# --- smaller tables: the rules that are off by default


@pytest.fixture
def table(redis: Redis) -> LoginTable:
    return table_on(redis, PREFIX)


@pytest.fixture
def log_in(redis: Redis, tmp_path: Path) -> Callable[..., None]:
    """Record a login by the script under these settings."""

    def record(user: str, service: str = "pop3", address: str = ADDRESS, **settings: str) -> None:
        Script(redis, tmp_path / "script.conf", **{**settings_of("domain"), **settings}).log_in(
            address, user, service
        )

    return record


OFF, DOMAIN, BY_ADDRESS = (Rules(SenderRules(match)) for match in MATCHES)


@pytest.mark.parametrize(
    ("service", "services", "expected"),
    [
        ("pop3", "", ("OK", "login")),
        ("pop3", "pop3", ("OK", "login")),
        ("imap", "pop3 imap", ("OK", "login")),
        ("imap", "pop3", ("DUNNO", "service_mismatch")),
        ("POP3", "pop3", ("DUNNO", "service_mismatch")),
        ("sieve", "pop3 imap", ("DUNNO", "service_mismatch")),
    ],
)
@pytest.mark.parametrize("rules", [OFF, DOMAIN, BY_ADDRESS], ids=MATCHES)
def test_only_logins_of_the_services_count(
    table: LoginTable,
    log_in: Callable[..., None],
    rules: Rules,
    service: str,
    services: str,
    expected: tuple[str, str],
) -> None:
    log_in(ALICE, service)
    assert ask(table, replace(rules, services=frozenset(services.split()))) == expected


@pytest.mark.parametrize(
    ("user", "user_domain", "expected"),
    [
        (ALICE, "", ("OK", "login")),
        ("Alice@EXAMPLE.com", "", ("OK", "login")),
        ("alice", "example.com", ("OK", "login")),
        ("alice", "", ("DUNNO", "domain_mismatch")),
        ("alice", "victim.example", ("DUNNO", "domain_mismatch")),
        ("alice@victim.example", "", ("DUNNO", "domain_mismatch")),
        ("alice@sub.example.com", "", ("DUNNO", "domain_mismatch")),
        ("@example.com", "", ("DUNNO", "domain_mismatch")),
        ("example.com", "", ("DUNNO", "domain_mismatch")),  # a name without a domain, whatever it reads like
        ("example.com", "victim.example", ("DUNNO", "domain_mismatch")),
        ("", "example.com", ("DUNNO", "domain_mismatch")),  # Dovecot's last_login plugin records no user
    ],
)
def test_only_logins_of_users_of_the_login_domains_count(
    table: LoginTable, redis: Redis, user: str, user_domain: str, expected: tuple[str, str]
) -> None:
    redis.set(table.keys.login(ADDRESS), f"1700000000 pop3 {user}".rstrip(), ex=60)
    rules = Rules(SenderRules("off", user_domain), login_domains=frozenset({b"example.com", b"example.net"}))
    assert ask(table, rules) == expected
    assert ask(table, Rules(SenderRules("off", user_domain))) == ("OK", "login")


def test_a_login_of_no_known_service_counts_only_where_all_do(table: LoginTable, redis: Redis) -> None:
    redis.set(table.keys.login(ADDRESS), b"1700000000", ex=60)  # as Dovecot's last_login plugin writes it
    assert ask(table, OFF) == ("OK", "login")
    assert ask(table, replace(OFF, services=frozenset(["pop3"]))) == ("DUNNO", "service_mismatch")


@pytest.mark.parametrize("rules", [OFF, DOMAIN, BY_ADDRESS], ids=MATCHES)
def test_a_login_that_does_not_count_is_not_in_the_way_of_one_that_does(
    table: LoginTable, log_in: Callable[..., None], rules: Rules
) -> None:
    log_in(ALICE, "pop3", services="pop3")
    log_in(ALICE, "imap", services="pop3")
    log_in(BOB, "imap", services="pop3")
    assert ask(table, replace(rules, services=frozenset(["pop3"]))) == ("OK", "login")


def test_services_do_not_concern_a_permit(table: LoginTable) -> None:
    table.permit(target(ADDRESS), Permit(1), 60)
    assert ask(table, replace(OFF, services=frozenset(["pop3"]))) == ("OK", "permit")


@pytest.mark.parametrize(
    ("protocol", "expected"), [("TLSv1.3", "OK"), ("TLSv1", "OK"), ("", "DUNNO"), (None, "DUNNO")]
)
@pytest.mark.parametrize("is_permit", [False, True])
def test_with_require_tls_the_session_must_be_encrypted(
    table: LoginTable, log_in: Callable[..., None], is_permit: bool, protocol: str | None, expected: str
) -> None:
    if is_permit:
        table.permit(target(ADDRESS), Permit(1), 60)
    else:
        log_in(ALICE)
    attributes: dict[str, Any] = {} if protocol is None else {"encryption_protocol": protocol}
    reason = ("permit" if is_permit else "login") if expected == "OK" else "no_tls"
    assert ask(table, Rules(require_tls=True), **attributes) == (expected, reason)
    assert ask(table, Rules(), **attributes)[0] == "OK"


@pytest.mark.parametrize(
    ("permit", "sender", "recipient", "expected"),
    [
        (Permit(1), "", "x@example.net", ("OK", "permit")),
        (Permit(1, senders=(ALICE,)), ALICE, "x@example.net", ("OK", "permit")),
        (Permit(1, senders=(ALICE,)), "Alice@Example.COM", "x@example.net", ("OK", "permit")),
        (Permit(1, senders=(CAROL, ALICE)), ALICE, "x@example.net", ("OK", "permit")),
        (Permit(1, senders=(ALICE,)), BOB, "x@example.net", ("DUNNO", "sender_mismatch")),
        (Permit(1, senders=(ALICE,)), "", "x@example.net", ("DUNNO", "sender_mismatch")),
        (Permit(1, senders=("@example.com",)), BOB, "x@example.net", ("OK", "permit")),
        (Permit(1, senders=("@example.com",)), "b@sub.example.com", "x@example.net", ("DUNNO", "sender_mismatch")),
        (Permit(1, senders=("@example.com",)), "@example.com", "x@example.net", ("DUNNO", "sender_mismatch")),
        (Permit(1, senders=("@example.com",)), "x@y@example.com", "x@example.net", ("DUNNO", "sender_mismatch")),
        (Permit(1, recipient_domains=("example.net",)), ALICE, "x@example.net", ("OK", "permit")),
        (Permit(1, recipient_domains=("example.net",)), ALICE, "x@EXAMPLE.net", ("OK", "permit")),
        (Permit(1, recipient_domains=("a.net", "example.net")), "", "x@example.net", ("OK", "permit")),
        (Permit(1, recipient_domains=("example.net",)), ALICE, "x@sub.example.net", ("DUNNO", "recipient_mismatch")),
        (Permit(1, recipient_domains=("example.net",)), ALICE, "example.net", ("DUNNO", "recipient_mismatch")),
        (Permit(1, recipient_domains=("example.net",)), ALICE, "", ("DUNNO", "recipient_mismatch")),
        (
            Permit(1, senders=(ALICE,), recipient_domains=("a.net",)),
            ALICE,
            "x@b.net",
            ("DUNNO", "recipient_mismatch"),
        ),
        (Permit(1, senders=(ALICE,), recipient_domains=("a.net",)), BOB, "x@a.net", ("DUNNO", "sender_mismatch")),
        (Permit(1, senders=(ALICE,), recipient_domains=("a.net",)), ALICE, "x@a.net", ("OK", "permit")),
    ],
)
@pytest.mark.parametrize("of", [ADDRESS, "192.0.2.0/24"])
def test_every_condition_of_a_permit_must_hold(
    table: LoginTable, of: str, permit: Permit, sender: str, recipient: str, expected: tuple[str, str]
) -> None:
    table.permit(target(of), permit, 60)
    assert ask(table, OFF, sender=sender, recipient=recipient) == expected
    assert ask(table, BY_ADDRESS, sender=sender, recipient=recipient) == expected, "a permit has its own senders"


def test_where_the_permit_does_not_hold_a_login_may(table: LoginTable, log_in: Callable[..., None]) -> None:
    table.permit(target(ADDRESS), Permit(1, senders=("scanner@example.org",)), 60)
    log_in(ALICE)
    assert ask(table, BY_ADDRESS, sender=ALICE) == ("OK", "login")
    assert ask(table, BY_ADDRESS, sender="scanner@example.org") == ("OK", "permit")
    assert ask(table, BY_ADDRESS, sender=BOB) == ("DUNNO", "sender_mismatch")


def test_a_condition_that_is_not_known_here_permits_nothing(table: LoginTable, redis: Redis) -> None:
    redis.set(table.keys.permit(ADDRESS), b'{"given_at": 1, "only_on_sundays": true}', ex=60)
    assert ask(table, OFF) == ("DUNNO", "no_login")


NETWORKS = ["192.0.2.6/31", "192.0.2.0/24", "192.0.0.0/16"]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_permit_of_a_network_holds_for_its_clients_and_no_others(table: LoginTable, network: str) -> None:
    table.permit(target(network), Permit(1), 60)
    assert ask(table, OFF) == ("OK", "permit")
    assert ask(table, OFF, "100.64.0.1") == ("DUNNO", "no_login")
    assert ask(table, OFF, "2001:db8::7") == ("DUNNO", "no_login")


@pytest.mark.parametrize("network", [*NETWORKS, "192.0.0.0/8", "128.0.0.0/1"])
@pytest.mark.parametrize("is_permit", [False, True])
def test_a_deny_of_a_network_outranks_what_its_clients_have_and_no_others(
    table: LoginTable, log_in: Callable[..., None], network: str, is_permit: bool
) -> None:
    for address in (ADDRESS, "100.64.0.1", "2001:db8::7"):
        log_in(ALICE, address=address)
        if is_permit:
            table.permit(target(address), Permit(1), 60)
    table.deny(target(network), "spam", 60)
    log_in(ALICE)  # a later login changes nothing
    assert ask(table, OFF) == ("DUNNO", "denied")
    assert ask(table, OFF, "2001:db8::7")[0] == "OK"
    assert ask(table, OFF, "100.64.0.1")[0] == "OK"
    assert table.undeny(target(network))
    assert ask(table, OFF)[0] == "OK"


def test_a_permit_inside_a_denied_network_and_a_deny_inside_a_permitted_one_are_both_refused(
    table: LoginTable,
) -> None:
    table.permit(target("192.0.2.0/24"), Permit(1), 60)
    table.deny(target("192.0.0.0/16"), "spam", 60)
    table.permit(target("198.51.0.0/16"), Permit(1), 60)
    table.deny(target("198.51.100.0/24"), "spam", 60)
    table.deny(target("198.51.101.7"), "spam", 60)
    assert ask(table, OFF) == ("DUNNO", "denied")
    assert ask(table, OFF, "198.51.100.7") == ("DUNNO", "denied")
    assert ask(table, OFF, "198.51.101.7") == ("DUNNO", "denied")
    assert ask(table, OFF, "198.51.101.8") == ("OK", "permit")


def test_the_narrowest_permit_that_holds_decides(table: LoginTable) -> None:
    rules = OFF
    for text, user in [("192.0.0.0/16", "wide"), ("192.0.2.0/24", "narrow"), (ADDRESS, "own")]:
        table.permit(target(text), Permit(1, user=user, senders=(f"{user}@example.org", ALICE)), 60)
    for sender, user in [(ALICE, "own"), ("narrow@example.org", "narrow"), ("wide@example.org", "wide")]:
        asked = as_request(request(ADDRESS, sender=sender))
        decision = check(Enquiry(table, rules, ClientAddresses().parse(ADDRESS), asked))
        assert decision.record is not None
        assert decision.record.user == user


@pytest.mark.parametrize("rules", [OFF, DOMAIN, BY_ADDRESS], ids=MATCHES)
def test_a_deny_of_everybody_is_a_deny_of_everybody(
    table: LoginTable, log_in: Callable[..., None], rules: Rules
) -> None:
    log_in(ALICE)
    table.permit(target("192.0.2.8"), Permit(1), 60)
    table.permit(target("2001:db8::/32"), Permit(1), 60)
    clients = (ADDRESS, "192.0.2.8", "2001:db8::7")
    assert {ask(table, rules, each)[0] for each in clients} == {"OK"}
    table.deny(None, "maintenance", 60)
    log_in(ALICE)
    assert {ask(table, rules, each) for each in clients} == {("DUNNO", "denied")}
    assert ask(table, rules, "192.0.2.9") == ("DUNNO", "no_login")
    assert table.undeny(None)
    assert {ask(table, rules, each)[0] for each in clients} == {"OK"}


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("null_sender", ["permit", "refuse"])
def test_the_null_sender_is_permitted_or_refused_as_set_where_senders_are_matched(
    table: LoginTable, log_in: Callable[..., None], match: Match, null_sender: Literal["permit", "refuse"]
) -> None:
    rules = Rules(SenderRules(match, null_sender=null_sender))
    assert ask(table, rules, sender="") == ("DUNNO", "no_login")
    log_in(ALICE)
    permitted = match == "off" or null_sender == "permit"
    assert ask(table, rules, sender="") == (("OK", "login") if permitted else ("DUNNO", "sender_mismatch"))
    assert ask(table, rules, sender="mallory@example.net")[0] == ("OK" if match == "off" else "DUNNO")
    table.deny_user(table.name(ALICE), "spam", 60)
    assert ask(table, rules, sender="")[0] == "DUNNO"


@pytest.mark.parametrize(
    ("user", "user_domain", "sender", "match", "action"),
    [
        ("alice", "example.com", ALICE, "address", "OK"),
        ("alice", "example.com", ALICE, "domain", "OK"),
        ("Alice", "Example.com", ALICE, "address", "OK"),
        ("alice", "example.com", BOB, "domain", "OK"),
        ("alice", "example.com", BOB, "address", "DUNNO"),
        ("alice", "", ALICE, "address", "DUNNO"),
        ("alice", "", ALICE, "domain", "DUNNO"),
        ("alice", "example.net", ALICE, "domain", "DUNNO"),
        (ALICE, "example.net", ALICE, "address", "OK"),
        ("alice", "example.com", "alice", "address", "DUNNO"),
        ("alice", "example.com", "alice", "domain", "DUNNO"),
    ],
)
def test_user_domain_completes_users_without_a_domain(
    table: LoginTable, log_in: Callable[..., None],
    user: str, user_domain: str, sender: str, match: Match, action: str,
) -> None:  # fmt: skip
    log_in(user, user_domain=user_domain)
    assert ask(table, Rules(SenderRules(match, user_domain.lower())), sender=sender)[0] == action


@pytest.mark.parametrize("denied", ["alice", ALICE, "ALICE@example.com"])
@pytest.mark.parametrize("user", ["alice", ALICE])
@pytest.mark.parametrize("match", MATCHES)
def test_a_deny_meets_a_user_in_either_spelling(
    redis: Redis, log_in: Callable[..., None], match: Match, user: str, denied: str
) -> None:
    table = table_on(redis, PREFIX, user_domain="example.com")
    rules = Rules(SenderRules(match, "example.com"))
    log_in(user, user_domain="example.com")
    assert ask(table, rules) == ("OK", "login")
    table.deny_user(table.name(denied), "spam", 60)
    log_in(user, user_domain="example.com")
    assert ask(table, rules) == ("DUNNO", "denied_user")
    assert table.undeny_user(table.name(denied))
    assert ask(table, rules) == ("OK", "login")


# --- the second wave: two users behind one address, one of them denied


@pytest.mark.parametrize("match", ["off", "domain"])
@pytest.mark.parametrize(
    ("sender", "expected"),
    [
        (ALICE, ("OK", "login")),
        ("Alice@EXAMPLE.com", ("OK", "login")),
        (BOB, ("DUNNO", "denied_user")),
        ("dave@example.com", ("DUNNO", "denied_user")),
    ],
)
def test_the_neighbour_of_a_denied_user_still_relays_in_his_own_name(
    table: LoginTable, log_in: Callable[..., None], match: Match, sender: str, expected: tuple[str, str]
) -> None:
    log_in(ALICE)
    log_in(BOB)
    table.deny_user(table.name(BOB), "spam", 60)
    log_in(BOB)
    assert ask(table, Rules(SenderRules(match)), sender=sender) == expected


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("sender", [BOB, "Bob@EXAMPLE.com", "bob+list@example.com"])
def test_nobody_relays_in_a_denied_users_name_at_whoevers_login_or_permit(
    table: LoginTable, log_in: Callable[..., None], match: Match, sender: str
) -> None:
    rules = Rules(SenderRules(match, recipient_delimiter="+"))
    log_in(BOB)
    log_in(ALICE)
    assert ask(table, rules, sender=sender) == ("OK", "login")
    table.deny_user(table.name(BOB), "spam", 60)
    assert ask(table, rules, sender=sender) == ("DUNNO", "denied_user")
    table.permit(target(ADDRESS), Permit(1), 60)
    assert ask(table, rules, sender=sender) == ("DUNNO", "denied_user")
    assert ask(table, rules, sender=ALICE) == ("OK", "permit")


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("batv", ["off", "fold"])
@pytest.mark.parametrize("sender", [
    "prvs=1234abcdef=bob@example.com", "PRVS=1=Bob+list@EXAMPLE.com", "btv1==1==bob@example.com",
    "prvs=1=btv1==2==prvs=3=bob@example.com", "SRS0=HHH=TT=example.com=bob@example.com",
    "srs0+h=t=example.com=prvs=1=bob@example.com", "SRS1=G=example.net==HHH=TT=example.com=bob@example.com",
    "prvs=1=SRS0=HHH=TT=example.com=bob@example.com",
])  # fmt: skip
def test_a_denied_user_hides_in_no_tag_of_a_sender(
    table: LoginTable, log_in: Callable[..., None], match: Match, batv: Literal["off", "fold"], sender: str
) -> None:
    rules = Rules(SenderRules(match, recipient_delimiter="+", batv=batv))
    log_in(BOB)
    log_in(ALICE)
    table.permit(target(ADDRESS), Permit(1), 60)
    assert ask(table, rules, sender=sender) == ("OK", "permit")
    for user in (BOB.encode(), b"bob"):
        table.deny_user(user, "spam", 60)
        assert ask(table, rules, sender=sender) == ("DUNNO", "denied_user")
        table.undeny_user(user)


@pytest.mark.parametrize(("match", "batv", "expected"), [
    ("address", "off", ("DUNNO", "sender_mismatch")), ("address", "fold", ("OK", "login")),
    ("domain", "off", ("OK", "login")), ("off", "off", ("OK", "login")),
])  # fmt: skip
def test_a_sender_with_a_batv_tag_is_its_users_where_the_setting_says_so(
    table: LoginTable, log_in: Callable[..., None], match: Match, batv: Literal["off", "fold"],
    expected: tuple[str, str],
) -> None:  # fmt: skip
    log_in(ALICE)
    assert ask(table, Rules(SenderRules(match, batv=batv)), sender=f"prvs=1234abcdef={ALICE}") == expected


def test_the_login_of_the_user_within_an_srs_tag_justifies_no_sender(
    table: LoginTable, log_in: Callable[..., None]
) -> None:
    log_in(ALICE)
    log_in(CAROL)
    rules = Rules(SenderRules("domain", batv="fold"))
    sender = "srs0=h=t=example.com=alice@example.net"
    assert ask(table, rules, sender=sender) == ("OK", "login")
    table.deny_user(CAROL.encode(), "spam", 60)
    log_in(CAROL)
    assert ask(table, rules, sender=sender) == ("DUNNO", "denied_user")


def test_a_sender_of_several_users_is_denied_when_all_of_them_are(
    table: LoginTable, log_in: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "maps").write_text(f"dave@example.com {ALICE}, {CAROL}\n")
    maps = SenderMaps.load(tmp_path / "maps", "")
    log_in(BOB)
    assert ask(table, DOMAIN, maps=maps, sender="dave@example.com") == ("OK", "login")
    table.deny_user(table.name(ALICE), "spam", 60)
    assert ask(table, DOMAIN, maps=maps, sender="dave@example.com") == ("OK", "login")
    table.deny_user(table.name(CAROL), "spam", 60)
    assert ask(table, DOMAIN, maps=maps, sender="dave@example.com") == ("DUNNO", "denied_user")


@pytest.mark.parametrize("match", MATCHES)
def test_the_neighbours_login_must_hold_like_any_other(
    table: LoginTable, redis: Redis, log_in: Callable[..., None], match: Match
) -> None:
    log_in(ALICE, "imap")
    log_in(BOB)
    table.deny_user(table.name(BOB), "spam", 60)
    rules = Rules(SenderRules(match))
    assert ask(table, rules) == ("OK", "login")
    assert ask(table, replace(rules, services=frozenset(["pop3"])))[0] == "DUNNO"
    assert ask(table, replace(rules, require_tls=True))[0] == "DUNNO"
    table.deny(target("192.0.2.0/24"), "spam", 60)
    assert ask(table, rules) == ("DUNNO", "denied")
    table.undeny(target("192.0.2.0/24"))
    table.deny_user(table.name(ALICE), "spam", 60)
    assert ask(table, rules) == ("DUNNO", "denied_user")
    table.undeny_user(table.name(ALICE))
    redis.persist(table.keys.login(ADDRESS, ALICE.encode()))
    assert ask(table, rules)[0] == "DUNNO"
    redis.delete(table.keys.login(ADDRESS, ALICE.encode()))
    assert ask(table, rules)[0] == "DUNNO"


def test_a_permit_for_a_denied_user_is_none_and_his_neighbours_login_counts(
    table: LoginTable, log_in: Callable[..., None]
) -> None:
    table.permit(target(ADDRESS), Permit(1, user=BOB), 60)
    table.deny_user(table.name(BOB), "spam", 60)
    assert ask(table, OFF) == ("DUNNO", "denied_user")
    log_in(ALICE)
    assert ask(table, OFF) == ("OK", "login")
    assert ask(table, DOMAIN, sender="dave@example.com") == ("OK", "login")


@pytest.mark.parametrize("match", ["domain", "address"])
@pytest.mark.parametrize("sender", ["alice", "alice%x@example.com", "", "a@alice@example.com"])
def test_the_second_look_matches_no_sender_whom_sender_match_does_not(
    redis: Redis, log_in: Callable[..., None], match: Match, sender: str
) -> None:
    """A sender of which mailbox and domain are not certain matches nobody, whoever else is denied there."""
    table = table_on(redis, PREFIX, user_domain="example.com")
    rules = Rules(SenderRules(match, "example.com"))
    log_in(sender or ALICE, user_domain="example.com")
    assert ask(table, rules, sender=sender) == ("DUNNO", "sender_mismatch")
    table.permit(target(ADDRESS), Permit(1, user=BOB), 60)
    table.deny_user(table.name(BOB), "spam", 60)
    assert ask(table, rules, sender=sender)[0] == "DUNNO"


# --- names that are not certain, and users who are not known


UNCERTAIN = [
    "alice@example.com.", "alice%example.com", "example.com!alice", "alice", "alice@example", "a@b@example.com",
    "alice@[192.0.2.1]", "alice@b\u00fccher.example", "alice@xn--bcher-kva.example", "alice@example.XN--P1AI",
    "\u00e4lice@example.com", 'al"ice@example.com', "al ice@example.com", "@example.com", "alice@",
    "alice@.example.com", f"{'a' * 320}@example.com",
]  # fmt: skip


@pytest.mark.parametrize("sender", UNCERTAIN)
@pytest.mark.parametrize("is_permit", [False, True])
def test_while_any_user_is_denied_nobody_relays_in_a_name_that_is_not_certain(
    table: LoginTable, log_in: Callable[..., None], sender: str, is_permit: bool
) -> None:
    log_in(BOB)
    if is_permit:
        table.permit(target(ADDRESS), Permit(1), 60)
    assert ask(table, OFF, sender=sender)[0] == "OK"
    table.deny_user(table.name(CAROL), "spam", 60)
    assert ask(table, OFF, sender=sender) == ("DUNNO", "sender_uncertain")
    for certain in (BOB, "dave@sub.example.org", "d'o+x_y@example.net", ""):
        assert ask(table, OFF, sender=certain)[0] == "OK"
    table.undeny_user(table.name(CAROL))
    assert ask(table, OFF, sender=sender)[0] == "OK"


@pytest.mark.parametrize("recipient", [
    "x%elsewhere.example@example.net", "elsewhere.example!x@example.net", "x@elsewhere.example@example.net",
    "x@example.net.", "@example.net", "x@", "x\x7f@example.net",
])  # fmt: skip
def test_a_recipient_that_postfix_would_route_is_in_no_permitted_domain(table: LoginTable, recipient: str) -> None:
    table.permit(target(ADDRESS), Permit(1, recipient_domains=("example.net", "example.net.")), 60)
    assert ask(table, OFF, recipient="x@example.net") == ("OK", "permit")
    assert ask(table, OFF, recipient=recipient) == ("DUNNO", "recipient_mismatch")


@pytest.mark.parametrize("value", ["1700000000", "1700000000 imap", "1700000000 imap @example.com"])
def test_a_login_without_a_user_fails_user_rules(
    table: LoginTable, redis: Redis, log_in: Callable[..., None], value: str
) -> None:
    log_in(BOB)
    redis.set(table.keys.login(ADDRESS), value, ex=60)  # as Dovecot's last_login plugin writes it
    assert ask(table, OFF, sender=CAROL) == ("OK", "login")
    assert ask(table, replace(OFF, user_cap=Cap(5, 60)), sender=CAROL) == ("DUNNO", "user_unknown")
    assert ask(table, replace(OFF, address_cap=Cap(5, 60)), sender=CAROL) == ("OK", "login")
    table.deny_user(table.name(ALICE), "spam", 60)
    assert ask(table, OFF, sender=CAROL) == ("DUNNO", "user_unknown")
    assert ask(table, OFF, sender=BOB) == ("OK", "login"), "whose own login is there beside it"
    table.permit(target(ADDRESS), Permit(1), 60)
    assert ask(table, OFF, sender=CAROL) == ("OK", "permit"), "a permit is for an address"


def test_a_denied_user_without_a_domain_could_be_of_any_where_user_domain_is_not_set(
    table: LoginTable, log_in: Callable[..., None]
) -> None:
    log_in(BOB)
    rules = Rules(SenderRules(recipient_delimiter="+"))
    table.deny_user(b"alice", "spam", 60)
    for sender in ("alice@example.com", "Alice@example.org", "alice+x@example.net"):
        assert ask(table, rules, sender=sender) == ("DUNNO", "denied_user")
    assert ask(table, rules, sender="alicia@example.com") == ("OK", "login")
    known = Rules(SenderRules(user_domain="example.org"))
    assert ask(table, known, sender="alice@example.com") == ("OK", "login")


@pytest.mark.parametrize("user", ["alice@example.com.", "alice+x@example.com", "alice+x@example.com."])
def test_a_denied_user_is_denied_under_the_other_names_of_a_login(
    table: LoginTable, log_in: Callable[..., None], user: str
) -> None:
    log_in(user)
    rules = Rules(SenderRules(recipient_delimiter="+"))
    assert ask(table, rules, sender=BOB) == ("OK", "login")
    table.deny_user(b"alice@example.com", "spam", 60)
    assert ask(table, rules, sender=BOB) == ("DUNNO", "denied_user")
    table.undeny_user(b"alice@example.com")
    table.deny_user(b"alice", "spam", 60)
    assert ask(table, rules, sender=BOB) == ("DUNNO", "denied_user")


def test_the_mark_of_denied_users_lasts_as_long_as_the_longest_of_their_denies(
    table: LoginTable, redis: Redis
) -> None:
    mark = table.keys.user_denies
    assert not table.undeny_user(b"alice@example.com")
    assert redis.get(mark) is None
    table.deny_user(b"alice@example.com", "spam", 100)
    table.deny_user(b"bob@example.com", "spam", 1000)
    table.deny_user(b"alice@example.com", "spam", 50)
    table.deny(target(ADDRESS), "spam", 5000)
    assert redis.get(mark) == b"1"
    assert 1000 <= redis.ttl(mark) <= 1002
    assert table.undeny_user(b"bob@example.com")
    assert 98 <= redis.ttl(mark) <= 102
    assert table.undeny_user(b"alice@example.com")
    assert redis.get(mark) is None


# --- what can refuse is read no earlier than what permits


class Flickering:
    """A table that is emptied before one round, and put back before another: never a login without its deny."""

    def __init__(self, redis: Redis, table: LoginTable, away: int) -> None:
        self._redis, self._table, self._away = redis, table, away
        self._all = {key: redis.dump(key) or b"" for key in redis.scan_iter()}
        self.rounds = 1

    def ask(self, question: Question) -> Answer:
        if self.rounds == self._away:
            self._redis.flushall()
        elif self.rounds == self._away + 1:
            self.put_back()
        self.rounds += 1
        return self._table.ask(question)

    def put_back(self) -> None:
        for key, value in self._all.items():
            self._redis.restore(key, 60_000, value)

    def ask_in_two_pieces(self, question: Question) -> Answer:
        """The table is empty while the values are read, and there while the times are: Redis may take what comes in
        one go in two pieces, and do what others say in between."""
        self._redis.flushall()
        values, _ = self._table.ask(Question(question.keys))
        self.put_back()
        return Answer(values, self._table.ask(Question((), question.commands)).replies)


@pytest.mark.parametrize("away", [1, 2, 3])
@pytest.mark.parametrize("against", ["address", "network", "everybody", "user", "cap"])
def test_a_table_that_is_emptied_and_put_back_permits_nobody_who_was_always_refused(
    redis: Redis, log_in: Callable[..., None], against: str, away: int
) -> None:
    table = table_on(redis, PREFIX)
    log_in(ALICE)
    table.deny(target("192.0.2.8/31"), "another network", 60)
    rules = replace(OFF, address_cap=Cap(1, 60))
    if against == "user":
        table.deny_user(table.name(ALICE), "spam", 60)
    elif against == "cap":
        redis.sadd(table.keys.counted(f"address:{ADDRESS}".encode())[0], 1)
        redis.expire(table.keys.counted(f"address:{ADDRESS}".encode())[0], 60)
    else:
        names = {"address": ADDRESS, "network": "192.0.2.0/24", "everybody": ""}
        table.deny(target(names[against]) if names[against] else None, "spam", 60)
    asked = as_request(request(ADDRESS, sender=ALICE))
    case = make_case(Enquiry(table, rules, ClientAddresses().parse(ADDRESS), asked))
    found, _ = table.read(case.keys)
    flickering = Flickering(redis, table, away)
    assert carry_out(decide(case, found), flickering.ask).action == "DUNNO"


@pytest.mark.parametrize("kind", ["login", "permit"])
def test_nor_where_it_is_emptied_and_put_back_within_a_round(
    redis: Redis, log_in: Callable[..., None], kind: str
) -> None:
    table = table_on(redis, PREFIX)
    if kind == "login":
        log_in(ALICE)
    else:
        table.permit(target(ADDRESS), Permit(1), 60)
    table.deny(target("192.0.2.0/24"), "spam", 60)
    asked = as_request(request(ADDRESS, sender=ALICE))
    case = make_case(Enquiry(table, OFF, ClientAddresses().parse(ADDRESS), asked))
    found, _ = table.read(case.keys)
    decision = carry_out(decide(case, found), Flickering(redis, table, 0).ask_in_two_pieces)
    assert (decision.action, decision.reason) == ("DUNNO", "no_login")


# --- caps and observe_only, as far as a look can tell: counting is in test_caps.py


def test_a_look_counts_nothing_and_says_when_the_cap_is_reached(
    table: LoginTable, redis: Redis, log_in: Callable[..., None]
) -> None:
    log_in(ALICE)
    rules = Rules(address_cap=Cap(2, 60))
    for _ in range(5):
        assert ask(table, rules) == ("OK", "login")
    redis.sadd(table.keys.counted(f"address:{ADDRESS}".encode())[0], 1, 2)
    before = {key: redis.dump(key) for key in redis.scan_iter()}
    assert ask(table, rules) == ("DUNNO", "cap")
    assert {key: redis.dump(key) for key in redis.scan_iter()} == before


@pytest.mark.parametrize("stand", list(stands())[::11], ids=str)
def test_observed_the_action_is_dunno_and_what_it_would_be_is_said(
    stand: Stand, redis: Redis, maps: SenderMaps, tmp_path: Path
) -> None:
    write(stand, redis, "domain", tmp_path)
    for sender in SENDERS.values():
        action, reason = expect(stand, "domain", sender)
        asked = as_request(request(ADDRESS, sender=sender))
        rules = Rules(SenderRules("domain"), observe_only=True)
        decision = check(Enquiry(table_on(redis, PREFIX), rules, ClientAddresses().parse(ADDRESS), asked, maps))
        assert (decision.action, decision.would_be, decision.reason) == ("DUNNO", action, reason)


def test_the_table_itself_knows_every_answer() -> None:
    """It covers what it says: each reason is expected somewhere, and each match and sender makes a difference."""
    answers = {
        (match, kind): [expect(stand, match, sender) for stand in stands()]
        for match in MATCHES
        for kind, sender in SENDERS.items()
    }
    reasons: Mapping[str, set[str]] = {
        "OK": {"login", "permit"},
        "DUNNO": {"no_login", "sender_mismatch", "denied", "denied_user", "key_without_end"},
        "DEFER_IF_REJECT": {"unavailable"},
    }
    for action, names in reasons.items():
        assert {reason for rows in answers.values() for each, reason in rows if each == action} == names
    assert len({tuple(rows) for rows in answers.values()}) > 6
