"""SIGHUP: the settings read anew by a service that goes on answering, alone and with workers."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pbs_policy.decision.policy import DUNNO, OK
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.service.reload import CHANGEABLE, Configuration, Renewal, values_of_message
from pbs_policy.settings import defaults, load
from pbs_policy.sources import SettingsError
from pbs_policy.store.redis_url import RedisUrl
from tests.manager import Manager
from tests.service import Client
from tests.stores import connect
from tests.test_workers import children

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


def answers(service: Manager, client: Client, workers: int) -> set[str]:
    """What Alice is told on this connection, and on so many others that each worker has been asked."""
    found = {client.ask(ALICE)}
    if workers > 1:
        found |= {service.ask(ALICE) for _ in range(30)}
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_what_can_change_does_at_sighup_and_no_connection_is_dropped(
    workers: int, start_managed: StartManaged
) -> None:
    service = start_managed(workers=str(workers))
    with service.connect() as client:
        assert answers(service, client, workers) == {OK}
        rewrite(service, never_record="192.0.2.0/24", log_decisions="all")
        service.reload()
        assert answers(service, client, workers) == {DUNNO}
        assert service.waits_to_log("reason=never_record")
        rewrite(service, without="never_record", services="pop3")
        service.reload()
        assert answers(service, client, workers) == {DUNNO}
        assert service.waits_to_log("reason=service_mismatch")
        rewrite(service, without="services")
        service.reload()
        assert answers(service, client, workers) == {OK}
    assert "info: the settings were read anew: never_record='192.0.2.0/24' log_decisions='all'\n" in service.log()
    assert "warning" not in service.log()
    assert len(re.findall("MONOTONIC_USEC=", "".join(service.messages))) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_what_waits_for_a_restart_is_named_in_one_line_and_the_rest_changes(
    workers: int, start_managed: StartManaged
) -> None:
    service = start_managed(workers=str(workers))
    rewrite(service, workers="3", key_prefix="other:", never_record="192.0.2.0/24")
    service.reload()
    with service.connect() as client:
        assert answers(service, client, workers) == {DUNNO}
    (warning,) = re.findall("warning: .*", service.log())
    assert warning == "warning: only a restart changes workers, key_prefix: what was set before holds until then"
    service.reload()
    assert "info: the settings were read anew: nothing has changed\n" in service.log()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_faulty_file_is_reported_whole_and_the_old_settings_stay(workers: int, start_managed: StartManaged) -> None:
    service = start_managed(workers=str(workers))
    before = service.settings_file.read_text()
    lines = len(before.splitlines())
    service.settings_file.write_text(before + "never_record = 192.0.2.0/24\nttl = soon\nno_such_setting = 1\n")
    service.reload()
    with service.connect() as client:
        assert answers(service, client, workers) == {OK}
    errors = re.findall("error: (.*)", service.log())
    place = service.settings_file
    assert len(errors) == 3
    assert f"{place}:{lines + 2}: ttl = soon: expected" in " ".join(errors)
    assert f"{place}:{lines + 3}: unknown setting 'no_such_setting'" in " ".join(errors)
    assert errors[-1] == "the settings were not read anew, what they said before holds"
    service.settings_file.write_text(before + "never_record = 192.0.2.0/24\n")
    service.reload()
    assert service.ask(ALICE) == DUNNO


def test_a_worker_that_is_started_after_a_reload_works_by_the_new_settings(start_managed: StartManaged) -> None:
    service = start_managed(workers="2")
    rewrite(service, never_record="192.0.2.0/24")
    service.reload()
    before = children(service.process.pid)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: len(children(service.process.pid) - before) == 2)
    assert {service.ask(ALICE) for _ in range(20)} == {DUNNO}


def test_sighup_to_the_whole_group_ends_no_worker(start_managed: StartManaged) -> None:
    """A terminal that goes away signals all of them."""
    service = start_managed(workers="2")
    assert wait_until(lambda: len(children(service.process.pid)) == 2)
    workers = children(service.process.pid)
    rewrite(service, never_record="192.0.2.0/24")
    os.killpg(service.process.pid, signal.SIGHUP)
    assert wait_until(lambda: "were read anew" in service.log() and service.ask(ALICE) == DUNNO)
    assert children(service.process.pid) == workers


@pytest.mark.parametrize("workers", [1, 2])
def test_another_file_of_sender_maps_counts_and_one_with_faults_does_not(
    workers: int, start_managed: StartManaged, redis_server: PrivateRedis, tmp_path: Path
) -> None:
    service = start_managed(workers=str(workers), sender_match="address")
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("sales@example.com alice@example.com\n")
    bad.write_text("sales@example.com\n")
    with connect(RedisUrl.parse(redis_server.url), "", "") as redis:
        redis.set(f"pbs:login:{ALICE},alice@example.com", LOGIN, ex=600)

    def ask() -> set[str]:
        return {service.ask(ALICE, sender="sales@example.com") for _ in range(20)}

    assert ask() == {DUNNO}
    rewrite(service, sender_maps=str(good))
    service.reload()
    assert ask() == {OK}
    rewrite(service, sender_maps=str(bad))
    service.reload()
    assert ask() == {OK}
    assert f"error: sender_maps: {bad}:1: expected sender user" in service.log()


@pytest.mark.parametrize("workers", [1, 2])
def test_no_request_is_lost_or_wrongly_answered_while_the_rules_change(
    workers: int, start_managed: StartManaged
) -> None:
    """sender_match comes and goes under load: what is in flight was asked under the other rule."""
    service = start_managed(workers=str(workers), log_decisions="none")
    ended = threading.Event()
    failures: list[str] = []
    answered = [0] * 8

    def load_it(number: int) -> None:
        with service.connect() as client:
            while not ended.is_set():
                try:
                    # Not Alice's own sender: with sender_match she is refused, without she is not.
                    action = client.ask(ALICE, sender="mallory@example.org")
                    stranger = client.ask("192.0.2.8", sender="mallory@example.org")
                except (AssertionError, OSError) as error:
                    failures.append(repr(error))
                    return
                if action not in (OK, DUNNO) or stranger != DUNNO:
                    failures.append(f"{action} {stranger}")
                answered[number] += 1

    threads = [threading.Thread(target=load_it, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        for number in range(12):
            rewrite(service, sender_match="off" if number % 2 else "address")
            service.reload()
    finally:
        ended.set()
        for thread in threads:
            thread.join(10)
    assert failures == []
    assert all(answered)
    assert "error" not in service.log()


# --- the parts, without a process ---------------------------------------------------------------------------------


def test_each_setting_that_can_change_is_one() -> None:
    assert defaults().keys() >= CHANGEABLE


def test_a_setting_that_nobody_listed_waits_for_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "pbs-policy.conf"
    file.write_text("")
    before = Configuration.begin(*load(file))
    file.write_text("redis_user = other\nttl = 8h\n")
    renewal = Renewal.read(before, lambda: load(file))
    assert (renewal.changed, renewal.waiting) == (("ttl",), ("redis_user",))
    assert renewal.configuration.settings.ttl == 8 * 3600
    assert renewal.configuration.settings.redis_user == ""


def test_a_file_with_a_fault_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "pbs-policy.conf"
    file.write_text("")
    before = Configuration.begin(*load(file))
    file.write_text("ttl = 8h\nworkers = many\n")
    with pytest.raises(SettingsError, match=f"{file}:2: workers = many"):
        Renewal.read(before, lambda: load(file))


def test_a_message_to_the_workers_brings_every_value_and_its_place(tmp_path: Path) -> None:
    file = tmp_path / "pbs-policy.conf"
    file.write_text("user_domain = b\u00fccher.example\nsender_match = domain\n", encoding="utf-8")
    configuration = Configuration.begin(*load(file))
    assert values_of_message(configuration.as_message()) == configuration.values
