"""The process that answers: what goes wrong in its event loop and concerns no request, and its end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service import SERVE, Service

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


# The same for what libraries say: by their loggers, by warnings, and in a record that is broken.
_SAYS = r"""
import asyncio, logging, threading, warnings
wait = asyncio.Event.wait
async def wait_and_say(event):
    try:
        raise ValueError("three\nlines")
    except ValueError:
        logging.getLogger("asyncio").exception("two\nlines \x1b[2J of %s", "a peer")
    logging.getLogger("redis.client").warning("%d", "no number")
    logging.getLogger("redis.client").info("of no interest")
    warnings.warn("an old name", DeprecationWarning)
    warnings.warn("unclosed <socket>", UserWarning)
    threading.Thread(target=logging.getLogger("redis.client").warning, args=("from a thread",)).start()
    return await wait(event)
asyncio.Event.wait = wait_and_say
"""


def test_what_libraries_log_is_a_printable_line_of_the_log_each(
    start_service: Callable[..., Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_SAYS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    service = start_service()
    assert service.waits_to_log("warning: redis.client: from a thread")
    log = service.log()
    assert r"error: asyncio: two lines ?[2J of a peer: ValueError('three\nlines')" in log
    assert "warning: redis.client: '%d' (TypeError(" in log
    assert "UserWarning: unclosed <socket>" in log
    assert "of no interest" not in log
    assert all(line.startswith(("info: ", "warning: ", "error: ")) for line in log.splitlines()), log


def test_a_signal_that_comes_with_readiness_ends_it_in_order() -> None:
    with tempfile.TemporaryDirectory(prefix="pbs-") as directory:
        path = Path(directory) / "policy"
        program = (
            "import os, signal\n"
            "from pbs_policy.cli import main\n"
            "from pbs_policy.service.service import Service\n"
            "announce = Service.announce\n"
            "def announce_and_end(self):\n"
            "    announce(self)\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n"
            "Service.announce = announce_and_end\n"
            f"main(['-c', '/dev/null', '--set', 'listen=unix:{path}', *{SERVE!r}])\n"
        )
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        assert result.stderr.endswith("info: stopped\n")
        assert not path.exists()
