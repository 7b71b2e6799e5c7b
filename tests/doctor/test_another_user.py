"""Doctor as somebody else than root: what he may not see was not looked at, and is no fault of the installation."""

from __future__ import annotations

from pathlib import Path

import pytest

from pbs_policy.doctor import Doctor
from pbs_policy.doctor.finding import AS_ROOT, not_looked_at
from pbs_policy.dovecot.doveconf import read_dovecot
from pbs_policy.host import Host, NotLookedAt, ProgramOutput
from pbs_policy.settings import Settings, load
from pbs_policy.settings.sources import SettingsError
from pbs_policy.store.connect import RedisClient
from pbs_policy.store.errors import StoreUnavailable

SETTINGS, VALUES = load(Path("/dev/null"), {}, ["redis_url=unix:///run/redis/redis.sock"])


@pytest.fixture(params=["somebody", "root"])
def is_root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr("pbs_policy.host.os.geteuid", lambda: 0 if request.param == "root" else 1000)
    return bool(request.param == "root")


def refuse_password(_: Settings) -> RedisClient:
    raise SettingsError(["redis_password_file: [Errno 13] Permission denied: '/etc/pbs-policy/password'"])


def refuse_socket(_: Settings) -> RedisClient:
    raise StoreUnavailable("/run/redis/redis.sock: Permission denied")


@pytest.mark.parametrize("connect", [refuse_password, refuse_socket])
def test_a_redis_that_only_others_may_reach_is_not_said_to_be_down(connect: object, is_root: bool) -> None:
    doctor = Doctor(SETTINGS, VALUES, connect=connect)  # type: ignore[arg-type]  # one of the two above
    (finding,) = doctor.examine_store()
    assert finding.check == "store.reachable"
    assert "Permission denied" in finding.seen
    if is_root:
        assert finding.level == "wrong"
    else:
        assert (finding.level, finding.mend) == ("unknown", AS_ROOT)
        assert "unavailable" not in finding.seen


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
