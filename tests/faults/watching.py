"""What users see: logins, relay attempts and inbound mail through the real daemons, again and again, side by side."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Self

from pbs_policy.demo.dovecot import PrivateDovecot, imap_login, pop3_login
from pbs_policy.demo.postfix import LOCAL_DOMAIN, PrivatePostfix, attempt_relay
from tests.faults.clients import DENIED, LOGGING_IN, RELAYING, SENDING_IN, STRANGERS

LOGIN, RELAY, STRANGER, INBOUND = "login", "relay", "stranger", "inbound"

GOES_ON, REFUSED = "goes on", "refused"
AWAY = "Postfix away"
"""Nobody answered at Postfix' port, or it hung up: it was being restarted, which is not ours."""

PAUSE = 0.02
"""Seconds between two of one kind, so that four kinds leave the machine some time for those who serve them."""


class Met(NamedTuple):
    """One login, relay attempt or message: when it began and ended (monotonic seconds), and what came of it."""

    kind: str
    began: float
    ended: float
    outcome: str


class Watching:
    """The clients, for as long as the context lasts; `met` is what they have met so far, in the order of the ends."""

    def __init__(self, postfix: PrivatePostfix, dovecot: PrivateDovecot, *, logins_at_once: int = 1) -> None:
        self.met: list[Met] = []
        self.faults: list[str] = []
        self._ending = threading.Event()
        kinds = [self._logins(dovecot)] * logins_at_once
        strangers = itertools.chain.from_iterable(zip(STRANGERS, itertools.cycle(DENIED), strict=False))
        steps: list[tuple[str, Callable[[], str]]] = [(LOGIN, each) for each in kinds]
        steps.append((RELAY, lambda: _relay(postfix, RELAYING)))
        clients = itertools.cycle(strangers)
        steps.append((STRANGER, lambda: _relay(postfix, next(clients))))
        steps.append((INBOUND, lambda: _send_in(postfix)))
        self._threads = [threading.Thread(target=self._go_on, args=each, daemon=True) for each in steps]

    @staticmethod
    def _logins(dovecot: PrivateDovecot) -> Callable[[], str]:
        clients = itertools.cycle(LOGGING_IN)  # several threads draw from it, as they may

        def log_in() -> str:
            address = next(clients)
            login, port = (imap_login, dovecot.imap_port) if ":" in address else (pop3_login, dovecot.pop3_port)
            return GOES_ON if login(port, address).succeeded else REFUSED

        return log_in

    def _go_on(self, kind: str, step: Callable[[], str]) -> None:
        while not self._ending.wait(PAUSE):
            began = time.monotonic()
            try:
                outcome = step()
            except OSError as error:
                outcome = f"{REFUSED}: {error}" if kind == LOGIN else AWAY
            except Exception as error:
                self.faults.append(f"{kind}: {error!r}")
                raise
            self.met.append(Met(kind, began, time.monotonic(), outcome))

    def within(self, begin: float, end: float = float("inf")) -> list[Met]:
        """What began after `begin` and ended before `end`."""
        return [each for each in self.met if begin <= each.began and each.ended <= end]

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for each in self._threads:
            each.join()


def _relay(postfix: PrivatePostfix, address: str) -> str:
    return str(attempt_relay(postfix.port, address, "alice@example.com", "bob@example.net").code)


def _send_in(postfix: PrivatePostfix) -> str:
    recipient, message = f"carol@{LOCAL_DOMAIN}", "Subject: for our own domain\n\nNothing is asked about it."
    return str(attempt_relay(postfix.port, SENDING_IN, "dave@example.org", recipient, message=message).code)
