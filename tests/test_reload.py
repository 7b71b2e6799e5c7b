"""SIGHUP: the settings read anew by a service that goes on answering."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pbs_policy.decision.rules import DUNNO, OK
from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.service.reload import CHANGEABLE, Configuration
from pbs_policy.settings import defaults, load
from pbs_policy.store.redis_url import RedisUrl
from tests.manager import Manager
from tests.stores import connect

ALICE = "192.0.2.7"
LOGIN = b"1763881234 imap alice@example.com"

StartManaged = Callable[..., Manager]


@pytest.fixture
def start_managed(tmp_path: Path, redis_server: PrivateRedis) -> Iterator[StartManaged]:
    """Start a service under a manager, with Alice logged in."""
    with connect(RedisUrl.parse(redis_server.url), "", "") as redis:
        redis.set(f"pbs:login:{ALICE}", LOGIN, ex=600)
    with ExitStack() as stack:

        def start(*, watchdog: float = 0.0, abstract: bool = False, **settings: str) -> Manager:
            settings = {"redis_url": redis_server.url, **settings}
            return stack.enter_context(Manager(tmp_path, settings, watchdog=watchdog, abstract=abstract))

        yield start


def rewrite(service: Manager, *, without: str = "", **settings: str) -> None:
    """Change lines of the settings file."""
    old = dict(line.split(" = ", 1) for line in service.settings_file.read_text().splitlines())
    old.pop(without, None)
    service.settings_file.write_text("".join(f"{name} = {text}\n" for name, text in {**old, **settings}.items()))


def test_what_can_change_does_at_sighup_and_no_connection_is_dropped(start_managed: StartManaged) -> None:
    service = start_managed()
    with service.connect() as client:
        assert client.ask(ALICE) == OK
        rewrite(service, never_record="192.0.2.0/24", log_decisions="all")
        service.reload()
        assert client.ask(ALICE) == DUNNO
        assert service.waits_to_log("reason=never_record")
        rewrite(service, without="never_record", services="pop3")
        service.reload()
        assert client.ask(ALICE) == DUNNO
        assert service.waits_to_log("reason=service_mismatch")
        rewrite(service, without="services")
        service.reload()
        assert client.ask(ALICE) == OK
    assert "info: the settings were read anew: never_record='192.0.2.0/24' log_decisions='all'\n" in service.log()
    assert "warning" not in service.log()
    assert len(re.findall("MONOTONIC_USEC=", "".join(service.messages))) == 1


def test_what_waits_for_a_restart_is_named_in_one_line_and_the_rest_changes(start_managed: StartManaged) -> None:
    service = start_managed()
    rewrite(service, redis_password_file="/other", key_prefix="other:", never_record="192.0.2.0/24")
    service.reload()
    with service.connect() as client:
        assert client.ask(ALICE) == DUNNO
    (warning,) = re.findall("warning: .*", service.log())
    named = "redis_password_file, key_prefix"
    assert warning == f"warning: only a restart changes {named}: what was set before holds until then"
    service.reload()
    assert "info: the settings were read anew: nothing has changed\n" in service.log()


def test_a_removed_setting_is_a_warning_at_the_start_and_at_a_reload(start_managed: StartManaged) -> None:
    service = start_managed(workers="2")
    rewrite(service, without="workers", log_decisions="all", workers="2")
    service.reload()
    assert service.ask(ALICE) == OK
    places = re.findall(r"warning: the settings: a removed setting is ignored: .*:(\d+): workers: ", service.log())
    assert places == ["3", "4"]


def test_a_faulty_file_is_reported_whole_and_the_old_settings_stay(start_managed: StartManaged) -> None:
    service = start_managed()
    before = service.settings_file.read_text()
    lines = len(before.splitlines())
    service.settings_file.write_text(before + "never_record = 192.0.2.0/24\nttl = soon\nno_such_setting = 1\n")
    service.reload()
    with service.connect() as client:
        assert client.ask(ALICE) == OK
    errors = re.findall("error: (.*)", service.log())
    place = service.settings_file
    assert len(errors) == 3
    assert f"{place}:{lines + 2}: ttl = soon: expected" in " ".join(errors)
    assert f"{place}:{lines + 3}: unknown setting 'no_such_setting'" in " ".join(errors)
    assert errors[-1] == "the settings were not read anew, what they said before holds"
    service.settings_file.write_text(before + "never_record = 192.0.2.0/24\n")
    service.reload()
    assert service.ask(ALICE) == DUNNO


def test_another_file_of_sender_maps_counts_and_one_with_faults_does_not(
    start_managed: StartManaged, redis_server: PrivateRedis, tmp_path: Path
) -> None:
    service = start_managed(sender_match="address")
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("sales@example.com alice@example.com\n")
    bad.write_text("sales@example.com\n")
    with connect(RedisUrl.parse(redis_server.url), "", "") as redis:
        redis.set(f"pbs:login:{ALICE},alice@example.com", LOGIN, ex=600)

    def ask() -> str:
        return service.ask(ALICE, sender="sales@example.com")

    assert ask() == DUNNO
    rewrite(service, sender_maps=str(good))
    service.reload()
    assert ask() == OK
    rewrite(service, sender_maps=str(bad))
    service.reload()
    assert ask() == OK
    assert f"error: sender_maps: {bad}:1: expected sender user" in service.log()


# --- the parts, without a process ---------------------------------------------------------------------------------


def test_each_setting_that_can_change_is_one() -> None:
    assert defaults().keys() >= CHANGEABLE


def test_a_setting_that_nobody_listed_waits_for_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "pbs-policy.conf"
    file.write_text("")
    before = Configuration.begin(*load(file))
    file.write_text("redis_password_file = /other\nttl = 8h\n")
    renewal = before.read_anew(lambda: load(file))
    assert (renewal.changed, renewal.waiting) == (["ttl"], ["redis_password_file"])
    assert renewal.configuration.settings.ttl == 8 * 3600
    assert renewal.configuration.settings.redis_password_file == ""


