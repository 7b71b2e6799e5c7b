"""`pbs-policy record` that hears no reports and only renews sessions: a process, with a doveadm of the test's."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis, wait_until
from pbs_policy.store.redis_url import RedisUrl
from tests.recorder import PrivateRecorder
from tests.service import CLI
from tests.stores import connect

KEY = "pbs:login:192.0.2.7"
WHO = '[{"username":"alice@example.com","service":"imap","pid":"7","ip":"192.0.2.7"}]'

Start = Callable[..., PrivateRecorder]


@pytest.fixture
def redis(redis_server: PrivateRedis) -> Iterator[Redis]:
    with connect(RedisUrl.parse(redis_server.url)) as redis:
        redis.set(KEY, "1763881234 imap alice@example.com", ex=100)
        yield redis


@pytest.fixture
def start(redis_server: PrivateRedis, tmp_path: Path) -> Iterator[Start]:
    """Start the recorder, with what its doveadm does and further settings."""
    with ExitStack() as stack:

        def start_with(script: str, hidden: str = "", **settings: str) -> PrivateRecorder:
            doveadm = tmp_path / "bin" / "doveadm"
            doveadm.parent.mkdir()
            doveadm.write_text(f"#!/bin/sh\n{script}\n")
            doveadm.chmod(0o755)
            environment = dict(os.environ, PATH=f"{doveadm.parent}:{os.environ['PATH']}")
            if hidden:
                (tmp_path / f"{hidden}.py").write_text("raise ImportError('hidden by the test')\n")
                environment["PYTHONPATH"] = f"{tmp_path}:{environment.get('PYTHONPATH', '')}"
            lines = {"redis_url": redis_server.url, "renew_sessions": "1s", "ttl": "1h", **settings}
            recorder = PrivateRecorder(tmp_path, lines)
            recorder.environment = environment
            return stack.enter_context(recorder)

        yield start_with


def is_renewed(redis: Redis) -> bool:
    value = redis.get(KEY)
    return isinstance(value, bytes) and b" imap-session " in value


def test_it_needs_no_aiohttp(start: Start, redis: Redis) -> None:
    start(f"echo '{WHO}'", hidden="aiohttp")
    assert wait_until(lambda: is_renewed(redis))


def test_it_ends_at_once_although_doveadm_hangs_and_leaves_none_behind(start: Start, tmp_path: Path) -> None:
    recorder = start(f"echo $$ >{tmp_path}/new && mv {tmp_path}/new {tmp_path}/pid && exec sleep 1000")
    assert wait_until((tmp_path / "pid").exists)
    recorder.stop_seconds = 9  # doveadm has 10
    assert recorder.stop() == 0
    doveadm = Path("/proc", (tmp_path / "pid").read_text().strip())
    assert wait_until(lambda: not doveadm.exists(), seconds=9), "its end is init's to see where we end first"


def test_a_reload_changes_whose_logins_are_renewed(start: Start, redis: Redis) -> None:
    recorder = start(f"echo '{WHO}'", never_record="192.0.2.0/24")
    assert wait_until(lambda: "sessions are renewed" in recorder.log_text())
    assert not is_renewed(redis)
    text = recorder.settings_file.read_text()
    recorder.settings_file.write_text(text.replace("never_record = 192.0.2.0/24\n", ""))
    os.kill(recorder.pid, signal.SIGHUP)
    assert wait_until(lambda: is_renewed(redis))


def test_a_file_of_denies_that_changes_is_read_anew(start: Start, redis: Redis, tmp_path: Path) -> None:
    denies = tmp_path / "denies"
    denies.write_text("alice@example.com stolen\n")
    recorder = start(f"echo '{WHO}'", denies=str(denies))
    assert wait_until(lambda: "sessions are renewed" in recorder.log_text())
    assert not is_renewed(redis)
    denies.write_text("bob@example.com stolen\n")
    assert wait_until(lambda: is_renewed(redis))
    assert "denies was read anew" in recorder.log_text()


def test_without_reports_and_without_doveadm_there_is_nothing_to_record(tmp_path: Path) -> None:
    nowhere = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [*CLI, "--set", "renew_sessions=0", "record", "--allow-root"],
        capture_output=True, text=True, timeout=60, env=nowhere,
    )  # fmt: skip
    assert done.returncode == 78
    assert "there is nothing to record: expected reports_listen" in done.stderr
    assert "or renew_sessions and Dovecot's doveadm on this host" in done.stderr
