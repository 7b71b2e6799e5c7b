"""How lookups are run: on both loops, with patience or without."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from pbs_policy.store import redis_connector, resp
from tests.lookups.peer import DEADLINE, Run, wait_for_redis


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a coroutine to its end, on the loop of this round; what it left behind on the loop fails the test. With
    asyncio's loop the replies are read without hiredis."""
    monkeypatch.setattr(resp, "_IS_SAFE", request.param == "uvloop")
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        faults: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.get_loop().set_exception_handler(lambda _, fault: faults.append(fault))
            runner.run(asyncio.wait_for(coroutine, 100))
        assert faults == []

    return run


@pytest.fixture(autouse=True)
def rare_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who the master is, is looked at on a connection that would be counted with the others."""
    monkeypatch.setattr(redis_connector, "WATCH_INTERVAL", 60.0)


@pytest.fixture
def frequent_looks(rare_looks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what a look finds."""
    monkeypatch.setattr(redis_connector, "WATCH_INTERVAL", 0.05)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy elsewhere for half a second is not Redis' fault."""
    wait_for_redis(30.0, monkeypatch)


@pytest.fixture
def impatient(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what ends with the deadline."""
    wait_for_redis(DEADLINE, monkeypatch)


