"""Where the faults take place: a private Redis, service, Postfix and Dovecot, put together by the example files.

Redis keeps its files on a small file system of its own, which can be filled. The service can be started anew with
other settings, and by another command line.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from pbs_policy.demo.daemons import PrivateRedis
from pbs_policy.demo.real import Site, installation
from pbs_policy.demo.service import PrivateService
from pbs_policy.postfix.query import ask
from pbs_policy.programs import find_program
from tests.faults.clients import RELAYING, fill

DISK = "8m"
"""Of Redis' file system: room for its log, its socket and a table of a few hundred logins."""


class FaultyService(PrivateService):
    """The service, by a command line that can have something put before it, such as prlimit."""

    before: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """The command line."""
        return [*self.before, *self.own_command()]

    def own_command(self) -> list[str]:
        """What stands behind it."""
        return super().command()


@dataclass
class Stage:
    """The site, with what faults need of it."""

    directory: Path
    site: Site
    disk: Path

    @property
    def redis(self) -> PrivateRedis:
        """The Redis of the service and of the post-login script."""
        return self.site.redis

    @property
    def service(self) -> PrivateService:
        """The policy service."""
        return self.site.service

    def admin(self) -> Redis:
        """A connection to Redis over its socket, which no proxy and no fault of the network is in the way of."""
        return Redis(unix_socket_path=str(self.redis.socket_path), socket_timeout=5)

    def fill(self) -> None:
        """Everybody logged in who is to be, everybody denied who is to be."""
        with self.admin() as redis:
            fill(redis)

    def kill(self, daemon: PrivateRedis | PrivateService, number: int = signal.SIGKILL) -> None:
        """Send a signal to a daemon; after SIGKILL, wait for its end."""
        os.kill(daemon.pid, number)
        if number == signal.SIGKILL:
            daemon.stop()

    @contextmanager
    def other_service(self, *before: str, **changes: str) -> Iterator[None]:
        """The service (and the script) with other settings, started by `before`; and as it was, afterwards."""
        file = self.service.settings_file
        text = file.read_text()
        settings = dict(line.split(" = ", 1) for line in text.splitlines()) | changes
        assert isinstance(self.service, FaultyService)
        self.service.stop()
        file.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        self.service.before = before
        try:
            self.service.start()
            yield
        finally:
            self.service.stop()
            file.write_text(text)
            self.service.before = ()
            self.service.start()


def mount_tmpfs(place: Path | str, size: str) -> str:
    """Mount a file system of this size there; what mount(8) says where it cannot."""
    command = [find_program("mount") or "mount", "-t", "tmpfs", "-o", f"size={size}", "none", place]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr.strip() or "mount failed" if done.returncode else ""


def unmount(place: Path | str) -> None:
    """Take it away, whoever still uses it."""
    subprocess.run([find_program("umount") or "umount", "--lazy", place], check=True)


@contextmanager
def stage(service: type[FaultyService] = FaultyService) -> Iterator[Stage]:
    """Everything started and filled, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="pbs-") as name:
        directory = Path(name)
        disk = directory / "redis"
        disk.mkdir()
        is_mounted = not mount_tmpfs(disk, DISK)  # else a fault that needs it says so
        try:
            with installation(directory, service, ttl="30m", log_decisions="none") as site:
                made = Stage(directory, site, disk)
                made.fill()
                yield made
        finally:
            if is_mounted:
                unmount(disk)


def action(stage: Stage) -> str:
    """What the service says of a client that is logged in; nothing where it does not answer."""
    try:
        asked = ask(stage.service.listeners[0], RELAYING, sender="alice@example.com", recipient="bob@example.net")
    except OSError:
        return ""
    return asked.action
