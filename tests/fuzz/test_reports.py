"""Random reports at the recorder, and faults put in on purpose, which have to be found."""

from __future__ import annotations

import asyncio

import pytest

from pbs_policy.recorder import auth_policy, reports
from pbs_policy.recorder.logins import SeenLogin
from tests.fuzz.reports import main


@pytest.mark.parametrize("number", [3_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_nothing_but_a_success_is_recorded_of_random_reports(number: int) -> None:
    assert "nothing recorded that was no success" in asyncio.run(main(number, 7))


_parse = auth_policy.parse_report


def _takes_failures(body: bytes) -> SeenLogin | None:
    return _parse(body.replace(b'"success": false', b'"success": true'))


def _mixes_users_up(body: bytes) -> SeenLogin | None:
    login = _parse(body)
    return login and login._replace(user=b"bob")


def _raises(body: bytes) -> SeenLogin | None:
    if b"ANONYMOUS" in body:
        raise RuntimeError("a fault of ours")
    return _parse(body)


@pytest.mark.parametrize("fault", [_takes_failures, _mixes_users_up, _raises])
def test_a_fault_is_found(fault: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "parse_report", fault)
    with pytest.raises(AssertionError):
        asyncio.run(main(3_000, 7))
