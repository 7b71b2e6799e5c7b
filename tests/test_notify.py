"""What the service manager is told, over a real socket; and that nobody need be there to be told."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbs_policy.service.notify import Notify


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A manager's socket, with its name as NOTIFY_SOCKET has it."""
    address = f"@{tmp_path}" if request.param == "abstract" else str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(address.replace("@", "\0", 1))
        bound.settimeout(20)
        yield address, bound


def test_the_manager_is_told_on_a_path_and_on_an_abstract_name(ear: tuple[str, socket.socket]) -> None:
    address, bound = ear
    notify = Notify.from_environment({"NOTIFY_SOCKET": address})
    assert notify.beats
    assert notify.ready("all is well")
    assert bound.recv(4096) == b"READY=1\nSTATUS=all is well"
    assert notify.stopping()
    assert bound.recv(4096).startswith(b"STOPPING=1")


def test_a_reload_says_when_it_began(ear: tuple[str, socket.socket]) -> None:
    address, bound = ear
    Notify(address).reloading()
    first, second = bound.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    assert second.removeprefix("MONOTONIC_USEC=").isdecimal()


def test_a_sign_of_life_brings_the_status_only_where_it_has_changed(ear: tuple[str, socket.socket]) -> None:
    address, bound = ear
    notify = Notify(address, watchdog=3.0)
    notify.ready("one")
    bound.recv(4096)
    notify.alive("one")
    assert bound.recv(4096) == b"WATCHDOG=1"
    notify.alive("two")
    assert bound.recv(4096) == b"WATCHDOG=1\nSTATUS=two"


@pytest.mark.parametrize(
    "environment",
    [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}, {"NOTIFY_SOCKET": "relative/path"}],
)
def test_without_a_manager_nobody_is_told(environment: dict[str, str]) -> None:
    notify = Notify.from_environment({**environment, "WATCHDOG_USEC": "1000000"})
    assert not notify.beats
    assert notify.watchdog == 0
    assert not notify.ready("nobody hears")


def test_a_manager_that_has_gone_does_no_harm(tmp_path: Path) -> None:
    notify = Notify(str(tmp_path / "gone"), watchdog=1.0)
    assert not notify.ready("nobody hears")
    assert not notify.alive("nobody hears")


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "a while"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_is_ours_where_it_names_us_or_nobody(variables: dict[str, str], seconds: float) -> None:
    assert Notify.from_environment({"NOTIFY_SOCKET": "/run/n", **variables}).watchdog == seconds
