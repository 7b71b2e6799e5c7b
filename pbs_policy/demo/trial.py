"""The demonstration with nothing set up: the real script and the real service, asked as Postfix asks.

Redis is a redis-server or valkey-server of PATH on a private socket, else the embedded one of fakeredis, in memory.
The configured one is left alone.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pbs_policy.demo import story
from pbs_policy.demo.daemons import DaemonError, PrivateRedis
from pbs_policy.demo.ports import free_port
from pbs_policy.demo.service import PrivateService
from pbs_policy.demo.story import Say, Seen
from pbs_policy.postfix.query import ask
from pbs_policy.programs import missing
from pbs_policy.shipped import shipped
from pbs_policy.store.connect import connect
from pbs_policy.store.redis_url import RedisUrl
from pbs_policy.table.login_table import LoginTable
from pbs_policy.trust import temporary_folder


def run(say: Say) -> bool:
    """Tell the story. Returns whether every step went as it should. Raises DaemonError where it cannot begin."""
    with temporary_folder() as directory, _some_redis(directory, say) as url:
        lines = {"redis_url": url, "ttl": f"{story.TTL}s", "listen": f"unix:{directory}/policy"}
        with PrivateService(directory, lines) as service:
            say("The policy service runs with these settings:")
            for line in service.settings_file.read_text().splitlines():
                say(f"    {line}")
            return story.tell(_Trial(service, LoginTable(connect(RedisUrl.parse(url), "", ""), "pbs:")), say)


class _Trial:
    """A world without Dovecot and Postfix: the script is run, and the service asked, as they would do it."""

    def __init__(self, service: PrivateService, table: LoginTable) -> None:
        self._settings_file = service.settings_file
        self._listener = service.listeners[0]
        self._table = table

    def attempt_relay(self, client_address: str) -> Seen:
        exchange = ask(self._listener, client_address, sender=story.USER, recipient="bob@example.net")
        lines = [f"Postfix: {line}" for line in exchange.request.decode().splitlines() if line]
        lines += [f"service: {line}" for line in exchange.reply.decode().splitlines() if line]
        return Seen(exchange.action == "OK", lines)

    def log_in(self, client_address: str) -> Seen:
        script = shipped("dovecot-hooks/pbs-postlogin")
        # As Dovecot runs it: these variables, our arguments, then those of the session that it goes on to.
        session = [sys.executable, "-c", "print('the session goes on', end='')"]
        done = subprocess.run(
            [sys.executable, "-IS", script, "-c", self._settings_file, "imap", *session],
            env={"IP": client_address, "USER": story.USER},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [f"Dovecot: IP={client_address} USER={story.USER} {script.name} imap"]
        lines += [f"script: {line}" for line in (done.stderr + done.stdout).splitlines()]
        keys = [self._table.keys.login(client_address, name) for name in (b"", story.USER.encode())]
        values, ends = self._table.read(keys, keys)
        for key, value, left in zip(keys, values, ends, strict=True):
            lines.append(f"Redis: {key.decode()} = {(value or b'nothing').decode()!r}, ends in {left} ms")
        return Seen(done.returncode == 0 and None not in values and "goes on" in done.stdout, lines)


@contextmanager
def _some_redis(directory: Path, say: Say) -> Iterator[str]:
    """The URL of a Redis of the demonstration's own."""
    if missing("redis") is None:
        with PrivateRedis(directory / "redis") as server:
            say(f"A private Redis answers at {server.url}.")
            yield server.url
        return
    with _embedded_redis() as url:
        say("No redis-server or valkey-server is installed.")
        say(f"An embedded one answers at {url}: in memory, for this demonstration only, never for production.")
        yield url


@contextmanager
def _embedded_redis() -> Iterator[str]:
    try:
        from fakeredis import TcpFakeServer
    except ImportError:
        raise DaemonError(
            "no Redis to be found: apt-get install redis-server, or pip install 'pbs-policy[demo]'"
        ) from None
    port = free_port()
    server = TcpFakeServer(("127.0.0.1", port), server_type="redis")
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.shutdown()
        server.server_close()
