"""The command line, run inside the test on a login table of the test's own."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from redis import Redis

from pbs_policy.cli import run
from tests.stores import client_on


class Result(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


Pbs = Callable[..., Result]


def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings file of the test's own, empty, no settings from its environment, and no syslog of the
    system's."""
    for name in [name for name in os.environ if name.startswith("PBS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("pbs_policy.log.writers.SYSLOG", str(tmp_path / "no-syslog"))
    file = tmp_path / "pbs-policy.conf"
    file.touch()
    return file


def commands_with(file: Path, capsys: pytest.CaptureFixture[str]) -> Pbs:
    """What runs a command in this process, with nothing behind it but the settings in `file`; `given` is what it
    finds on standard input."""

    def call(*arguments: str, given: bytes = b"") -> Result:
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            if given or "-" in arguments:
                patch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(given))))
            status = run(["-c", str(file), *arguments])
        return Result(status, *capsys.readouterr())

    return call


def put_behind(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every command find its login table on `redis`."""
    monkeypatch.setattr("pbs_policy.store.connect.connect_by", lambda *_, **__: client_on(redis))


def is_one_error(result: Result, status: int, text: str) -> bool:
    """Whether it ended so, with nothing but one line on standard error that says `text`."""
    assert result.err.startswith("pbs-policy: ")
    assert result.err.count("\n") == 1
    assert result.err.rstrip("\n").isprintable()
    assert text in result.err
    return (result.status, result.out) == (status, "")
