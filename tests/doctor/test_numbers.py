"""What doctor concludes from the numbers that the service writes, on fakeredis and on a real Redis."""

from __future__ import annotations

import time

import fakeredis
from redis import Redis

from pbs_policy import __version__
from pbs_policy.decision.rules import DUNNO, OK
from pbs_policy.doctor.finding import Finding
from pbs_policy.doctor.service import check_numbers
from pbs_policy.service.stats import Stats, no_counts
from pbs_policy.table.keys import Keys
from tests.stores import client_on, table_on

HOUR = 3600.0


def write(redis: Redis, name: str, version: str, *reasons: tuple[str, str], ago: float = 0) -> None:
    """A process of the service writes what it has decided."""
    counts = no_counts()
    for action, reason in reasons:
        counts[action][reason] += 1
    client_on(redis).ask(Stats(Keys("pbs:"), name, version, lambda: time.time() - ago).commands(counts, {}))


def look(redis: Redis, check: str) -> list[Finding]:
    return [each for each in check_numbers(table_on(redis, "pbs:")) if each.check == check]


def test_each_process_of_another_version_is_named(redis: Redis) -> None:
    write(redis, "mx1:7", "0.0.8", ago=HOUR)
    (gone,) = look(redis, "service.version")
    assert gone.level == "not looked at"
    for name in ("mx1:7", "mx1:8"):
        write(redis, name, __version__)
    (ours,) = look(redis, "service.version")
    assert (ours.level, ours.seen) == ("good", f"processes of version {__version__}: 2")
    write(redis, "mx2:8", "0.0.9")
    write(redis, "mx2:9", "9.9\x1b")
    old, new = look(redis, "service.version")
    assert (old.level, new.level) == ("warning", "warning")
    assert old.seen == f"the service on mx2, process 8, is version 0.0.9, pbs-policy here is {__version__}"
    assert ("process 9" in new.seen, new.seen.isprintable()) == (True, True)
    assert old.mend == "systemctl restart pbs-policy, on that host"


def test_relay_attempts_from_the_mail_host_itself_in_the_last_day_are_counted(redis: Redis) -> None:
    write(redis, "mx1:7", __version__, (DUNNO, "no_login"))
    write(redis, "mx1:7", __version__, (DUNNO, "loopback"), ago=24.5 * HOUR)
    (finding,) = look(redis, "use.loopback")
    assert (finding.level, finding.seen) == ("good", "nobody asked from a loopback address in the last day")
    write(redis, "mx1:7", __version__, (DUNNO, "loopback"), (DUNNO, "loopback"), (OK, "login"))
    write(redis, "mx2:8", __version__, (DUNNO, "loopback"), ago=23 * HOUR)
    (finding,) = look(redis, "use.loopback")
    assert finding.level == "warning"
    assert finding.seen.startswith("3 relay attempts from the mail host itself were not permitted in the last day")
    assert "permit_mynetworks" in finding.mend


def test_where_redis_is_away_numbers_are_not_looked_at() -> None:
    away = fakeredis.FakeServer()
    table = table_on(fakeredis.FakeRedis(server=away), "pbs:")
    away.connected = False
    levels = {each.check: each.level for each in check_numbers(table)}
    assert levels == {"service.version": "not looked at", "use.loopback": "not looked at"}
