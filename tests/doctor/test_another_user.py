"""Doctor as somebody else than root: what he may not see was not looked at, and is no fault of the installation."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from pbs_policy.doctor import Doctor
from pbs_policy.doctor.finding import AS_ROOT, not_looked_at
from pbs_policy.doctor.script import check_script
from pbs_policy.dovecot.doveconf import read_dovecot
from pbs_policy.dovecot.logins import Hook
from pbs_policy.host import Host, NotLookedAt, ProgramOutput
from pbs_policy.settings import load
from pbs_policy.settings.sources import SettingsError
from pbs_policy.store.errors import StoreUnavailable

SETTINGS, VALUES = load(Path("/dev/null"), {}, ["redis_url=unix:///run/redis/redis.sock"])


@pytest.fixture(params=["somebody", "root"])
def is_root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr("pbs_policy.host.os.geteuid", lambda: 0 if request.param == "root" else 1000)
    return bool(request.param == "root")


@pytest.mark.parametrize(
    "refusal",
    [
        SettingsError(["redis_password_file: [Errno 13] Permission denied: '/etc/pbs-policy/password'"]),
        StoreUnavailable("/run/redis/redis.sock: Permission denied"),
    ],
)
def test_a_redis_that_only_others_may_reach_is_not_said_to_be_down(
    refusal: Exception, is_root: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbs_policy.doctor.connect_by", Mock(side_effect=refusal))
    (finding,) = Doctor(SETTINGS, VALUES).examine_store()
    assert (finding.check, "Permission denied" in finding.seen) == ("store.reachable", True)
    assert finding.level == ("wrong" if is_root else "unknown")
    assert (finding.mend == AS_ROOT) is not is_root
    assert ("unavailable" in finding.seen) is is_root


class HidingHost(Host):
    """A doveconf that goes on without a file that it may not read, as it does for !include_try."""

    def run(self, program: str, *_: str) -> ProgramOutput:
        assert program == "doveconf"
        return ProgramOutput("# 2.3.19.1 (9b53102964): /etc/dovecot/dovecot.conf\nprotocols = pop3\n", "", 0)

    def read(self, path: str) -> bytes:
        if path.endswith("secret.conf"):
            raise NotLookedAt(f"{path}: Permission denied")
        return b"protocols = pop3\n!include_try conf.d/*.conf\n"

    def glob(self, pattern: str) -> list[str]:
        assert pattern.endswith("conf.d/*.conf")
        return ["/etc/dovecot/conf.d/secret.conf"]


def test_an_included_file_that_dovecots_own_tool_leaves_out_is_named(is_root: bool) -> None:
    config = read_dovecot(HidingHost(), "/etc/dovecot/dovecot.conf")
    assert config.unread == (() if is_root else ("/etc/dovecot/conf.d/secret.conf",))
    findings = list(Doctor(SETTINGS, VALUES, host=HidingHost()).examine_dovecot())
    told = [each for each in findings if each.check == "dovecot.configuration"]
    assert [(each.level, each.place, each.mend) for each in told] == (
        [] if is_root else [("unknown", "/etc/dovecot/conf.d/secret.conf", AS_ROOT)]
    )


def test_whatever_may_not_be_read_is_to_be_looked_at_as_root(is_root: bool) -> None:
    assert not_looked_at("/etc/x: Permission denied", mend="another way").mend == (
        "another way" if is_root else AS_ROOT
    )
    assert not_looked_at("postconf is not installed here", mend="another way").mend == "another way"


def test_what_could_not_be_looked_at_of_the_script_has_the_place_where_dovecot_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Host()
    monkeypatch.setattr(Host, "obstacle", Mock(side_effect=NotLookedAt("I/O error")))
    hook = Hook("imap", "imap-postlogin", "/srv/pbs-postlogin", (), "root", "dovecot.conf:7")
    said = [(each.check, each.level, each.place) for each in check_script([hook], SETTINGS, VALUES, host)]
    assert said == [(f"dovecot.{name}", "unknown", "dovecot.conf:7") for name in ("script", "settings_file")]
