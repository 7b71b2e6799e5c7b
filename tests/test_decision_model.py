"""The decision against a model: logins, permits, denies, revocations, caps and time, in any order.

The model below is plain Python and knows no keys, no rounds and no Redis: it remembers what was done, and says by the
rules who may relay. The service is never to say OK where the model does not; nor anything else than the model, where
its server knows of every permitted network. The decision is the service's own, counted as the service counts; several
servers share one Redis, and each has learned of permitted networks when its upkeep last looked.

`PBS_MODEL_EXAMPLES=20000 python -m pytest -q --timeout=0 tests/test_decision_model.py` is a long run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal

import fakeredis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from pbs_policy.address import ClientAddresses, networks_of
from pbs_policy.cap import Cap
from pbs_policy.decision.case import Case
from pbs_policy.decision.check import Enquiry
from pbs_policy.decision.decide import decide, decide_at_once
from pbs_policy.decision.rules import Decision, Rules
from pbs_policy.decision.sender import SenderRules
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.decision.words import Explanation, explain
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.postfix.protocol import as_request
from pbs_policy.store.question import carry_out
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import NO_END
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.networks import Lengths, parse_lengths
from pbs_policy.table.records import Permit
from tests.service import request
from tests.stores import connect, table_on, target
from tests.test_caps import advance
from tests.test_decision_table import Script, assert_the_rows_say_so

EXAMPLES = int(os.environ.get("PBS_MODEL_EXAMPLES", "40"))
STEPS = 50

PREFIX = "t:"
USER_DOMAIN = "example.com"
TTL = 2000
"""Seconds of a login. Every time here is a multiple of ten: what the test itself takes is lost in that."""

ADDRESSES = ("192.0.2.7", "192.0.2.8", "2001:db8::7")
NETWORKS = ("192.0.0.0/16", "192.0.2.0/24", "192.0.2.6/31", "2001:db8::/32")
USERS = ("alice@example.com", "Bob@example.com", "carol@example.net", "dave", "")
SENDERS = ("alice@example.com", "bob@EXAMPLE.com", "sales@example.org", "dave@example.com", "alice+lists@example.com",
           "Carol@example.net", "x@example.net", "mallory@example.com", "", "dave", "a@b@example.com",
           "prvs=0a1b=alice+lists@example.com", "SRS0=h=t=example.com=alice@example.net",
           "alice@example.com.", "alice%example.com", "example.com!alice", "bob@example")  # fmt: skip
MAPS = {"sales@example.org": ("alice@example.com", "dave@example.com"), "@example.net": ("bob@example.com",)}
RECIPIENTS = ("one@example.org", "two@example.org", "three@example.com", "four@example.com")

addresses, networks, users = (
    st.sampled_from((ADDRESSES[0], ADDRESSES[0], *ADDRESSES)),
    st.sampled_from(NETWORKS),
    st.sampled_from(USERS),
)
targets = addresses | networks
services = st.sampled_from(["pop3", "pop3", "pop3", "imap"])
logins = st.lists(st.tuples(addresses, users, services), min_size=2, max_size=5)
requests = st.tuples(
    st.sampled_from(SENDERS),
    st.sampled_from(RECIPIENTS),
    st.sampled_from(["m1", "m2"]),
    st.sampled_from(["TLSv1.3", ""]),
)
times = st.sampled_from([300, 1000, 3000])
cap_limits = st.sampled_from([None, None, 1, 2, 5])


# --- the model


@dataclass
class Given:
    """A permit, as the model remembers it."""

    permit: Permit
    end: float


@dataclass
class Window:
    """Whom a cap has let through and refused in its period."""

    end: float = 0.0
    members: set[object] = field(default_factory=set)
    refused: set[object] = field(default_factory=set)


def complete(user: str) -> str:
    """A user as everybody writes it."""
    user = user.lower()
    return user if "@" in user or not user else f"{user}@{USER_DOMAIN}"


@dataclass
class Model:
    """What was done, and what follows from it."""

    rules: Rules
    now: float = 0.0
    order: int = 0
    logins: dict[tuple[str, str], tuple[int, float, str]] = field(default_factory=dict)  # number, end, service
    permits: dict[str, Given] = field(default_factory=dict)
    denies: dict[str, float] = field(default_factory=dict)  # an address, a network, a user, or "all": until when
    windows: dict[str, Window] = field(default_factory=dict)

    def log_in(self, address: str, user: str, service: str) -> None:
        if self.rules.services and service not in self.rules.services:
            return
        self.order += 1
        self.logins.pop((address, ""), None)  # without a user it is known as the last login only
        self.logins[address, complete(user)] = (self.order, self.now + TTL, service)

    def is_denied(self, name: str) -> bool:
        return self.denies.get(name, 0) > self.now

    def is_any_user_denied(self) -> bool:
        return any(end > self.now for name, end in self.denies.items() if "@" in name)

    def is_refused(self, user: str) -> bool:
        """Whether this user's logins give nothing: denied, or not known where that would have to be known."""
        return self.is_denied(user) if user else bool(self.rules.user_cap) or self.is_any_user_denied()

    def is_address_denied(self, address: str) -> bool:
        wider = [each for each in NETWORKS if ip_address(address) in ip_network(each)]
        return any(self.is_denied(each) for each in ("all", address, *wider))

    def live_logins(self, address: str) -> list[tuple[str, str]]:
        """User and service of each login from an address, the last one first."""
        live = [(number, user, service) for (at, user), (number, end, service) in self.logins.items()
                if at == address and end > self.now]  # fmt: skip
        return [(user, service) for _, user, service in sorted(live, reverse=True)]

    def decide(
        self, address: str, sender: str, recipient: str, tls: bool, message: object, seen: Callable[[str], bool]
    ) -> tuple[str, str]:
        """The action and reason to expect, the reason "" where it is not for this model to say. `seen` tells of
        which networks the server knows that there are permits."""
        if (self.rules.require_tls and not tls) or self.is_address_denied(address):
            return "DUNNO", ""
        if self.is_sender_denied(sender) or (self.is_any_user_denied() and not is_certain(sender)):
            return "DUNNO", ""
        was_capped = False
        for name, permit in self.held_permits(address):
            holds = permit_holds(permit, sender, recipient, self.rules.senders.batv)
            if not seen(name) or not holds or self.is_denied(complete(permit.user)):
                continue
            if self.count(self.caps_of_permit(name, permit, address), message, address):
                return "OK", "permit"
            was_capped = True
        for user in self.logins_for(address, sender):
            if self.count(self.caps_of(address, user), message, address):
                return "OK", "login"
            was_capped = True
        # An address that is denied for this very recipient may be told of the deny, where another login is looked at.
        return "DUNNO", "cap" if was_capped and not self.is_address_denied(address) else ""

    def is_sender_denied(self, sender: str) -> bool:
        """Whether the sender names a denied user, and nobody else."""
        name = sender.lower()
        if not is_sound(name):
            return False
        mapped = self.mapped(name) if self.rules.senders.match != "off" else ()
        named = {"srs0=h=t=example.com=alice@example.net": "alice@example.com"}.get(name, name)
        own_is_denied = any(self.is_denied(each) for each in own_names(named, "fold"))
        return own_is_denied or (bool(mapped) and all(self.is_denied(each) for each in mapped))

    def held_permits(self, address: str) -> list[tuple[str, Permit]]:
        """The permits of an address and of the networks it is in, the narrowest first."""
        wider = [each for each in NETWORKS if ip_address(address) in ip_network(each)]
        wider.sort(key=lambda each: -ip_network(each).prefixlen)
        held = [(each, self.permits[each]) for each in (address, *wider) if each in self.permits]
        return [(name, given.permit) for name, given in held if given.end > self.now]

    def logins_for(self, address: str, sender: str) -> list[str]:
        """The users of the logins that let this sender through, in the order in which they are tried."""
        live = [user for user, _ in self.live_logins(address)]
        rules = self.rules.senders
        name = sender.lower()
        sound = is_sound(name)
        if rules.match == "off" or (not sender and rules.null_sender == "permit"):
            tried, fitting = live[:1], live
        elif not sound:
            tried = fitting = []
        else:
            mapped = [user for user in self.mapped(name) if user in live]
            if rules.match == "domain":
                fitting = [user for user in live if user.endswith(name[name.index("@") :])]
                tried = [*fitting[:1], *mapped]
            else:
                tried = fitting = [*(each for each in own_names(name, rules.batv) if each in live), *mapped]
        if sound and any(self.is_refused(user) for user in tried):
            # Who came after them is refused: in their own name they still relay.
            tried = [*tried, *(each for each in own_names(name, rules.batv) if each in fitting)]
        return [user for user in dict.fromkeys(tried) if not self.is_refused(user)]

    def mapped(self, name: str) -> tuple[str, ...]:
        """The users whom MAPS names for a sender."""
        names = (*own_names(name, self.rules.senders.batv), name[name.index("@") :])
        return next((MAPS[each] for each in names if each in MAPS), ())

    def caps_of(self, address: str, user: str) -> list[tuple[str, Cap]]:
        caps = [
            (f"address {address}", self.rules.address_cap),
            (f"user {user}", self.rules.user_cap if user else None),
        ]
        return [(name, cap) for name, cap in caps if cap is not None]

    def caps_of_permit(self, name: str, permit: Permit, address: str) -> list[tuple[str, Cap]]:
        return [(f"permit {name}", permit.cap)] if permit.cap else self.caps_of(address, complete(permit.user))

    def count(self, caps: list[tuple[str, Cap]], message: object, address: str) -> bool:
        """Whether every cap has room for the message's recipient, which then has its place in all of them."""
        windows = [(self.window(name), name, cap) for name, cap in caps]
        # A cap that was lowered meanwhile also refuses those whom it had let through.
        full = [each for each in windows if len(each[0].members | {message}) > each[2].limit]
        for window, name, cap in full:
            window.refused.add(message)
            if name == f"address {address}" and len(window.refused) > cap.limit and self.rules.auto_deny:
                self.denies[address] = max(self.denies.get(address, 0), self.now + self.rules.auto_deny)
        if full:
            return False
        for window, _, cap in windows:
            if not window.members:
                window.end = self.now + cap.period
            window.members.add(message)
        return True

    def window(self, name: str) -> Window:
        if name not in self.windows or self.windows[name].end <= self.now:
            self.windows[name] = Window()
        return self.windows[name]


def is_within(target: str, network: str) -> bool:
    inner, outer = ip_network(target), ip_network(network)
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]  # the same, as just seen


def is_sound(sender: str) -> bool:
    """Whether a sender has one mailbox and one domain."""
    return sender.count("@") == 1 and not sender.endswith(".") and not set("%!") & set(sender)


def is_certain(sender: str) -> bool:
    """Whether Postfix can send it on under no other name."""
    return not sender or (is_sound(sender) and "." in sender.partition("@")[2])


def own_names(name: str, batv: str) -> list[str]:
    """The sender, and without its extension; without its tag as well."""
    names = [name, name.replace("+lists", "")]
    return list(dict.fromkeys([*names, *(each.removeprefix("prvs=0a1b=") for each in names if batv == "fold")]))


def permit_holds(permit: Permit, sender: str, recipient: str, batv: str) -> bool:
    if permit.senders:
        name = sender.lower()
        if not is_sound(name):
            return False
        if not {*own_names(name, batv), name[name.index("@") :]} & {*permit.senders}:
            return False
    return not permit.recipient_domains or recipient.split("@")[1] in permit.recipient_domains


# --- the machine


@dataclass
class Server:
    """One policy service: its connection to Redis, and what its upkeep learned last."""

    table: LoginTable
    lengths: Lengths = frozenset()

    def look(self) -> None:
        (value,), _ = self.table.read([self.table.keys.permit_networks])
        self.lengths = parse_lengths(value)

    def knows(self, target: str) -> bool:
        """Whether it would look for a permit of this address or network."""
        network = ip_network(target)
        return "/" not in target or (network.version, network.prefixlen) in self.lengths

    def decide(self, rules: Rules, maps: SenderMaps, address: str, **attributes: str) -> Decision:
        client = ClientAddresses().parse(address)
        networks = networks_of(client.text, self.lengths)
        asked = as_request(request(address, **attributes))
        case = Case(client, asked, rules, self.table.keys, maps, networks)
        found, _ = self.table.read(case.keys)
        decision = carry_out(decide(case, found), self.table.ask)
        assert decide_at_once(found) in (None, decision)
        return decision

    def explain(self, rules: Rules, maps: SenderMaps, address: str, **attributes: str) -> Explanation:
        """What `pbs-policy check` says."""
        asked = as_request(request(address, **attributes))
        return explain(Enquiry(self.table, rules, ClientAddresses().parse(address), asked, maps))


@cache
def the_maps() -> SenderMaps:
    with tempfile.TemporaryDirectory(prefix="pbs-") as directory:
        file = Path(directory) / "maps"
        file.write_text("".join(f"{sender} {','.join(users)}\n" for sender, users in MAPS.items()))
        return SenderMaps.load(file, USER_DOMAIN)


class Machine(RuleBasedStateMachine):
    """One site, in which everything happens that may."""

    @classmethod
    def open_redis(cls) -> Redis:
        """An empty Redis for one example."""
        return fakeredis.FakeRedis(server=fakeredis.FakeServer())

    def __init__(self) -> None:
        super().__init__()
        self.redis = self.open_redis()
        self.directory = tempfile.TemporaryDirectory(prefix="pbs-")

    def teardown(self) -> None:
        self.directory.cleanup()
        self.redis.close()

    @initialize(
        match=st.sampled_from(["off", "domain", "address"]),
        null_sender=st.sampled_from(["permit", "refuse"]),
        batv=st.sampled_from(["off", "fold"]),
        services=st.sampled_from(["", "", "pop3"]),
        require_tls=st.sampled_from([False, False, True]),
        address_limit=cap_limits,
        user_limit=cap_limits,
        auto_deny=st.sampled_from([0, 0, 200]),
        logins=logins,
    )
    def settle(
        self, match: Literal["off", "domain", "address"], null_sender: Literal["permit", "refuse"],
        batv: Literal["off", "fold"], services: str,
        require_tls: bool, address_limit: int | None, user_limit: int | None, auto_deny: int,
        logins: list[tuple[str, str, str]],
    ) -> None:  # fmt: skip
        """One site's settings, which its script reads as well."""
        self.site = Rules(
            SenderRules(match, USER_DOMAIN, "+", null_sender, batv),
            frozenset(services.split()),
            require_tls,
            Cap(address_limit, 400) if address_limit else None,
            Cap(user_limit, 600) if user_limit else None,
            auto_deny,
        )
        lines = {"key_prefix": PREFIX, "sender_match": match, "ttl": f"{TTL}s", "services": services}
        file = Path(self.directory.name) / "script.conf"
        self.script = Script(self.redis, file, **lines, user_domain=USER_DOMAIN)
        self.servers = [Server(table_on(self.redis, PREFIX, user_domain=USER_DOMAIN)) for _ in range(2)]
        self.admin = self.servers[0].table
        self.model = Model(self.site)
        self.log_in(logins)

    def pass_time(self, seconds: int) -> None:
        advance(self.redis, seconds)
        mark = self.admin.keys.user_denies
        if self.redis.pttl(mark) < 3_000:  # it outlives the last deny by 2 s, which is less than a step
            self.redis.delete(mark)
        self.model.now += seconds

    @rule(logins=logins)
    def log_in(self, logins: list[tuple[str, str, str]]) -> None:
        for each in logins:
            self.pass_time(10)  # no two logins at one moment: the later one is seen by its end
            self.script.log_in(*each)
            self.model.log_in(*each)

    @rule(seconds=st.sampled_from([10, 10, 100, 390, 1500]))
    def wait(self, seconds: int) -> None:
        self.pass_time(seconds)

    @rule(
        name=targets,
        user=users,
        senders=st.sampled_from([(), (), ("alice@example.com",), ("@example.net", "dave@example.com")]),
        domains=st.sampled_from([(), (), ("example.com",)]),
        limit=cap_limits,
        seconds=times,
    )
    def permit(
        self,
        name: str,
        user: str,
        senders: tuple[str, ...],
        domains: tuple[str, ...],
        limit: int | None,
        seconds: int,
    ) -> None:
        permit = Permit(1, user, senders, domains, Cap(limit, 500) if limit else None)
        self.admin.permit(target(name), permit, seconds)
        self.model.permits[name] = Given(permit, self.model.now + seconds)

    @rule(which=st.integers(0, 1))
    def upkeep(self, which: int) -> None:
        server = self.servers[which]
        server.look()
        permitted = [name for name, each in self.model.permits.items() if each.end > self.model.now]
        assert all(server.knows(name) for name in permitted)

    @rule(name=st.sampled_from([*USERS[:4] * 3, *ADDRESSES, *NETWORKS, "all"]), seconds=times)
    def deny(self, name: str, seconds: int) -> None:
        if name in USERS:
            self.admin.deny_user(self.admin.name(name), "spam", seconds)
        else:
            self.admin.deny(None if name == "all" else target(name), "spam", seconds)
        denied = complete(name) if name in USERS else name
        # One that lasts longer stays.
        self.model.denies[denied] = max(self.model.denies.get(denied, 0), self.model.now + seconds)

    @rule(
        address=addresses,
        first=st.sampled_from(USERS[:4]),
        second=st.sampled_from(USERS[:4]),
        requests=st.lists(requests, min_size=2, max_size=8),
    )
    def deny_the_last_to_log_in(
        self, address: str, first: str, second: str, requests: list[tuple[str, str, str, str]]
    ) -> None:
        self.log_in([(address, first, "pop3"), (address, second, "pop3")])
        self.deny(second, 300)
        self.log_in([(address, second, "pop3")])
        self.relay(address, requests, 1)

    @rule()
    def undeny_everything(self) -> None:
        """End every deny there is, each by its name."""
        for name, end in self.model.denies.items():
            if "@" in name:
                was_denied = self.admin.undeny_user(name.encode())
            else:
                was_denied = self.admin.undeny(None if name == "all" else target(name))
            assert was_denied == (end > self.model.now), name
        self.model.denies.clear()

    @rule(name=st.sampled_from([*USERS[:4] * 3, *ADDRESSES, *NETWORKS]))
    def revoke(self, name: str) -> None:
        if name in USERS:
            self.admin.revoke_user(name)
        elif "/" in name:
            self.admin.revoke_all(within=ip_network(name))
        else:
            self.admin.revoke_address(name)

        def is_meant(target: str, user: str) -> bool:
            return user == complete(name) if name in USERS else is_within(target, name)

        logins, permits = self.model.logins.items(), self.model.permits.items()
        self.model.logins = {each: login for each, login in logins if not is_meant(*each)}
        self.model.permits = {at: each for at, each in permits if not is_meant(at, complete(each.permit.user))}

    @rule(are_sure=st.sampled_from([False] * 3 + [True]))
    def revoke_all(self, are_sure: bool) -> None:
        if not are_sure:
            return
        self.admin.revoke_all()
        self.model.logins.clear()
        self.model.permits.clear()

    @rule(address=addresses, requests=st.lists(requests, min_size=2, max_size=8), which=st.integers(0, 1))
    def relay(self, address: str, requests: list[tuple[str, str, str, str]], which: int) -> None:
        server = self.servers[which]
        knows_all = all(map(server.knows, self.model.permits))
        for sender, recipient, instance, tls in requests:
            explained = server.explain(
                self.site, the_maps(), address, sender=sender, recipient=recipient, instance=instance,
                encryption_protocol=tls,
            )  # fmt: skip
            decision = server.decide(
                self.site, the_maps(), address, sender=sender, recipient=recipient, instance=instance,
                encryption_protocol=tls,
            )  # fmt: skip
            message = (instance, recipient)
            was_denied = self.model.is_address_denied(address)
            expected = self.model.decide(address, sender, recipient, bool(tls), message, server.knows)
            seen = (decision.action, decision.reason if expected[1] else "")
            assert seen == expected, f"{decision} for {address}, from <{sender}>; expected {expected}"
            if knows_all and self.model.is_address_denied(address) == was_denied:
                assert_the_rows_say_so(explained, decision._replace(warning=""))

    @rule(address=addresses, requests=st.lists(requests, min_size=2, max_size=8))
    def relay_where_every_permit_is_known(self, address: str, requests: list[tuple[str, str, str, str]]) -> None:
        self.upkeep(0)
        self.relay(address, requests, 0)

    @invariant()
    def every_key_has_an_end(self) -> None:
        for key in self.redis.scan_iter():
            assert self.redis.pttl(key) != NO_END, key


class RealMachine(Machine):
    """The same on a real Redis."""

    url = ""

    @classmethod
    def open_redis(cls) -> Redis:
        redis = connect(RedisUrl.parse(cls.url), "", "")
        redis.flushall()
        return redis


def run(machine: type[Machine], examples: int) -> None:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    # To make a failing example small takes minutes: that is for the long run.
    phases = [Phase.reuse, Phase.generate, *([Phase.shrink] if "PBS_MODEL_EXAMPLES" in os.environ else [])]
    profile = settings(
        phases=phases, max_examples=examples, stateful_step_count=STEPS, deadline=None, suppress_health_check=slow
    )
    run_state_machine_as_test(machine, settings=profile)


@pytest.mark.timeout(0 if EXAMPLES > 1_000 else 900)
def test_in_any_order_of_events_the_service_permits_what_the_model_permits() -> None:
    run(Machine, EXAMPLES)


@pytest.mark.timeout(0 if EXAMPLES > 1_000 else 900)
def test_a_real_redis_does_as_well(redis_server: PrivateRedis) -> None:
    class OnThisServer(RealMachine):
        url = redis_server.url

    run(OnThisServer, EXAMPLES // 4)
