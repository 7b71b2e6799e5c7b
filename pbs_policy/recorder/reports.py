"""Where Dovecot reports logins: its auth policy protocol over HTTP. No answer waits for Redis.

    POST /?command=report    what `auth_policy` reads; 400 where it cannot, 401 without the secret, 403 for a
                             browser's, 415 for no JSON
    POST /?command=allow     always answered with a yes: who asks for it by mistake must not refuse logins

aiohttp speaks HTTP. What peers can take is bounded here: `MOST` connections, of which the one that was silent for the
longest makes room, `LONGEST_REQUEST` bytes for a request (413), and `PATIENCE` to send it (408).
"""

from __future__ import annotations

import asyncio
import hmac
import re
import socket
from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import parse_qs

from aiohttp import web

from pbs_policy.log import Log
from pbs_policy.recorder.auth_policy import Header, ReportError, parse_report
from pbs_policy.recorder.logins import USUAL_SERVICES
from pbs_policy.recorder.writer import LoginWriter
from pbs_policy.visit import Visit

MOST = 1_024
"""Connections: a Dovecot has 100 at most."""

PATIENCE = 5
"""Looks at a connection, of which there is one a second, for a request to arrive. They are counted, rather than time,
so that a peer is not to blame where it was this process that stood still."""

IDLE = 60
"""The same for which a connection may be silent; Dovecot parts with one after 10 s."""

LONGEST_REQUEST = 16_384
"""Bytes. Dovecot sends some 400, and a few more for a long name."""

_YES = b'{"status": 0, "msg": ""}\n'


class ReportServer:
    """Hears reports on `sockets`, once it has started, and hands the logins to `writer`."""

    def __init__(self, sockets: Sequence[socket.socket], writer: LoginWriter, log: Log, secret: str) -> None:
        """`secret` is Dovecot's auth_policy_server_api_header, "" for none."""
        self._sockets = sockets
        self._writer = writer
        self._log = log
        self._secret = Header.parse(secret)
        self.services = USUAL_SERVICES
        self.counts: Counter[str] = Counter()  # answers, by what came of it
        self.visits: dict[ReportVisit, None] = {}  # the one that was silent for the longest first
        self.server = web.Server(self._answer)
        self._listening: list[asyncio.Server] = []

    async def start(self) -> None:
        """Begin to listen."""
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            self._listening.append(await loop.create_server(lambda: ReportVisit(self), sock=each))
        self._sweeping = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Listen no more, and end what is open: who has sent a whole report has its answer."""
        self._sweeping.cancel()
        for each in self._listening:
            each.close()
        for visit in list(self.visits):
            visit.abort()
        await self.server.shutdown(0.1)  # of 0 aiohttp makes forever

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        try:
            status, came_of_it, said = await self._hear(request)
        except Exception as error:  # noqa: BLE001 - the next report has to be heard
            self._log.error(f"a report: {error!r}")
            status, came_of_it, said = HTTPStatus.INTERNAL_SERVER_ERROR, "fault", ""
        self.counts[came_of_it] += 1
        if said:
            self._log.warning(f"a report is refused: {said}")
        if isinstance(request.protocol, ReportVisit):
            request.protocol.is_answered()
        if status == HTTPStatus.OK:
            return web.Response(body=_YES, content_type="application/json")
        response = web.Response(status=status, text=f"{status.phrase}\n")
        response.force_close()
        return response

    async def _hear(self, request: web.BaseRequest) -> tuple[HTTPStatus, str, str]:
        """The status of the answer, what it is counted as, and what is wrong, as a line for the log."""
        try:
            body = await request.read()
        except (web.RequestPayloadError, ConnectionError):
            return HTTPStatus.BAD_REQUEST, "refused", "it breaks off"
        if request.method != "POST":
            return HTTPStatus.METHOD_NOT_ALLOWED, "refused", "it is no POST"
        command = parse_qs(request.rel_url.raw_query_string).get("command")
        if command == ["allow"]:
            return HTTPStatus.OK, "allow", ""
        if command != ["report"]:
            return HTTPStatus.BAD_REQUEST, "refused", "no command=report: auth_policy_server_url must not end in ?"
        if why := self._is_of_a_browser(request):
            return HTTPStatus.FORBIDDEN, "refused", why
        if self._secret.value and not self._has_secret(request):
            return HTTPStatus.UNAUTHORIZED, "refused", "not with the header that reports_secret_file names"
        if request.content_type != "application/json":
            return HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "refused", "its Content-Type is not application/json"
        try:
            login = parse_report(body)
        except ReportError as error:
            return HTTPStatus.BAD_REQUEST, "refused", str(error)
        if login is None:
            return HTTPStatus.OK, "no_success", ""
        if login.service not in self.services:
            return HTTPStatus.OK, "other_service", ""
        return HTTPStatus.OK, "recorded" if self._writer.offer(login) else "left_out", ""

    def _is_of_a_browser(self, request: web.BaseRequest) -> str:
        """Why this may be a web page's doing, "" where it is not. A page's name can be made to lead to an address of
        this host (DNS rebinding): then a browser here takes us for the page's own server, and sends us what it says,
        JSON, too. Without a secret, which no page knows, the server must be called by its address or `localhost`."""
        if any(name.lower() in ("origin", "referer") or name.lower().startswith("sec-") for name in request.headers):
            return "a browser has sent it: Origin, Referer or Sec-... is in it, which Dovecot never sends"
        if not self._secret.value and not _is_address(request.headers.getall("Host", [])):
            return "its Host is a name: auth_policy_server_url must have an IP address or localhost, without a secret"
        return ""

    def _has_secret(self, request: web.BaseRequest) -> bool:
        said = request.headers.get(self._secret.name, "").encode("utf-8", "surrogateescape")
        return hmac.compare_digest(said, self._secret.value.encode())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1)
            for visit in list(self.visits):
                visit.sweep()


def _is_address(hosts: list[str]) -> bool:
    """Whether it is one Host, and that an address or `localhost`, with or without a port."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::[0-9]+)?", hosts[0], re.ASCII) if len(hosts) == 1 else None
    if match is None:
        return False
    try:
        return match[1].lower() == "localhost" or bool(ip_address(match[1].strip("[]")))
    except ValueError:
        return False


class ReportVisit(Visit):
    """One connection, with a bound on what it may send for a report and how long that may take."""

    __slots__ = ("_looks",)

    def __init__(self, reports: ReportServer) -> None:
        super().__init__(reports.server, reports.visits, LONGEST_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        self._looks = 0  # since a request began, or since the last one was answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if len(self.visits) >= MOST:
            silent = next(iter(self.visits))
            del self.visits[silent]  # now, since many may come before its end is told
            silent.abort()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self.received:
            self._looks = 0
            self.visits[self] = self.visits.pop(self, None)
        super().data_received(data)

    def is_answered(self) -> None:
        """A request has its answer; the next one may come."""
        self.received = 0
        self._looks = 0

    def sweep(self) -> None:
        """End what takes too long."""
        self._looks += 1
        if self.received and self._looks > PATIENCE:
            self.refuse(HTTPStatus.REQUEST_TIMEOUT)
        elif self._looks > IDLE:
            self.abort()
