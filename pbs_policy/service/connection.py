"""One connection from Postfix: each request looked up, decided, answered and logged.

A Postfix smtpd keeps one connection and sends one request at a time; a peer that sends more is answered in order and
in turn with others (`turns`), and is read no further while it has requests waiting, so that what it can make us keep
is bounded. Whoever breaks the
protocol gets no reply and is disconnected (SMTPD_POLICY_README).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from pbs_policy.address import AddressError, ClientAddress
from pbs_policy.decision import rules
from pbs_policy.decision.case import Case
from pbs_policy.decision.decide import decide, decide_at_once
from pbs_policy.decision.rules import Decision
from pbs_policy.log import printable
from pbs_policy.postfix.protocol import ProtocolError, Request, RequestParser, only, serialise_reply
from pbs_policy.prompt_writer import PromptWriter
from pbs_policy.store.question import Answer, Procedure

if TYPE_CHECKING:
    from pbs_policy.service.server import PolicyServer

IDLE_LIMIT = 1_200
"""Seconds without a request after which a connection is closed. Postfix keeps an idle one for 300 s
(smtpd_policy_service_max_idle) and any for 1,000 s (..._max_ttl): what is older has no Postfix behind it."""

REQUEST_LIMIT = 10
"""Seconds for a request that has begun, or for answers to be read, and one sweep more. Postfix does each at once."""

SWEEP_INTERVAL = 5
"""Seconds between two looks at every connection: no connection has a timer of its own."""

_REPLIES = {action: serialise_reply(action) for action in (rules.OK, rules.DUNNO, rules.DEFER)}
_UNKNOWN = ClientAddress("unknown")


class Connection(asyncio.BufferedProtocol):
    """At most one request of a connection is being decided at any time."""

    __slots__ = (
        "_begun", "_begun_sweeps", "_busy", "_case", "_client", "_ended", "_idle_sweeps", "_parser",
        "_paused", "_procedure", "_queued", "_request", "_server", "_stalled", "_transport", "_write",
    )  # fmt: skip

    def __init__(self, server: PolicyServer) -> None:
        self._server = server
        self._parser = RequestParser()
        self._idle_sweeps = 0  # since the last complete request
        self._begun_sweeps = 0  # of them, those that saw the beginning of a request, or answers that nobody reads
        self._busy = False  # a request waits for Redis
        self._paused = False  # we do not read: requests are waiting already
        self._queued = False  # it waits for its turn
        self._stalled = False  # the peer does not read
        self._ended = False  # the peer will send no more
        self._client = _UNKNOWN
        self._case: Case
        self._procedure: Procedure[Decision]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A stream's protocol is always given a Transport; the base class's signature does not say so.
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # of a stream it is one
        self._write = PromptWriter(self._transport).write
        self._server.add(self)
        if self._server.stopping:
            self.leave()

    def connection_lost(self, _: Exception | None) -> None:
        self._server.forget(self)

    def get_buffer(self, _: int) -> memoryview:
        """Where the next bytes go: shared by all, since they are taken before anybody else's are read."""
        return self._server.buffer

    def buffer_updated(self, size: int) -> None:
        self.data_received(self._server.buffer[:size].tobytes())

    def data_received(self, data: bytes) -> None:
        """Go on with the next bytes."""
        if not (self._busy or self._queued or self._stalled):
            self._take_request(data)
            return
        self._parser.receive(data)
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """The peer sends no more. What it has asked is still answered: True keeps our half open until then."""
        self._ended = True
        return self._busy or self._queued or self._stalled

    def pause_writing(self) -> None:
        self._stalled = True

    def resume_writing(self) -> None:
        self._stalled = False
        if not (self._busy or self._queued):
            self._take_request()

    @property
    def is_idle(self) -> bool:
        """Whether nothing that it asked is being decided."""
        return not self._busy

    @property
    def silent_sweeps(self) -> int:
        """How many sweeps have passed since the last complete request."""
        return self._idle_sweeps

    def leave(self) -> None:
        """The server stops: close, but not before the answer that Postfix waits for, or while half a request is here.
        To be called again when that is done."""
        if not self._busy and (self._stalled or not self._parser.waiting):
            self._transport.close()

    def abort(self) -> None:
        """Close now, whatever waits."""
        self._transport.abort()

    def sweep(self) -> None:
        """Every SWEEP_INTERVAL: close where a request is never completed, an answer never read, or the last request
        is too long ago."""
        if not self._idle_sweeps:
            self._begun_sweeps = 0
        self._idle_sweeps += 1
        if self._busy and self._idle_sweeps * SWEEP_INTERVAL > REQUEST_LIMIT:
            self._disconnect(f"no decision within {REQUEST_LIMIT} s")  # a fault of ours, which is in the log
        if self._busy or self._queued:
            return
        self._begun_sweeps = self._begun_sweeps + 1 if self._stalled or self._parser.waiting else 0
        if self._begun_sweeps * SWEEP_INTERVAL > REQUEST_LIMIT:
            what = "it reads no answers" if self._stalled else "no complete request"
            self._disconnect(f"{what} within {REQUEST_LIMIT} s")
        elif self._idle_sweeps * SWEEP_INTERVAL > IDLE_LIMIT:
            self._transport.close()

    def take_turn(self) -> None:
        """Its turn has come, which it asked for."""
        self._queued = False
        if not self._transport.is_closing():
            self._take_request()

    def _take_request(self, data: bytes = b"") -> None:
        """Decide the next request, if it is complete with `data`. What stands behind it waits for its turn."""
        try:
            request = None if self._stalled else self._parser.next_request(data)
            if request is not None:
                self._begin(request)
                if self._busy:
                    return
        except ProtocolError as error:
            self._disconnect(str(error))
            return
        if request is not None and self._parser.waiting:
            self._queue()
        elif self._ended and not self._stalled:
            self._transport.close()
        elif self._server.stopping:
            self.leave()
        elif self._paused:
            self._paused = False
            self._transport.resume_reading()

    def _queue(self) -> None:
        self._queued = True
        self._server.turns.add(self)

    def _begin(self, request: Request) -> None:
        server = self._server
        self._idle_sweeps = 0
        self._request = request
        try:
            client = self._client = server.addresses.parse(only(request, b"client_address").decode())
        except (AddressError, UnicodeDecodeError):
            self._client = _UNKNOWN
            self._reply(rules.NO_CLIENT_ADDRESS)  # `unknown`, after XCLIENT
            return
        if refusal := rules.refuse_unasked(client, server.denies):
            self._reply(refusal)
            return
        case = self._case = server.case(client, request)
        self._busy = True
        if server.note_wait is not None:
            self._begun = monotonic()
        server.lookups.ask(case.keys, self._found)

    def _found(self, values: Sequence[bytes | None] | None, _: Sequence[Any]) -> None:
        if values is None:
            self._settle(rules.unavailable(self._case.rules))
        elif decision := decide_at_once(values):
            self._settle(decision)  # nearly always
        else:
            self._procedure = decide(self._case, values)
            self._go_on(None)

    def _answered(self, values: Sequence[bytes | None] | None, replies: Sequence[Any]) -> None:
        if values is None:
            self._procedure.close()
            self._settle(rules.unavailable(self._case.rules))
        else:
            self._go_on(Answer(values, replies))

    def _go_on(self, answer: Answer | None) -> None:
        """Carry the decision on to its next question, or to its end."""
        try:
            question = self._procedure.send(answer) if answer else next(self._procedure)
        except StopIteration as end:
            self._settle(end.value)
        except ProtocolError as error:
            self._disconnect(str(error))
        else:
            self._server.lookups.ask_further(question.keys, question.commands, self._answered)

    def _settle(self, decision: Decision) -> None:
        """Answer the request that waited for Redis, and go on with what arrived meanwhile."""
        self._busy = False
        note_wait = self._server.note_wait
        if note_wait is not None:
            note_wait(monotonic() - self._begun)
        if not self._reply(decision):
            return  # the peer left without waiting
        if self._parser.waiting or self._paused or self._ended:
            self._queue()
        elif self._server.stopping:
            self.leave()

    def _reply(self, decision: Decision) -> bool:
        """Send the answer; False where there is no connection any more to send it on."""
        server = self._server
        if server.rules.observe_only:
            decision = rules.observed(decision)
        action = decision.action
        if not self._write(_REPLIES[action]):
            return False
        server.counts[action][decision.reason] += 1
        if server.events is not None:
            server.events.note(decision, self._client.text, self._request)
        if decision is rules.NO_LOGIN and server.log_decisions != "all":
            return True  # nearly always, and there is no more to say
        if decision.reason is rules.KEY_WITHOUT_END.reason:
            server.report_no_end(self._client.text)
        if decision.warning:
            server.log.warning(printable(decision.warning))
        permitted = rules.OK in (action, decision.would_be)
        if permitted:
            server.uses.note(self._client.text, self._request, decision)
        if server.log_decisions == "all" or (permitted and server.log_decisions == "permitted"):
            server.log.decision(server.decision_line(decision, self._client.text, self._request))
        return True

    def _disconnect(self, fault: str) -> None:
        peer = self._transport.get_extra_info("peername")
        self._server.report_disconnection(f"disconnecting {printable(str(peer or 'a unix socket peer'))}: {fault}")
        self._transport.abort()
