"""The event loop of a process that answers: what goes wrong in it and concerns no request."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service import Service

# Python runs this at its start: once the process serves, something fails in a turn of its loop.
_FAILS = r"""
import asyncio
wait = asyncio.Event.wait
def fail():
    raise ValueError("two\nlines")
async def wait_and_fail(event):
    asyncio.get_running_loop().call_soon(fail)
    asyncio.get_running_loop().call_exception_handler({"message": "without an exception"})
    return await wait(event)
asyncio.Event.wait = wait_and_fail
"""


@pytest.mark.usefixtures("either_loop")
def test_a_fault_that_nobody_waits_for_is_one_line_of_the_log(
    start_service: Callable[..., Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_FAILS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    service = start_service()
    assert service.waits_to_log("event loop: Exception in callback")
    lines = [line for line in service.log().splitlines() if "event loop: " in line]
    assert lines[0] == "error: event loop: without an exception"
    assert lines[1].startswith("error: event loop: Exception in callback ")
    assert lines[1].endswith(r"ValueError('two\nlines') (sitecustomize.py:5)")
    assert "Traceback" not in service.log()
