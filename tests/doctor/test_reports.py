"""Doctor where Dovecot reports its logins: the trial by a report, with the real recorder and service; and which
password databases make a report prove nothing, beyond those of `broken/` and `sound/`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.doctor.finding import Finding
from pbs_policy.doctor.reports import by_report, check_reports, reported_protocols
from pbs_policy.doctor.trial import check_trial
from pbs_policy.dovecot.reports import read_reports
from pbs_policy.host import Host
from pbs_policy.settings import load
from pbs_policy.shipped import shipped
from pbs_policy.store.redis_url import RedisUrl
from tests.doctor.test_dovecot_auth import Files, config_of, settings_with
from tests.service import Recorder, Service
from tests.stores import connect, table_on

HEADER = "Authorization: Bearer 3f0c1b7e5a9d"
HOOK = {version: shipped(f"dovecot-hooks/report-{version}.conf").read_text() for version in ("2.3", "2.4")}
LISTENS = {"reports_listen": "inet:127.0.0.1:10041", "reports_check_passwords": "yes"}

Try = Callable[..., list[Finding]]


@pytest.fixture
def try_report(
    redis_server: PrivateRedis, start_service: Callable[..., Service], start_recorder: Callable[..., Recorder]
) -> Try:
    """The trial of a service with these settings, and of a recorder with the same ones but for `recorder`."""

    def try_it(recorder: dict[str, str] | None = None, **values: str) -> list[Finding]:
        service = start_service(redis_url=redis_server.url, **values)
        running = start_recorder(redis_url=redis_server.url, **(values | (recorder or {})))
        listeners = {"listen": service.listeners[0], "reports_listen": running.listeners[0]}
        sets = [f"{name}={value}" for name, value in listeners.items()]
        if recorder == {}:
            running.stop()
        settings, _ = load(service.settings_file, overrides=sets)
        table = table_on(connect(RedisUrl.parse(redis_server.url)), settings.key_prefix)
        return list(check_trial(by_report(config_of(HOOK["2.3"]), "imap", settings, table, Host()), settings, table))

    return try_it


def test_a_whole_login_is_tried_by_a_report_and_leaves_nothing(try_report: Try, redis_server: PrivateRedis) -> None:
    findings = try_report(sender_match="address", login_domains="example.com")
    assert [each.level for each in findings] == ["good", "good"], findings
    assert "permitted after a login, refused when it was deleted" in findings[0].seen
    redis: Redis = connect(RedisUrl.parse(redis_server.url))
    assert list(redis.scan_iter("*login:*")) == []


@pytest.mark.parametrize(
    ("recorder", "seen"),
    [
        ({"key_prefix": "other:"}, "the recorder has taken a report, and the login is not in Redis"),
        ({}, "the recorder answers a report with nothing: "),
    ],
)
def test_a_recorder_that_writes_elsewhere_or_is_away_is_found(
    try_report: Try, recorder: dict[str, str], seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbs_policy.doctor.reports._SECONDS", 1.0)
    findings = try_report(recorder)
    assert [each.level for each in findings] == ["wrong", "wrong"]
    assert seen in findings[0].seen


def test_a_recorder_with_another_secret_is_found(try_report: Try, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for file, text in ((ours, HEADER), (theirs, HEADER.replace("3", "4"))):
        file.write_text(f"{text}\n")
    good = try_report(reports_secret_file=str(ours))
    assert [each.level for each in good] == ["good", "good"], "it is sent as Dovecot sends it"
    findings = try_report({"reports_secret_file": str(theirs)}, reports_secret_file=str(ours))
    assert "the recorder answers a report with 401 Unauthorized" in findings[0].seen


def passwords(passdb: str, host: Host | None = None, **settings: str) -> Finding:
    """What is said of the passwords of this database."""
    hook = HOOK["2.4" if "dovecot_config_version" in passdb else "2.3"]
    findings = check_reports(config_of(hook + passdb), settings_with(**(LISTENS | settings)), host or Files())
    (finding,) = [each for each in findings if each.check == "dovecot.reports_passwords"]
    return finding


PROXY = "passdb {{\n driver = static\n args = proxy=y host=192.0.2.3 {0}\n}}\n"
SQL = "passdb {\n driver = sql\n args = /etc/dovecot/x\n}\n"


@pytest.mark.parametrize(
    ("passdb", "text", "settings", "level"),
    [
        (PROXY.format("nopassword=y"), "", {}, "wrong"),
        (PROXY.format("nopassword=y"), "", {"record_proxied_logins": "yes"}, "wrong"),
        (PROXY.format("password=x").replace("proxy=", "proxy_maybe="), "", {}, "warning"),
        (PROXY.format("password=x"), "", {"record_proxied_logins": "yes"}, "good"),
        ("passdb {\n driver = sql\n args = /x\n default_fields = proxy=y\n}\n", "", {}, "warning"),
        (SQL, "password_query = SELECT pw AS password, 'y' AS proxy, host FROM users\n", {}, "good"),
        ("passdb {\n driver = static\n args = nopassword=y\n}\n", "", {}, "good"),
        ("passdb {\n driver = passwd-file\n args = /etc/dovecot/x\n}\n", "proxy:x:::::::\n", {}, "good"),
        ("passdb {\n driver = passwd-file\n args = /etc/dovecot/x\n}\n", "a:x::::::nologin\n", {}, "good"),
        (
            "dovecot_config_version = 2.4.1\npassdb passwd-file {\n passwd_file_path = /etc/dovecot/x\n}\n",
            "a:x::::::nologin\n", {}, "warning",
        ),
    ],
)  # fmt: skip
def test_what_makes_a_reported_success_prove_nothing(
    passdb: str, text: str, settings: dict[str, str], level: str
) -> None:
    assert passwords(passdb, Files(text) if text else None, **settings).level == level


@pytest.mark.parametrize(
    ("version", "ours", "theirs", "level"),
    [
        ("2.3", "mech=%m", "mech=PLAIN", "wrong"),
        ("2.3", "mech=%m", "mech=x%m", "wrong"),
        ("2.3", "mech=%m", "mech=%{mech}", "good"),
        ("2.3", "protocol=%s", "protocol=imap", "wrong"),
        ("2.3", "protocol=%s", "protocol=%u", "wrong"),
        ("2.3", "protocol=%s", "protocol=%{service}", "good"),
        ("2.4", "mech = %{mechanism}", "mech = PLAIN", "wrong"),
        ("2.4", "mech = %{mechanism}", "mech = %{mechanism | upper}", "good"),
        ("2.4", "protocol = %{protocol}", "protocol = imap", "wrong"),
    ],
)
def test_a_report_says_the_mechanism_and_protocol_of_the_login(
    version: str, ours: str, theirs: str, level: str
) -> None:
    head = "dovecot_config_version = 2.4.1\n" if version == "2.4" else ""
    findings = check_reports(config_of(head + HOOK[version].replace(ours, theirs)), settings_with(**LISTENS), Files())
    assert {each.level for each in findings if each.check == "dovecot.reports_attributes"} == {level}


def test_a_database_that_may_not_be_read_is_not_judged() -> None:
    assert passwords(SQL, Files("", "Permission denied")).level == "not looked at"


def test_a_policy_server_of_the_sites_own_is_not_judged() -> None:
    config = config_of(HOOK["2.3"].replace("10041", "8084"))
    assert list(check_reports(config, settings_with(), Files())) == []
    assert reported_protocols(config, settings_with()) == []
    assert reported_protocols(config, settings_with(**LISTENS, services="imap")) == ["imap"]


@pytest.mark.parametrize(
    ("url", "is_ours", "shown"),
    [
        ("http://127.0.0.1:10041/", True, "http://127.0.0.1:10041/"),
        ("http://localhost:10041", True, "http://localhost:10041/"),
        ("http://user:word@127.0.0.1:10041/?x", True, "http://127.0.0.1:10041/"),
        ("http://127.0.0.1:10042/", False, "http://127.0.0.1:10042/"),
        ("http://192.0.2.3:10041/", False, "http://192.0.2.3:10041/"),
        ("http://[::1:10041/", False, "http://[::1:10041/"),
        ("http://127.0.0.1:99999/", False, "http://127.0.0.1:99999/"),
        ("http://127.0.0.1/", False, "http://127.0.0.1/"),
        ("nonsense", False, "nonsense:///"),
    ],
)
def test_where_dovecot_reports_to_is_told_without_a_password_that_is_in_the_url(
    url: str, is_ours: bool, shown: str
) -> None:
    reports = read_reports(config_of(HOOK["2.3"].replace("http://127.0.0.1:10041/", url)))
    assert reports is not None
    assert reports.is_to([("127.0.0.1", 10041)]) is is_ours
    assert reports.server == shown
