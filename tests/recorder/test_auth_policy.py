"""Dovecot's reports, bytes in and a login out: what is no success, or not understood in full, is no login."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbs_policy.recorder.auth_policy import ATTRIBUTES, Header, ReportError, parse_report
from pbs_policy.recorder.logins import LoginRules, SeenLogin, Unrecorded
from pbs_policy.settings import defaults
from pbs_policy.settings.sources import Value
from tests.recorder.report import ALICE, report


def test_a_success_is_a_login_with_the_names_that_dovecot_has_in_the_end() -> None:
    odd = 'a "b"\\\t\x01ü@example.com'
    assert parse_report(report(user=odd, master_user="Admin", proxied="yes")) == SeenLogin(
        odd.encode(), "192.0.2.7", "imap", "report", b"PLAIN", b"Admin", proxied=True
    )


def test_attributes_that_nobody_needs_change_nothing() -> None:
    assert parse_report(report(device_id="", pwhash="", fail_type="")) == parse_report(report())  # 2.4's own


@pytest.mark.parametrize(
    "changed",
    [
        {"success": False}, {"policy_reject": True}, {"success": False, "user": None, "mech": 7},
        {"nologin": "yes"}, {"nologin": ""}, {"nologin": "NO"},
    ],
)  # fmt: skip
def test_what_is_no_success_is_no_login(changed: dict[str, Any]) -> None:
    assert parse_report(report(**changed)) is None


_WRONG_VALUES = [7, 1.5, True, None, [], ["x"], {}, {"x": "y"}]


@pytest.mark.parametrize(
    "body",
    [
        *(report(**{name: value}) for name in ATTRIBUTES for value in _WRONG_VALUES),
        *(report(**{name: value}) for name in ("success", "policy_reject") for value in ("true", 1, 0, None, [True])),
        report(user=""), report(user="a\0b"), report(user="a\ud800b"), report(user="\N{REPLACEMENT CHARACTER}"),
        report(master_user="\N{REPLACEMENT CHARACTER}"), report(remote="192.0.2.7\0"),
        b"", b"x", b"null", b"[]", b'"success"', b"true", report()[:-1], report() * 2, b"\xff" + report(),
        report().replace(b"alice", b"\xff"), report().decode().encode("utf-16"), b"\xef\xbb\xbf" + report(),
        report()[:-1] + b', "x": NaN}', b"[" * 5000, b'{"a":' * 5000,
        # What one reader takes for a failure, another may take for a success.
        report(success=False)[:-1] + b', "success": true}', report()[:-1] + b', "user": "bob@example.com"}',
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused(body: bytes) -> None:
    with pytest.raises(ReportError) as error:
        parse_report(body)
    assert str(error.value).isprintable()


def test_what_dovecot_has_to_send_is_said_where_it_is_missing() -> None:
    said = r"lacks mech, master_user: expected the auth_policy_request_attributes of report-2\.3\.conf"
    with pytest.raises(ReportError, match=said):
        parse_report(report(mech=None, master_user=None))


@pytest.mark.parametrize(
    ("proxied", "setting", "is_recorded"),
    [("no", "no", True), ("no", "yes", True), ("yes", "no", False), ("yes", "yes", True), ("", "no", False)],
)
def test_a_login_that_another_host_answers_for_is_recorded_where_the_settings_say_so(
    proxied: str, setting: str, is_recorded: bool
) -> None:
    rules = LoginRules(defaults() | {"record_proxied_logins": Value(setting, "test")})
    login = parse_report(report(proxied=proxied))
    assert login is not None
    if is_recorded:
        assert rules.describe(login).keys
    else:
        with pytest.raises(Unrecorded, match="goes on to another host"):
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


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_names = st.sampled_from([*ALICE, "x"]) | st.text(max_size=5)


@given(st.dictionaries(_names, _values, max_size=10), st.binary(max_size=10), st.integers(0, 200))
def test_nothing_but_a_whole_success_is_ever_a_login(fields: dict[str, Any], noise: bytes, at: int) -> None:
    whole = json.dumps(ALICE | fields).encode()
    for body in (whole, json.dumps(fields).encode(), whole[:at] + noise + whole[at:], whole[:at], noise):
        try:
            login = parse_report(body)
        except ReportError:
            continue
        said = json.loads(body)
        is_success = said["success"] is True and said["policy_reject"] is False and said["nologin"] == "no"
        assert is_success == (login is not None)
        if login is not None:
            assert login.user == said["user"].encode() != b""
            assert (login.address, login.service) == (said["remote"], said["protocol"])
