"""How a connection to Redis is opened: TCP, TLS, a unix socket, or the master that Sentinel names; the login; and the
first answer, without which there is no connection.
"""

from __future__ import annotations

import asyncio
import ssl

from pbs_policy.redis_line import TIMEOUT, Line, RedisRefused
from pbs_policy.redis_url import Place, RedisUrl, TlsFiles


class Connector:
    """Opens connections to the Redis of `url`, logs in, and makes sure that it answers."""

    def __init__(self, url: RedisUrl, user: str, password: str, probe_key: bytes, tls: TlsFiles) -> None:
        self._url = url
        self._user = user
        self._password = password
        self._probe_key = probe_key
        self._tls = _tls_context(tls) if url.tls else None
        self._sentinels = list(url.sentinels)

    async def open(self) -> Line:
        """A connection that has answered. Raises OSError, TimeoutError or RedisRefused."""
        async with asyncio.timeout(TIMEOUT):
            host, port = self._url.host, self._url.port
            if self._url.master:
                host, port = await self._find_master()
            line = await self._open_line(host, port)
            try:
                if self._password:
                    await line.greet("AUTH", *([self._user] if self._user else []), self._password)
                if self._url.db:
                    await line.greet("SELECT", str(self._url.db))
                # A least-privilege user may GET and not PING; and a mute Redis shows itself here.
                await line.greet("GET", self._probe_key.decode())
            except BaseException:
                line.close()
                raise
            return line

    async def _open_line(self, host: str, port: int) -> Line:
        line = Line(asyncio.get_running_loop())
        if self._url.path:
            await asyncio.get_running_loop().create_unix_connection(lambda: line, self._url.path)
        else:
            await asyncio.get_running_loop().create_connection(lambda: line, host, port, ssl=self._tls)
        return line

    async def _find_master(self) -> Place:
        """Ask the Sentinels, one after the other, and the one that knew last time first."""
        trouble = "no Sentinel answers"
        for sentinel in self._sentinels:
            line = None
            try:
                async with asyncio.timeout(TIMEOUT / (len(self._sentinels) + 1)):
                    line = await self._open_line(*sentinel)
                    found = await line.greet("SENTINEL", "get-master-addr-by-name", self._url.master)
            except (OSError, RedisRefused, TimeoutError) as error:
                trouble = f"Sentinel {sentinel[0]}: {error or 'no answer'}"
                continue
            finally:
                if line is not None:
                    line.close()
            if found:
                self._sentinels.remove(sentinel)
                self._sentinels.insert(0, sentinel)
                return found[0].decode(), int(found[1])
            trouble = f"Sentinel {sentinel[0]} knows no master {self._url.master}"
        raise RedisRefused(trouble)


def _tls_context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.ca or None)
    if files.certificate:
        context.load_cert_chain(files.certificate, files.key or None)
    return context
