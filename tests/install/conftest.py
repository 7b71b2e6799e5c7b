"""Fixtures of the installers' tests."""

from __future__ import annotations

import os
from pathlib import Path

import fakeredis
import pytest

from pbs_policy.install.files import FileState, write_state
from tests.conftest import need
from tests.install.support import DEBIAN_MAIN_CF, MASTER_CF, age, write, write_dovecot
from tests.stores import client_on


@pytest.fixture
def denies(monkeypatch: pytest.MonkeyPatch) -> fakeredis.FakeRedis:
    """The Redis in which the installers look for denies."""
    redis = fakeredis.FakeRedis()
    monkeypatch.setattr("pbs_policy.install.last_login.connect", lambda _settings: client_on(redis))
    return redis


@pytest.fixture
def root(tmp_path: Path, denies: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with a small Dovecot and a small Postfix in it, as Debian has them, and the users of both packages. What
    the installers write there is a minute old at once: see `age`."""

    def write_and_age(path: Path, state: FileState) -> None:
        write_state(path, state)
        age(path)

    need("dovecot", "postfix")
    monkeypatch.setattr("pbs_policy.install.plan.write_state", write_and_age)
    passwd = "root:x:0:0::/root:/bin/sh\npbs-policy:x:{0}:{1}::/:\npostfix:x:{0}:{1}::/:\n"
    write(tmp_path, "/etc/passwd", passwd.format(os.geteuid(), os.getegid()))
    write_dovecot(tmp_path)
    write(tmp_path, "/etc/postfix/main.cf", DEBIAN_MAIN_CF, mode=0o640)
    write(tmp_path, "/etc/postfix/master.cf", MASTER_CF)
    (tmp_path / "var/spool/postfix").mkdir(parents=True)
    return tmp_path
