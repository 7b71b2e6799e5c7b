"""`pbs-policy record` as a process, with Redis: what is answered, what is recorded, and what peers can take."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.recorder.reports import LONGEST_REQUEST
from pbs_policy.store.redis_url import RedisUrl
from tests.metrics.scrape import Scrape, get
from tests.recorder.report import post, report
from tests.service import CLI, Recorder, Service
from tests.stores import connect, pause, resume

Start = Callable[..., Recorder]
YES = (200, b'{"status": 0, "msg": ""}\n')


@pytest.fixture
def start(start_recorder: Start, redis_server: PrivateRedis) -> Start:
    """Start the recorder on the Redis of the test."""
    return lambda **settings: start_recorder(redis_url=redis_server.url, **settings)


@pytest.fixture(scope="module")
def shared_recorder(shared_redis: PrivateRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    with Recorder(tmp_path_factory.mktemp("recorder"), {"redis_url": shared_redis.url}) as recorder:
        yield recorder


@pytest.fixture
def recorder(shared_recorder: Recorder, redis_server: PrivateRedis) -> Recorder:
    """One for all tests that only report to it; its Redis is empty."""
    return shared_recorder


@pytest.fixture
def redis(redis_server: PrivateRedis) -> Redis:
    return connect(RedisUrl.parse(redis_server.url))


def is_recorded(redis: Redis, address: str = "192.0.2.7") -> bool:
    """Whether there is a login from there, now or within a few seconds."""
    return wait_until(lambda: bool(redis.exists(f"pbs:login:{address}")), seconds=10)


def test_a_reported_login_may_relay_and_check_says_what_recorded_it(
    start: Start, start_service: Callable[..., Service], redis_server: PrivateRedis, redis: Redis
) -> None:
    recorder, service = start(), start_service(redis_url=redis_server.url, services="imap")
    assert service.ask("192.0.2.7").startswith("DUNNO")
    assert post(recorder.url, report(remote="::ffff:192.0.2.7")) == YES
    assert is_recorded(redis)
    assert service.ask("192.0.2.7").startswith("OK")
    assert redis.ttl("pbs:login:192.0.2.7") > 1790
    command = [*CLI, "--set", f"redis_url={redis_server.url}", "check", "192.0.2.7", "-q"]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    assert said.startswith("OK  192.0.2.7: may relay, logged in as alice@example.com (imap, by report)")


@pytest.mark.parametrize("body", [report(success=False), report(policy_reject=True), report(protocol="smtp")])
def test_what_is_no_login_that_counts_is_taken_and_not_recorded(
    body: bytes, recorder: Recorder, redis: Redis
) -> None:
    assert post(recorder.url, body) == YES
    assert post(recorder.url, report(remote="192.0.2.8")) == YES
    assert is_recorded(redis, "192.0.2.8")
    assert not redis.exists("pbs:login:192.0.2.7")


@pytest.mark.parametrize("body", [b"", b"x", report(user="bob"), report(success=False)])
def test_who_asks_whether_a_login_is_allowed_is_told_yes(body: bytes, recorder: Recorder, redis: Redis) -> None:
    assert post(recorder.url, body, "?command=allow") == YES
    assert redis.dbsize() == 0


def test_what_is_not_understood_is_refused_with_one_line(start: Start, redis: Redis) -> None:
    recorder = start()
    for status, query, body in (
        (400, "?command=report", b"{"),
        (400, "?command=report", report(mech=None)),
        (400, "??command=report", report()),
        (400, "?command=report&command=report", report()),
        (400, "?command=reports", report()),
        (400, "", report()),
        (413, "?command=report", report(user="x" * LONGEST_REQUEST)),
    ):
        assert post(recorder.url, body, query)[0] == status
    assert post(recorder.url, report(), method="PUT")[0] == 405
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""):
        assert post(recorder.url, report(), Content_Type=kind)[0] == 415
    assert redis.dbsize() == 0
    assert "must not end in ?" in recorder.log()
    assert recorder.log().isascii()


FOREIGN: list[tuple[str, list[dict[str, str]]]] = [
    (
        "a browser has sent it",
        [
            {"Origin": "http://192.0.2.9:10041"},
            {"Origin": "null"},
            {"referer": "http://www.example.net/"},
            {"Sec_Fetch_Site": "same-origin"},
        ],
    ),
    (
        "its Host is a name",
        [
            {"Host": "www.example.net:10041"},
            {"Host": "localhost.example.net"},
            {"Host": "127.0.0.1.example.net"},
            {"Host": "127.0.0.1@www.example.net"},
            {"Host": "127.1"},
            {"Host": ""},
        ],
    ),
]


@pytest.mark.parametrize(("said", "requests"), FOREIGN)
def test_a_web_page_whose_name_leads_here_cannot_report(
    said: str, requests: list[dict[str, str]], start: Start, redis: Redis
) -> None:
    recorder = start()
    for headers in requests:
        assert post(recorder.url, report(), **headers)[0] == 403, headers
    assert redis.dbsize() == 0
    assert recorder.log().count(said) == 1, "said once"


@pytest.mark.parametrize(
    "name", ["127.0.0.1:10041", "127.0.0.1", "localhost:10041", "LOCALHOST", "[::1]:10041", "192.0.2.3"]
)
def test_dovecot_calls_the_recorder_by_its_address_or_localhost(name: str, recorder: Recorder, redis: Redis) -> None:
    assert post(recorder.url, report(), Host=name) == YES
    assert is_recorded(redis, "192.0.2.7")


def test_with_the_secret_the_recorder_may_have_any_name_and_no_browser_is_believed(
    start: Start, redis: Redis, password_file: Callable[[str], str]
) -> None:
    recorder = start(reports_secret_file=password_file("s3cret"))
    known = {"X_API_Key": "s3cret", "Host": "mail.example.com:10041"}
    assert post(recorder.url, report(), Origin="http://mail.example.com:10041", **known)[0] == 403
    assert redis.dbsize() == 0
    assert post(recorder.url, report(), **known) == YES
    assert is_recorded(redis, "192.0.2.7")


def test_a_report_counts_only_with_the_secret(
    start: Start, redis: Redis, password_file: Callable[[str], str]
) -> None:
    recorder = start(reports_secret_file=password_file("X-Other:s3cret"))
    for name, text in [("X_Other", each) for each in ("s3cre", "s3cret2", "S3CRET", "\xe4")] + [("X", "s3cret")]:
        assert post(recorder.url, report(), **{name: text})[0] == 401
    assert post(recorder.url, report())[0] == 401
    assert post(recorder.url, b"", "?command=allow") == YES  # a secret that is missing must not refuse logins
    assert post(recorder.url, report(remote="192.0.2.8"), X_Other="s3cret") == YES
    assert is_recorded(redis, "192.0.2.8")
    assert not redis.exists("pbs:login:192.0.2.7")
    assert "s3cret" not in recorder.log()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reports_listen": "", "renew_sessions": "0"}, "nothing to record: expected reports_listen"),
        ({"reports_check_passwords": "no"}, "with nopassword) reports a success for any password"),
        ({"reports_listen": "inet:0.0.0.0:0"}, "could permit any address: set reports_secret_file"),
        ({"reports_listen": "unix:/run/x"}, "Dovecot reports by TCP alone"),
        ({"reports_secret_file": "/nonexistent/secret"}, "reports_secret"),
    ],
)
def test_it_does_not_start_where_that_would_be_unsafe(settings: dict[str, str], said: str, tmp_path: Path) -> None:
    safe = {"reports_listen": "inet:127.0.0.1:0", "reports_check_passwords": "yes"}
    command = [*CLI]
    for name, text in (safe | settings).items():
        command += ["--set", f"{name}={text}"]
    result = subprocess.run([*command, "record", "--allow-root"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (78, "")
    (line,) = result.stderr.splitlines()
    assert said in line


def test_without_aiohttp_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aiohttp.py").write_text("raise ImportError('hidden by the test')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    settings = ["--set", "reports_listen=inet:127.0.0.1:0", "--set", "reports_check_passwords=yes"]
    result = subprocess.run([*CLI, *settings, "record", "--allow-root"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 78
    assert result.stderr.endswith("pip install 'pbs-policy[recorder]', or apt-get install python3-aiohttp\n")
    assert result.stderr.count("\n") == 1


def test_answers_do_not_wait_for_redis_and_the_logins_are_written_when_it_is_back(
    start_recorder: Start, own_redis: Callable[..., PrivateRedis]
) -> None:
    server = own_redis()
    recorder = start_recorder(redis_url=server.url)
    pause(server)
    for number in range(1, 100):
        assert post(recorder.url, report(remote=f"192.0.2.{number}")) == YES
    assert recorder.waits_to_log("error: Redis is unavailable")
    resume(server)
    with connect(RedisUrl.parse(server.url)) as redis:
        assert wait_until(lambda: redis.dbsize() == 198)
    assert "lost" not in recorder.log()


def test_logins_that_are_in_hand_at_the_end_are_written(start: Start, redis: Redis) -> None:
    recorder = start()
    for number in range(1, 50):
        assert post(recorder.url, report(remote=f"192.0.2.{number}")) == YES
    assert recorder.stop() == 0
    assert redis.dbsize() == 98
    assert recorder.log().endswith("info: stopped\n")


def test_what_redis_has_not_taken_at_the_end_is_told(
    start_recorder: Start, own_redis: Callable[..., PrivateRedis]
) -> None:
    server = own_redis()
    recorder = start_recorder(redis_url=server.url)
    pause(server)
    assert post(recorder.url, report()) == YES
    assert recorder.stop() == 0
    assert "error: 1 logins are lost: Redis did not take them in time\n" in recorder.log()


def test_a_public_address_is_warned_about(start: Start, password_file: Callable[[str], str]) -> None:
    recorder = start(reports_listen="inet:0.0.0.0:0", reports_secret_file=password_file("s3cret"))
    assert "warning: reports are heard on inet:0.0.0.0:" in recorder.log()


def test_a_reload_changes_what_is_recorded(start: Start, redis: Redis) -> None:
    recorder = start()
    with recorder.settings_file.open("a") as file:
        file.write("services = pop3\nnever_record = 192.0.2.8\nttl = 10m\n")
    recorder.process.send_signal(signal.SIGHUP)
    assert recorder.waits_to_log("the settings were read anew: ")
    for changed in ({"protocol": "imap"}, {"remote": "192.0.2.8"}, {"remote": "192.0.2.9"}):
        assert post(recorder.url, report(**{"protocol": "pop3", **changed})) == YES
    assert is_recorded(redis, "192.0.2.9")
    assert 0 < redis.ttl("pbs:login:192.0.2.9") <= 600
    assert redis.dbsize() == 2


def test_metrics_count_logins_by_way_and_reports_by_what_came_of_them(start: Start, redis: Redis) -> None:
    recorder = start(recorder_metrics_listen="inet:127.0.0.1:0")
    for body in (report(), report(success=False), report(remote="127.0.0.1"), report(protocol="smtp"), b"x"):
        post(recorder.url, body)
    post(recorder.url, b"", "?command=allow")
    assert is_recorded(redis)
    assert wait_until(lambda: Scrape(recorder).value("logins_recorded_total", way="report") == 1, seconds=10)
    scrape = Scrape(recorder)
    for outcome in ("recorded", "left_out", "no_success", "other_service", "allow", "refused"):
        assert scrape.value("reports_total", outcome=outcome) == 1
    assert scrape.value("logins_left_out_total", way="report") == 1
    assert scrape.value("logins_recorded_total", way="session") == 0
    assert scrape.value("logins_lost_total") == scrape.value("logins_waiting") == 0
    assert get(recorder, "/healthz") == (200, "turns\n")
    assert get(recorder, "/readyz") == (200, "ready\n")


# --- peers


def dial(recorder: Recorder) -> socket.socket:
    place = urlsplit(recorder.url)
    return socket.create_connection((place.hostname, place.port), 60)


HEAD = (
    b"POST /?command=report HTTP/1.1\r\nHost: [::]\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


def test_who_does_not_finish_a_report_is_told_so_and_others_are_heard(recorder: Recorder) -> None:
    with dial(recorder) as first, dial(recorder) as second, dial(recorder) as third:
        for slow, sent in ((first, b"P"), (second, HEAD % 100), (third, HEAD % 100 + b"{")):
            slow.sendall(sent)
        assert post(recorder.url, report()) == YES
        for slow in (first, second, third):
            assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
            assert slow.recv(100) == b""


def test_reports_come_one_after_the_other_on_one_connection(recorder: Recorder, redis: Redis) -> None:
    with dial(recorder) as connection:
        for number in range(1, 200):
            body = report(remote=f"192.0.2.{number}")
            for byte in ((HEAD % len(body) + body,) if number > 3 else map(bytes, zip(HEAD % len(body) + body))):
                connection.sendall(byte)
            answer = b""
            while not answer.endswith(YES[1]):
                answer += connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200 ")
    assert wait_until(lambda: redis.dbsize() == 398)


def test_a_thousand_silent_peers_keep_nobody_out(recorder: Recorder) -> None:
    silent = [dial(recorder) for _ in range(1100)]
    assert post(recorder.url, report()) == YES
    for each in silent:
        each.close()
