"""Private instances of real daemons for the demo and the end-to-end tests.

The law of this file, and of `postfix.py` and `dovecot.py` beside it: a temporary directory, loopback ports of
their own, no system service touched, gone afterwards. Nothing sleeps for a fixed time: everything is polled
against a deadline, and a daemon that does not come up raises `DaemonError` with the tail of its own log.

This file holds what all of them share (readiness, the end of a process), and Redis.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pbs_policy.demo.ports import free_port
from pbs_policy.postfix.listener import LONGEST_PATH
from pbs_policy.programs import find_program, missing
from pbs_policy.trust import temporary_folder

START_SECONDS = 40.0
"""How long a daemon may take to answer: far more than any of them needs, because test machines are noisy."""

STOP_SECONDS = 20.0
"""How long a daemon may take to end on SIGTERM before it is killed."""

POLL_SECONDS = 0.005


class DaemonError(Exception):
    """A private daemon did not start, or is not running. The text ends with the tail of its log."""


def wait_until(condition: Callable[[], bool], *, seconds: float = START_SECONDS) -> bool:
    """Ask until the condition holds, at most for so many seconds; return whether it held.

    The longer it takes, the more rarely it is asked: what is awaited needs the processor more than the question."""
    started = time.monotonic()
    while not condition():
        waited = time.monotonic() - started
        if waited > seconds:
            return False
        time.sleep(max(POLL_SECONDS, min(waited / 10, 10 * POLL_SECONDS)))
    return True


class PrivateDaemon:
    """One daemon in the foreground, as a child of ours, that ends with the context.

    What it says goes to a file. The child leads a session of its own: a Ctrl-C at the terminal reaches only us,
    and the daemon's own children can be ended together with it through the process group.
    """

    stop_signal = signal.SIGTERM
    stop_seconds = STOP_SECONDS

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.log_file = directory / f"{name}.log"
        self._output = directory / f"{name}.out"
        # What an earlier instance in this directory said must not be taken for the word of this one.
        self.log_file.unlink(missing_ok=True)
        self._output.unlink(missing_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.environment: Mapping[str, str] | None = None  # ours, where None
        self.descriptors: Sequence[int] = ()  # of ours, that it is given besides the standard ones

    def command(self) -> list[str]:
        """Return the daemon's command line."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Whether the daemon serves its clients now."""
        raise NotImplementedError

    def has_failed(self) -> bool:
        """Whether the daemon runs and will never be ready, so that waiting on is useless."""
        return False

    def log_text(self) -> str:
        """Return everything that the daemon has logged so far: what it said itself, then its log file."""
        return _read(self._output) + _read(self.log_file)

    @property
    def pid(self) -> int:
        """The daemon's process id. Raises DaemonError while it does not run."""
        if self._process is None:
            raise DaemonError(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the daemon, again on the same place after a `stop`, and wait until it serves.

        Raises DaemonError with the tail of the log if it ends instead, or is not ready in START_SECONDS.
        """
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                env=self.environment,
                pass_fds=self.descriptors,
                # A group to end it by, and not a session: the kernel shares a core between sessions (autogroup)
                # in slices of milliseconds, and every lookup would wait for its turn.
                process_group=0,
            )
        atexit.register(self.stop)
        process, is_ready = self._process, False

        def is_settled() -> bool:
            nonlocal is_ready  # asked once more, it might not answer in time, on a busy machine
            is_ready = self.is_ready()
            return is_ready or process.poll() is not None or self.has_failed()

        wait_until(is_settled)
        if is_ready and process.poll() is None:
            return
        fate = "is not ready" if process.poll() is None else f"ended with status {process.returncode}"
        self.stop()
        tail = "\n".join(self.log_text().splitlines()[-20:])
        raise DaemonError(f"the private {self.name} {fate}; its log ends:\n{tail}")

    def stop(self) -> int | None:
        """End the daemon and its children, paused or not. Return its exit status, None if it did not run."""
        process, self._process = self._process, None
        if process is None:
            return None
        atexit.unregister(self.stop)
        if process.poll() is None:
            process.send_signal(self.stop_signal)
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(self.stop_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # The group's id is not given away while a member lives, so this meets our own children or nobody.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.returncode

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop for good; a daemon with files outside its directory also takes them away here."""
        self.stop()


class OpenPlace(PrivateDaemon):
    """A daemon with processes under several users, who must all be able to search the path to its files.

    A temporary directory is usually closed to others, so such a daemon works in `place`, a directory of its
    own that everybody may search and that goes with it; only its log stays in `directory`.
    """

    def __init__(self, name: str, directory: Path) -> None:
        super().__init__(name, directory.absolute())
        self._until_closed = contextlib.ExitStack()
        self.place = self._until_closed.enter_context(temporary_folder())
        self.place.chmod(0o755)

    def close(self) -> None:
        """Stop for good, and remove `place`."""
        self.stop()
        self._until_closed.close()


def installed(name: str, *programs: str) -> tuple[str, ...]:
    """The first of these programs of `name` (a key of `programs.missing`). Raises DaemonError where there is none."""
    program = find_program(*programs)
    if program is None:
        raise DaemonError(missing(name) or f"{name} is not installed")
    return (program,)


def redis_program() -> tuple[str, ...]:
    """The Redis or Valkey that is installed. Raises DaemonError where none is."""
    return installed("redis", "redis-server", "valkey-server")


class PrivateRedis(PrivateDaemon):
    """A Redis or Valkey that keeps nothing on disk, on a unix socket and, if asked, on a loopback port.

    `port=0` means no port, `port=None` a free one. `arguments` are further options of redis-server, such as
    `("--requirepass", "secret")`. The socket is for processes of the same user; what runs under another user,
    such as the post-login script, is given the port.
    """

    stop_seconds = 5.0  # a master waits longer for replicas that are behind, and nobody needs what they would get

    def __init__(
        self, directory: Path, *, port: int | None = 0, arguments: Sequence[str] = (), program: Sequence[str] = ()
    ) -> None:
        """`program` is how another one than the installed is started. Raises ValueError if the path of the socket is
        too long for the system."""
        super().__init__("redis", directory)
        self.port = free_port() if port is None else port
        self.socket_path = directory.absolute() / "redis.sock"
        if len(os.fsencode(self.socket_path)) > LONGEST_PATH:
            raise ValueError(f"longer than {LONGEST_PATH} bytes, so no unix socket: {self.socket_path}")
        self._arguments = tuple(arguments)
        self._program = tuple(program)

    @property
    def url(self) -> str:
        """Where clients find it: the port if there is one, otherwise the socket."""
        return f"redis://127.0.0.1:{self.port}/0" if self.port else f"unix://{self.socket_path}"

    def command(self) -> list[str]:
        """Return the command line: everything is an option, so that no configuration file is read."""
        program = self._program or redis_program()
        return [
            *(*program, "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--unixsocket", str(self.socket_path), "--unixsocketperm", "700", "--dir", str(self.directory)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
            *self._arguments,
        ]

    def is_ready(self) -> bool:
        """Whether it answers PING. Asking for a password is an answer as well; `-LOADING` is none."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(1.0)
                connection.connect(str(self.socket_path))
                connection.sendall(b"*1\r\n$4\r\nPING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))
        except OSError:
            return False


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
