"""What a running service tells Prometheus and load balancers."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from pbs_policy import __version__
from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.doctor.service import check_service
from pbs_policy.pages import MOST, PATIENCE
from pbs_policy.settings import load
from pbs_policy.store.redis_url import RedisUrl
from tests.metrics.scrape import Scrape, get, metrics_listener
from tests.service import CLI, SERVE, Service
from tests.stores import connect, pause

ALICE, STRANGER = "192.0.2.7", "198.51.100.9"
LOGIN = b"1763881234 imap alice@example.com"

Start = Callable[..., Service]


@pytest.fixture
def start(start_service: Start, redis_server: PrivateRedis) -> Start:
    """Start a service with metrics, on a Redis where Alice is logged in."""
    with connect(RedisUrl.parse(redis_server.url)) as redis:
        redis.set(f"pbs:login:{ALICE}", LOGIN, ex=600)

    def start(**settings: str) -> Service:
        return start_service(**{"metrics_listen": "inet:127.0.0.1:0", "redis_url": redis_server.url, **settings})

    return start


def test_decisions_and_how_long_they_took_are_told(start: Start) -> None:
    service = start()
    with service.connect() as client:
        asked = [ALICE] * 3 + [STRANGER] * 5 + ["127.0.0.1", "unknown"]
        for each in asked:
            client.ask(each)
        scrape = Scrape(service)
        assert scrape.decisions() == {
            "OK login": 3, "DUNNO no_login": 5, "DUNNO loopback": 1, "DUNNO no_client_address": 1,
        }  # fmt: skip
        assert scrape.value("request_seconds_count") == 8, "each that needed Redis, once, also those of two rounds"
        assert scrape.value("request_seconds_bucket", le="+Inf") == 8
        assert 0 < (scrape.value("request_seconds_sum") or 0) < 8 * 0.5
        assert (scrape.value("connections"), scrape.value("watchers")) == (1, 0)
        assert scrape.value("circuits_open") == 0
        assert scrape.value("redis_reconnects_total") == 0
        assert (scrape.value("cpu_seconds_total") or 0) > 0
        assert abs((scrape.value("start_time_seconds") or 0) - time.time()) < 60
        python = ".".join(map(str, sys.version_info[:3]))
        assert scrape.value("build_info", version=__version__, python=python, event_loop="uvloop") == 1


def test_no_label_holds_an_address_or_a_user(start: Start) -> None:
    service = start(sender_match="address", log_decisions="all")
    for sender in ("alice@example.com", "mallory@example.org"):
        service.ask(ALICE, sender=sender)
    scrape = Scrape(service)
    assert {name for name, _ in scrape.labels()} == {"action", "reason", "le", "version", "python", "event_loop"}
    for text in (ALICE, "alice", "mallory", "example"):
        assert text not in scrape.text


def test_ready_is_who_can_ask_redis_and_healthy_who_answers(
    own_redis: Callable[..., PrivateRedis], start: Start
) -> None:
    redis = own_redis()
    service = start(redis_url=redis.url, on_unavailable="dunno")
    assert get(service, "/healthz") == (200, "turns\n")
    assert get(service, "/readyz") == (200, "ready\n")
    redis.stop()
    assert wait_until(lambda: get(service, "/readyz") == (503, "Redis is unavailable\n"))
    assert get(service, "/healthz") == (200, "turns\n")
    assert wait_until(lambda: Scrape(service).value("circuits_open") == 1)
    redis.start()
    assert wait_until(lambda: get(service, "/readyz") == (200, "ready\n"))
    scrape = Scrape(service)
    assert scrape.value("circuits_open") == 0
    assert scrape.value("redis_reconnects_total") == 1


def test_a_mute_redis_is_not_ready_and_requests_that_wait_for_it_are_in_flight(
    own_redis: Callable[..., PrivateRedis], start: Start
) -> None:
    redis = own_redis()
    service = start(redis_url=redis.url)
    with service.connect() as client:
        pause(redis)
        sent = time.monotonic()
        client.send(b"request=smtpd_access_policy\nclient_address=192.0.2.7\n\n")
        assert wait_until(lambda: Scrape(service).value("lookups_in_flight") != 0)
        assert client.action().startswith("DEFER_IF_REJECT")
        waited = time.monotonic() - sent
        assert get(service, "/readyz")[0] == 503
        scrape = Scrape(service)
        assert scrape.decisions() == {"DEFER_IF_REJECT unavailable": 1}
        # Half a second, or less where the service's own question has been waiting already.
        assert scrape.value("request_seconds_bucket", le="0.001") == 0
        assert scrape.value("request_seconds_count") == 1
        measured = scrape.value("request_seconds_sum")
        assert measured is not None
        assert 0 < measured < waited


def test_set_commands_are_what_redis_counts(own_redis: Callable[..., PrivateRedis], start: Start) -> None:
    redis = own_redis()
    with connect(RedisUrl.parse(redis.url)) as client:
        for number in range(7):
            client.set(f"pbs:login:192.0.2.{number}", LOGIN, ex=600)
    service = start(redis_url=redis.url)
    assert wait_until(lambda: Scrape(service).value("redis_set_commands_total") == 7)


def test_a_user_that_may_not_ask_for_them_is_told_once_and_the_rest_goes_on(
    own_redis: Callable[..., PrivateRedis], start: Start, tmp_path: Path
) -> None:
    redis = own_redis()
    (tmp_path / "password").write_text("secret\n")
    with connect(RedisUrl.parse(redis.url)) as client:
        client.execute_command("ACL", "SETUSER", "pbs", "on", ">secret", "~pbs:*", "-@all", "+get", "+mget", "+pttl")
    service = start(
        redis_url=redis.url, redis_user="pbs", redis_password_file=str(tmp_path / "password"), usage_kept="0"
    )
    assert service.waits_to_log(
        "warning: Redis does not say how many SET commands it has had, so metrics lack them"
    ), service.log()
    scrape = Scrape(service)
    assert scrape.value("redis_set_commands_total") is None
    assert scrape.value("circuits_open") == 0


def test_watchers_are_those_who_hear(start: Start, redis_server: PrivateRedis) -> None:
    service = start()
    with connect(RedisUrl.parse(redis_server.url)) as redis, redis.pubsub() as one, redis.pubsub() as other:
        for each in (one, other):
            each.subscribe("pbs:events")
        redis.set("pbs:watching", "1", ex=60)
        assert wait_until(lambda: Scrape(service).value("watchers") == 2)
        redis.delete("pbs:watching")
        assert wait_until(lambda: Scrape(service).value("watchers") == 0)


def test_a_unix_socket_has_the_mode_of_the_others_and_is_gone_at_the_end(start: Start) -> None:
    with tempfile.TemporaryDirectory(prefix="pbs-") as directory:
        path = Path(directory) / "metrics"
        service = start(metrics_listen=f"unix:{path}", unix_socket_mode="0600")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert Scrape(service).value("connections") == 0
        service.stop()
        assert not path.exists()


def test_a_place_that_others_can_reach_is_warned_about(start: Start) -> None:
    service = start(metrics_listen="inet:0.0.0.0:0")
    assert re.search(r"warning: metrics are told at inet:0\.0\.0\.0:\d+ to whoever can reach it", service.log())


def test_a_port_that_is_taken_is_an_error(start: Start) -> None:
    taken = metrics_listener(start())
    command = [*CLI, "--set", "listen=inet:127.0.0.1:0", "--set", f"metrics_listen={taken}", *SERVE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "cannot listen on" in done.stderr) == (71, True)


# --- without the extra ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["aiohttp", "prometheus_client"])
def missing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """One of the packages that metrics need is not installed."""
    (tmp_path / f"{request.param}.py").write_text("raise ImportError('hidden by the test')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return str(request.param)


LACK = "metrics_listen: nothing answers there, a Python package is missing ("


def test_without_a_package_the_service_runs_and_says_how_to_get_it(missing: str, start: Start) -> None:
    service = start(metrics_listen="inet:127.0.0.1:0")
    assert service.ask(ALICE) == "OK"
    assert service.log().count(LACK) == 1
    assert f"warning: the settings: {LACK}" in service.log()
    assert "pip install 'pbs-policy[metrics]', or apt-get install python3-aiohttp" in service.log()
    assert "metrics and health at" not in service.log()


def test_a_reload_says_which_package_is_missing_for_a_new_metrics_listen(missing: str, start: Start) -> None:
    service = start(metrics_listen="")
    assert LACK not in service.log()
    text = service.settings_file.read_text()
    service.settings_file.write_text(text.replace("metrics_listen = ", "metrics_listen = inet:127.0.0.1:0"))
    service.process.send_signal(signal.SIGHUP)
    assert service.waits_to_log(f"warning: the settings: {LACK}")
    assert service.waits_to_log("the settings were read anew")


def test_without_a_package_config_and_doctor_say_so(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*CLI, "--set", "metrics_listen=inet:127.0.0.1:10042", "config", "ttl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ttl = 30m\n")
    assert done.stderr.startswith(f"pbs-policy: warning: {LACK}")
    monkeypatch.setitem(sys.modules, missing, None)
    settings, values = load(Path("/dev/null"), {}, ["listen=inet:127.0.0.1:1", "metrics_listen=inet:127.0.0.1:10042"])
    finding = list(check_service(settings, values))[-1]
    assert (finding.check, finding.level) == ("service.metrics", "warning")
    assert finding.seen.startswith(LACK)
    assert finding.mend.startswith("pip install 'pbs-policy[metrics]'")


def test_where_no_metrics_are_wanted_the_packages_are_not_needed(missing: str, start: Start) -> None:
    service = start(metrics_listen="")
    assert service.ask(ALICE) == "OK"
    assert "warning: " not in service.log()


def test_what_metrics_need_is_not_loaded_where_none_are_wanted(start: Start) -> None:
    service = start(metrics_listen="")
    assert service.ask(ALICE) == "OK"
    assert "aiohttp" not in Path(f"/proc/{service.process.pid}/maps").read_text()


# --- peers that want to harm ---------------------------------------------------------------------------------------


def test_more_slow_clients_than_there_are_places_make_room_and_keep_no_probe_waiting(start: Start) -> None:
    """They begin a request and never finish it; a load balancer would take a service that says nothing for dead."""
    service = start()
    listener = metrics_listener(service)
    with ExitStack() as stack:
        for number in range(2 * MOST):
            slow = stack.enter_context(socket.create_connection((listener.host, listener.port), 10))
            slow.sendall((b"", b"G", b"GET /healthz HTTP/1.1\r\nX: ")[number % 3])
        began = time.monotonic()
        assert get(service, "/healthz") == (200, "turns\n")
        assert time.monotonic() - began < PATIENCE, "the places that are kept for a while are free again"
        assert service.ask(ALICE) == "OK"
        open_now = len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))
        assert open_now < MOST + 40, "no more are open than there are places, and what the service has itself"
