"""Sessions that stay connected: whose login is renewed, whose is not, and what a doveadm that fails does: no harm."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pbs_policy.address import ClientAddresses
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.log import Log
from pbs_policy.recorder.logins import LoginRules
from pbs_policy.recorder.record import probe
from pbs_policy.recorder.sessions import SessionKeeper
from pbs_policy.settings import load
from pbs_policy.shipped import shipped
from pbs_policy.store.lookups import Lookups
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.keys import Keys
from tests.stores import connect, table_on

ALICE, BOB = "alice@example.com", "bob@example.com"
HOME, OFFICE = "192.0.2.7", "198.51.100.7"
KEYS = Keys("pbs:")


class Keeping:
    """A keeper of sessions on a private Redis, with a doveadm of the test's own. `pbs:` is empty at the beginning."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.redis_url = redis_url
        self.redis = connect(RedisUrl.parse(redis_url))
        self._folder = folder
        self._said = io.BytesIO()
        self.doveadm(": no session yet")

    def doveadm(self, script: str) -> None:
        """What doveadm does."""
        program = self._folder / "doveadm"
        new = self._folder / "new"
        new.write_text(f"#!/bin/sh\n{script}\n")
        new.chmod(0o755)
        new.rename(program)

    def connected(self, *sessions: tuple[str, str] | tuple[str, str, str]) -> None:
        """Who is connected now: user, address, and service."""
        rows = [{"username": user, "ip": address, "service": "".join(service) or "imap"}
                for user, address, *service in sessions]  # fmt: skip
        (self._folder / "who").write_text(json.dumps(rows))
        self.doveadm(f'test "$*" = "-f json who -1" && cat {self._folder}/who')

    def record(self, user: str, address: str, service: str = "imap", ttl: int = 100) -> None:
        """A login, as the post-login script records it."""
        for key in (KEYS.login(address), KEYS.login(address, user.encode())):
            self.redis.set(key, f"1763881234 {service} {user}", ex=ttl)

    def value(self, address: str) -> str:
        """What stands under an address's own key."""
        value = self.redis.get(KEYS.login(address))
        assert isinstance(value, bytes)
        return value.decode()

    def left(self, address: str, user: str = "") -> int:
        """The seconds that a login has left, 0 for none."""
        return max(int(self.redis.ttl(KEYS.login(address, user.encode()))), 0)

    def log(self) -> str:
        return self._said.getvalue().decode()

    @asynccontextmanager
    async def keeper(self, **given: str) -> AsyncIterator[SessionKeeper]:
        """The keeper, with these settings."""
        overrides = {"redis_url": self.redis_url, "ttl": "1h", **given}
        settings, values = load(None, {}, [f"{name}={value}" for name, value in overrides.items()])
        log = Log(self._said)
        login = settings.redis_user, settings.redis_password()
        lookups = Lookups(settings.redis_url, *login, KEYS.probe, log, probe=probe(KEYS))
        await lookups.open()
        keeper = SessionKeeper(lookups, log)
        keeper.follow(settings, settings.load_denies(), LoginRules(values))
        yield keeper
        await lookups.close()

    def renew_once(self, **settings: str) -> str:
        """One round of a new keeper; what it logged."""

        async def story() -> None:
            async with self.keeper(**settings) as keeper:
                await keeper.renew()

        asyncio.run(story())
        return self.log()


@pytest.fixture
def keeping(redis_server: PrivateRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeping:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return Keeping(redis_server.url, folder)


def test_who_is_connected_keeps_the_login_with_the_full_ttl(keeping: Keeping) -> None:
    keeping.record(ALICE, HOME)
    keeping.record(BOB, OFFICE)
    keeping.connected((ALICE, HOME))
    assert "info: sessions are renewed: 1 logins of 1 that are connected" in keeping.renew_once()
    assert keeping.left(HOME) > 3500
    assert keeping.left(HOME, ALICE) > 3500
    assert keeping.left(OFFICE) <= 100
    value = keeping.value(HOME)
    assert value.endswith(f" imap-session {ALICE}")
    assert abs(int(value.split()[0]) - time.time()) < 60


async def test_a_redis_that_came_back_empty_is_filled_again(keeping: Keeping) -> None:
    keeping.record(ALICE, HOME)
    keeping.connected((ALICE, HOME))
    async with keeping.keeper() as keeper:
        await keeper.renew()
        keeping.redis.flushall()
        await keeper.renew()
    assert keeping.left(HOME) > 3500
    assert keeping.left(HOME, ALICE) > 3500


@pytest.mark.parametrize("service", ["imap", "pop3"])
def test_a_session_whose_login_was_never_recorded_is_not_renewed(keeping: Keeping, service: str) -> None:
    """A master user's, or an anonymous one: doveadm shows them as the user's own."""
    keeping.record(BOB, HOME)
    keeping.connected((ALICE, HOME, service), (ALICE, OFFICE, service))
    assert "0 logins of 2 that are connected" in keeping.renew_once()
    assert keeping.left(HOME) <= 100
    assert keeping.left(HOME, ALICE) == keeping.left(OFFICE) == 0


async def test_one_that_ended_is_renewed_again_only_after_another_login(keeping: Keeping) -> None:
    keeping.record(ALICE, HOME)
    async with keeping.keeper() as keeper:
        for sessions in ([(ALICE, HOME)], [], [(ALICE, HOME)]):
            keeping.connected(*sessions)
            await keeper.renew()
            keeping.redis.flushall()
        await keeper.renew()
        assert keeping.left(HOME) == 0
        keeping.record(ALICE, HOME)
        await keeper.renew()
    assert keeping.left(HOME) > 3500


def test_a_login_that_tells_no_user_is_renewed_by_a_session_from_its_address(keeping: Keeping) -> None:
    """As Dovecot's last_login plugin writes it."""
    keeping.redis.set(KEYS.login(HOME), "1763881234", ex=100)
    keeping.connected((ALICE, HOME))
    keeping.renew_once()
    assert keeping.left(HOME) > 3500


@pytest.mark.parametrize(
    ("session", "settings"),
    [
        ((ALICE, HOME), {"never_record": "192.0.2.0/24"}),
        ((ALICE, HOME), {"login_domains": "example.net"}),
        ((ALICE, HOME), {"services": "pop3"}),
        ((ALICE, HOME, "submission"), {}),
        ((ALICE, HOME, "lmtp"), {}),
        ((ALICE, "127.0.0.1"), {}),
        ((ALICE, "::1"), {}),
        ((ALICE, "fe80::7%eth0"), {}),
        ((ALICE, "not an address"), {}),
    ],
)
def test_what_is_not_to_be_recorded_is_not_renewed(
    keeping: Keeping, session: tuple[str, str], settings: dict[str, str]
) -> None:
    keeping.record(ALICE, session[1])
    keeping.connected(session)
    log = keeping.renew_once(**settings)
    assert keeping.left(session[1]) <= 100
    assert "error" not in log


DENIES = [HOME, "192.0.2.0/24", "all", ALICE, "alice", "auto", "file address", "file user"]


@pytest.mark.parametrize("deny", DENIES)
def test_whoever_is_denied_is_not_renewed_and_the_neighbour_is(keeping: Keeping, tmp_path: Path, deny: str) -> None:
    settings = {}
    table = table_on(keeping.redis, "pbs:")
    keeping.record(ALICE, HOME)
    keeping.record(BOB, OFFICE)
    with table.redis:
        if deny.startswith("file"):
            (tmp_path / "denies").write_text(f"{HOME if deny == 'file address' else ALICE} spam\n")
            settings["denies"] = str(tmp_path / "denies")
        elif deny.startswith("alice"):
            table.deny_user(deny.encode(), "stolen", 3600)
        else:
            target = None if deny == "all" else ClientAddresses().parse_target(HOME if deny == "auto" else deny)
            table.deny(target, "spam", 3600, is_automatic=deny == "auto")
    keeping.connected((ALICE, HOME), (BOB, OFFICE))
    keeping.renew_once(**settings)
    assert keeping.left(HOME) <= 100
    assert keeping.left(HOME, ALICE) <= 100
    assert (keeping.left(OFFICE) > 3500) is (deny != "all")


def test_a_denied_user_who_logged_in_last_does_not_take_the_address_from_the_neighbours(keeping: Keeping) -> None:
    for user in (BOB, ALICE):
        keeping.record(user, HOME)
    keeping.redis.set(KEYS.deny_user(ALICE.encode()), "stolen", ex=3600)
    keeping.connected((ALICE, HOME), (BOB, HOME))
    keeping.renew_once()
    assert keeping.value(HOME).endswith(" imap-session bob@example.com")
    assert keeping.left(HOME, ALICE) <= 100


@pytest.mark.parametrize("last", [ALICE, BOB])
def test_the_last_login_from_a_shared_address_stays_the_last(keeping: Keeping, last: str) -> None:
    for user in (ALICE, BOB, last):
        keeping.record(user, HOME)
    keeping.connected((ALICE, HOME), (BOB, HOME))
    keeping.renew_once()
    assert keeping.value(HOME).endswith(f" imap-session {last}")
    assert keeping.left(HOME, ALICE) > 3500
    assert keeping.left(HOME, BOB) > 3500


@pytest.mark.parametrize(("role", "renews"), [("recorder", True), ("script", False)])
def test_the_recorders_rights_in_redis_suffice_and_without_the_right_to_read_denies_nothing_is_renewed(
    own_redis: Callable[..., PrivateRedis], keeping: Keeping, tmp_path: Path, password_file: Callable[[str], str],
    role: str, renews: bool,
) -> None:  # fmt: skip
    users = tmp_path / "users.acl"
    users.write_text(shipped(f"redis-examples/{role}.acl").read_text().strip() + " >secret\n")
    alone = Keeping(own_redis("--aclfile", str(users)).url, tmp_path / "bin")
    alone.record(ALICE, HOME)
    alone.redis.set(KEYS.deny_networks, "4/24")  # so that it asks for networks, too
    alone.connected((ALICE, HOME))
    log = alone.renew_once(redis_user=f"pbs-{role}", redis_password_file=password_file("secret"))
    assert (alone.left(HOME) > 3500) is renews
    assert ("lacks" in log) is not renews
    assert ("error: sessions are not renewed: Redis does not tell in time who is denied" in log) is not renews


async def test_while_redis_is_away_nothing_is_renewed_and_it_is_said_once(
    own_redis: Callable[..., PrivateRedis], keeping: Keeping, tmp_path: Path
) -> None:
    server = own_redis()
    alone = Keeping(server.url, tmp_path / "bin")

    alone.record(ALICE, HOME)
    alone.connected((ALICE, HOME))
    async with alone.keeper() as keeper:
        await keeper.renew()
        await asyncio.to_thread(server.stop)
        for _ in range(3):
            await keeper.renew()
        await asyncio.to_thread(server.start)
        alone.redis.flushall()
        deadline = time.monotonic() + 20
        while not alone.left(HOME) and time.monotonic() < deadline:
            await keeper.renew()
    assert alone.left(HOME) > 3500
    assert alone.log().count("error: sessions are not renewed") == 1
    assert alone.log().count("info: sessions are renewed: 1 logins of 1") == 2


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Fatal: net_connect_unix(anvil) failed: Permission denied' >&2; exit 75",
         "failed with status 75: Fatal: net_connect_unix(anvil) failed: Permission denied"),
        ("exit 1", "failed with status 1: it says nothing"),
        ("kill -9 $$", "failed with status -9: it says nothing"),
        ("echo username", "printed no list of sessions: it is not JSON"),
        (":", "printed no list of sessions: it is empty"),
        ("seq 100000 >&2; exit 2", "failed with status 2: 104"),  # of what it says the beginning is kept
    ],
)  # fmt: skip
async def test_a_doveadm_that_fails_is_one_line_and_no_harm(keeping: Keeping, script: str, said: str) -> None:
    keeping.record(ALICE, HOME)
    keeping.doveadm(script)
    async with keeping.keeper() as keeper:
        for _ in range(3):
            await keeper.renew()
        assert keeping.left(HOME) <= 100
        keeping.connected((ALICE, HOME))
        await keeper.renew()
    assert keeping.log().count(f"error: sessions are not renewed: doveadm {said}\n") == 1
    assert keeping.log().count("error") == 1
    assert keeping.left(HOME) > 3500


@pytest.mark.parametrize("script", ["sleep 1000", "sleep 1000 & exec sleep 1000", "yes", "sleep 1000 & exit 0"])
async def test_a_doveadm_that_hangs_or_prints_without_an_end_is_killed_with_its_children(
    keeping: Keeping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr("pbs_policy.dovecot.doveadm.SECONDS", 0.5)
    keeping.doveadm(f"echo $$ >{tmp_path}/new && mv {tmp_path}/new {tmp_path}/pid; {script}")
    descriptors = []

    async with keeping.keeper() as keeper:
        for _ in range(3):
            await keeper.renew()
            descriptors.append(count_descriptors())
    assert descriptors[2] <= descriptors[0] + 1, "each of them has two pipes"
    log = keeping.log()
    assert re.search("error: sessions are not renewed: doveadm (did not end within 0.5 s|prints more than)", log)
    group = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: not is_alive(group))


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def is_alive(group: int) -> bool:
    """Whether any process of this group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_doveadm_that_complains_and_succeeds_is_heard(keeping: Keeping) -> None:
    keeping.record(ALICE, HOME)
    keeping.connected((ALICE, HOME))
    keeping.doveadm("echo 'Error: net_connect_unix(stats-writer) failed' >&2; cat $(dirname $0)/who")
    assert "error" not in keeping.renew_once()
    assert keeping.left(HOME) > 3500


async def test_sessions_that_cannot_be_read_are_told_once(keeping: Keeping) -> None:
    keeping.connected(("al\ufffdce@example.com", HOME), ("", HOME))
    async with keeping.keeper() as keeper:
        for _ in range(3):
            await keeper.renew()
    told = "doveadm tells of sessions that are not read: 1 with a user name that is not certain, 1 with no user\n"
    assert keeping.log().count(told) == 1


def test_the_configuration_that_is_set_is_doveadms(keeping: Keeping) -> None:
    keeping.doveadm('test "$*" = "-c /srv/dovecot.conf -f json who -1" && echo "[]"')
    assert "info: sessions are renewed" in keeping.renew_once(dovecot_config="/srv/dovecot.conf")


@pytest.mark.parametrize(("ttl", "given", "seconds"), [("30m", "1m", 60), ("30s", "1m", 10), ("30m", "5s", 5)])
def test_a_login_is_renewed_three_times_before_it_would_end(ttl: str, given: str, seconds: float) -> None:
    settings, _ = load(None, {}, [f"ttl={ttl}", f"renew_sessions={given}"])
    assert settings.renew_interval == seconds


def test_many_sessions_of_one_address_are_renewed_in_bounded_pieces(keeping: Keeping) -> None:
    users = [f"user{number}@example.com" for number in range(250)]
    for user in users:
        keeping.record(user, HOME)
    keeping.connected(*[(user, HOME) for user in reversed(users)])
    assert "250 logins of 250 that are connected" in keeping.renew_once()
    assert all(keeping.left(HOME, user) > 3500 for user in users)
    assert keeping.value(HOME).endswith(" user249@example.com")
