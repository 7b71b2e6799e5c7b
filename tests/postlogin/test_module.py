"""The post-login script where its other half is missing or broken, or comes to no end: the session goes on."""

from __future__ import annotations

import marshal
import posix
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from shutil import copy

import pytest
from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis
from tests.postlogin.support import (
    ALICE,
    LONGEST_LOGIN,
    SCRIPT,
    SESSION,
    TIMER,
    full_pipe,
    load_recorder,
    logins,
    went_on,
)

MODULE = SCRIPT.with_name("pbs_postlogin.py")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A copy of the script, its module beside it, not compiled."""
    for file in (SCRIPT, MODULE):
        copy(file, tmp_path)
    return tmp_path / SCRIPT.name


@pytest.fixture
def working(script: Path, redis_server: PrivateRedis) -> list[str]:
    """How to run it so that a login is recorded, a session left out."""
    file = script.with_name("pbs-policy.conf")
    file.write_text(f"redis_url = {redis_server.url}\n")
    return [str(script), "-c", str(file), "pop3"]


def run(command: list[str], session: tuple[str, ...] = SESSION) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*command, *session], env=ALICE, capture_output=True, check=False, timeout=60)


def _a_folder(module: Path) -> None:
    module.unlink()
    module.mkdir()


def _badly_compiled(module: Path) -> None:
    """As after a full disk, with the time and length of the source in its head."""
    compiled = Path(cache_from_source(str(module)))
    compiled.parent.mkdir()
    status = module.stat()
    head = MAGIC_NUMBER + b"".join(
        (number & 0xFFFFFFFF).to_bytes(4, "little") for number in (0, int(status.st_mtime), status.st_size)
    )
    compiled.write_bytes(head + marshal.dumps(compile("", "", "exec"))[:-9])


BROKEN: dict[str, Callable[[Path], object]] = {
    "absent": Path.unlink,
    "a folder": _a_folder,
    "empty": lambda module: module.write_text(""),
    "no Python": lambda module: module.write_text("\0\n<html>\n\xe9", "latin-1"),
    "raising": lambda module: module.write_text("raise KeyboardInterrupt('two\\nlines')"),
    "ending": lambda module: module.write_text("import sys\nsys.exit(1)"),
    "of another version": lambda module: module.write_text("def record_login(file, service, environment): pass"),
    "badly compiled": _badly_compiled,
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_module_that_cannot_be_used_fails_no_login(broken: str, script: Path, working: list[str]) -> None:
    if broken == "badly compiled" and _version(script) != sys.version_info[:2]:
        pytest.skip("the script runs on another version of Python than the tests")
    BROKEN[broken](script.with_name(MODULE.name))
    result = run(working)
    # Taking out of the environment what Python adds is the module's part.
    assert went_on(result, ALICE) or went_on(result, ALICE | {b"LC_CTYPE": b"C.UTF-8"})
    line = result.stderr.decode("ascii")
    assert line.startswith("pbs-postlogin: error: this login is not recorded: ")
    assert line.count("\n") == 1
    assert line[:-1].isprintable()


def _version(script: Path) -> tuple[int, ...]:
    interpreter = script.read_text().partition("\n")[0].removeprefix("#!").split()[0]
    said = subprocess.run([interpreter, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, said.split()[1].split(".")[:2]))


def test_without_its_module_too_the_session_finds_no_signal_ignored(script: Path, working: list[str]) -> None:
    script.with_name(MODULE.name).unlink()
    result = run(working, ("/bin/cat", "/proc/self/status"))
    ignored = int(result.stdout.decode().partition("SigIgn:\t")[2].split()[0], 16)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        assert not ignored >> (number - 1) & 1


def test_without_its_module_and_with_nobody_who_reads_its_complaint_the_session_goes_on(
    script: Path, working: list[str]
) -> None:
    script.with_name(MODULE.name).unlink()
    result = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *working, *SESSION], env=ALICE, stdout=subprocess.PIPE, check=False
    )
    assert b"USER=alice@example.com\0" in result.stdout


def test_without_its_module_and_with_a_full_log_pipe_the_session_goes_on_at_once(
    script: Path, working: list[str]
) -> None:
    script.with_name(MODULE.name).unlink()
    with full_pipe() as (_, begin):
        started = time.monotonic()
        command = [*working, sys.executable, "-c", TIMER]
        result = subprocess.run(command, env=ALICE, stdout=subprocess.PIPE, stderr=begin, check=True, timeout=60)
        assert time.monotonic() - started < LONGEST_LOGIN
    assert result.stdout.decode() == "0.0 0.0 SIG_DFL\n"


def test_a_login_is_recorded_where_the_compiled_form_cannot_be_kept(
    script: Path, working: list[str], redis: Redis
) -> None:
    (script.parent / "__pycache__").write_text("a file, where a folder would be needed")
    result = run(working)
    assert went_on(result, ALICE)
    assert result.stderr == b""
    assert [entry.target for entry in logins(redis)] == ["192.0.2.7"]


# --- no end


def test_a_name_server_that_does_not_answer_delays_a_login_by_half_a_second_at_most(
    script: Path, working: list[str]
) -> None:
    """It stands for itself here: getaddrinfo blocks where no signal interrupts it, in a thread that exec ends."""
    with script.with_name(MODULE.name).open("a") as module:
        module.write(
            "import types, sys\n"
            "def mute(*_):\n"
            "    _thread.get_ident() == main_thread and sys.exit('getaddrinfo in the main thread')\n"
            "    time.sleep(3600)\n"
            "main_thread = _thread.get_ident()\n"
            "_socket = types.SimpleNamespace(**dict(vars(_socket), getaddrinfo=mute))\n"
        )
    Path(working[2]).write_text("redis_url = redis://redis.example.com\n")
    started = time.monotonic()
    result = run(working)
    assert time.monotonic() - started < LONGEST_LOGIN
    assert went_on(result, ALICE)
    assert result.stderr == (
        b"pbs-postlogin: error: this login is not recorded: the name server does not answer for redis.example.com\n"
    )


def test_a_name_that_is_not_found_in_time_leaves_time_for_the_next_server() -> None:
    recorder = load_recorder()
    recorder["seconds_left"] = lambda _: 0.001
    recorder["_socket"] = type("_", (), {"getaddrinfo": lambda *_: time.sleep(5), "SOCK_STREAM": 1})
    with pytest.raises(recorder["Failure"], match=r"the name server does not answer for a\.example\.com"):
        recorder["ask_name_server"]("a.example.com", 6379, 0)


@pytest.mark.parametrize("is_recorded", [True, False])
@pytest.mark.parametrize(("before", "disposition"), [("", "SIG_DFL"), ("trap '' ALRM;", "SIG_IGN")])
def test_the_session_finds_the_alarm_clock_as_it_was(
    working: list[str], is_recorded: bool, before: str, disposition: str
) -> None:
    if not is_recorded:
        Path(working[2]).write_text("redis_url = nonsense\n")
    result = run(["/bin/sh", "-c", f'{before} exec "$@"', "sh", *working], (sys.executable, "-c", TIMER))
    assert result.stdout.decode() == f"0.0 0.0 {disposition}\n"


def test_a_blocked_alarm_goes_off_and_the_session_finds_it_blocked(working: list[str], tmp_path: Path) -> None:
    """Signals that are blocked stay so in the programs that are started."""
    posix.mkfifo(tmp_path / "endless.conf")
    working[2] = str(tmp_path / "endless.conf")
    shown = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGALRM})"
    block = "signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGALRM})"
    start = f"import os, signal, sys; {block}; os.execv(sys.argv[1], sys.argv[1:])"
    result = run([sys.executable, "-c", start, *working], (sys.executable, "-c", shown))
    assert result.stdout == b"True\n"
    assert b"this login is not recorded: no end within" in result.stderr


def test_an_alarm_that_waits_already_ends_nothing(working: list[str]) -> None:
    wait = "signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGALRM}); signal.raise_signal(signal.SIGALRM)"
    start = f"import os, signal, sys; {wait}; os.execv(sys.argv[1], sys.argv[1:])"
    result = run([sys.executable, "-c", start, *working])
    assert went_on(result, ALICE)
    assert result.stderr == b""


def test_a_module_that_cannot_be_read_in_time_delays_a_login_by_half_a_second_at_most(working: list[str]) -> None:
    """A pipe stands for a network file system whose server is gone."""
    module = Path(working[0]).with_name(MODULE.name)
    module.unlink()
    posix.mkfifo(module)
    started = time.monotonic()
    result = run(working, (sys.executable, "-c", TIMER))
    assert time.monotonic() - started < LONGEST_LOGIN
    assert result.stdout.decode() == "0.0 0.0 SIG_DFL\n"
    assert b"this login is not recorded: TimeoutError('its module is not loaded within 0.4 s')" in result.stderr
