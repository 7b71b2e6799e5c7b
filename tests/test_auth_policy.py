"""A report of Dovecot's, as `pbs-policy record` reads it: which one tells of a login, and which one is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pbs_policy.recorder.auth_policy import ATTRIBUTES, Header, ReportError, parse_report
from pbs_policy.recorder.logins import LoginRules, SeenLogin, Unrecorded
from pbs_policy.settings import defaults
from pbs_policy.settings.sources import Value

REPORT: dict[str, Any] = {
    "user": "alice@example.com", "remote": "192.0.2.7", "protocol": "imap", "mech": "PLAIN", "master_user": "",
    "proxied": "no", "nologin": "no", "success": True, "policy_reject": False, "tls": False,
}  # fmt: skip


def parsed(**changes: Any) -> SeenLogin | None:
    return parse_report(json.dumps(REPORT | changes).encode())


def test_a_report_of_a_success_is_a_login() -> None:
    assert parsed() == SeenLogin(b"alice@example.com", "192.0.2.7", "imap", "report", b"PLAIN")
    assert parsed(device_id="", pwhash="", fail_type="") == parsed(), "2.4 adds these"


@pytest.mark.parametrize(
    "changes", [{"success": False}, {"policy_reject": True}, {"nologin": "yes"}, {"nologin": ""}, {"nologin": "NO"}]
)
def test_where_nobody_has_logged_in_there_is_no_login(changes: dict[str, Any]) -> None:
    assert parsed(**changes) is None


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_report_that_lacks_an_attribute_is_refused(name: str) -> None:
    lacking = {key: value for key, value in REPORT.items() if key != name}
    with pytest.raises(ReportError, match=f"it lacks {name}: "):
        parse_report(json.dumps(lacking).encode())
    with pytest.raises(ReportError, match=f"it lacks {name}: "):
        parsed(**{name: 1})


@pytest.mark.parametrize(
    ("proxied", "setting", "is_recorded"),
    [("no", "no", True), ("no", "yes", True), ("yes", "no", False), ("yes", "yes", True), ("", "no", False)],
)
def test_a_login_that_another_host_answers_for_is_recorded_where_the_settings_say_so(
    proxied: str, setting: str, is_recorded: bool
) -> None:
    rules = LoginRules(defaults() | {"record_proxied_logins": Value(setting, "test")})
    login = parsed(proxied=proxied)
    assert login is not None
    if is_recorded:
        assert rules.describe(login).keys
    else:
        with pytest.raises(Unrecorded, match="^it goes on to another host"):
            rules.describe(login)


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("Authorization: Bearer secret", ("Authorization", "Bearer secret")),
        ("secret", ("X-API-Key", "secret")),
        ("X-Secret:a:b", ("X-Secret", "a:b")),
        ("", ("X-API-Key", "")),
    ],
)
def test_the_secret_is_read_as_dovecot_reads_it(text: str, header: tuple[str, str]) -> None:
    assert Header.parse(text) == header
