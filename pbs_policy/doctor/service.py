"""Checks of the running service: does it answer on every listener, asked as Postfix asks?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from pbs_policy.decision.rules import DUNNO
from pbs_policy.doctor.finding import AS_ROOT, Finding, good, unknown, warning, where, wrong
from pbs_policy.extras import why_no_metrics
from pbs_policy.log import printable
from pbs_policy.postfix.listener import Listener
from pbs_policy.postfix.query import ask
from pbs_policy.settings import Settings
from pbs_policy.settings.sources import Value

STRANGER = "192.0.2.1"
"""An address of RFC 5737: it is in use nowhere, so nobody is logged in from it."""

_PATIENCE = 2.0  # seconds: `timeout=2s` of postfix-examples; the service takes 0.5 s at the most


def check_service(settings: Settings, values: Mapping[str, Value], store_told: bool = False) -> Iterator[Finding]:
    """Ask every listener once, about a client that nobody has logged in from. `store_told`: that Redis does not
    answer the service was said."""
    found = [check_listener(listener, where(values["listen"]), store_told) for listener in settings.listen]
    if len(found) > 1 and all(each.level == "wrong" for each in found):
        first = found[0]  # the service does not run: one cause
        yield wrong(first.check, "; ".join(each.seen for each in found), first.place, first.mend)
    else:
        yield from found
    if settings.observe_only:
        yield warning("service.observe_only", "observe_only = yes: the service permits nobody, and logs who it would",
                      where(values["observe_only"]), "observe_only = no, when you have seen enough")  # fmt: skip
    if settings.metrics_listen:
        place, said = where(values["metrics_listen"]), why_no_metrics()
        seen, _, cure = said.partition("): ")
        yield (
            warning("service.metrics", f"{seen})", place, f"{cure}; then restart the service")
            if said
            else good("service.metrics", "the packages for metrics_listen are installed", place)
        )


def check_listener(listener: Listener, place: str, store_told: bool = False) -> Finding:
    """One request to one listener."""
    check = "service.answers"
    start = "systemctl status pbs-policy; journalctl -u pbs-policy; restart it where listen was changed"
    began = time.monotonic()
    try:
        action = ask(listener, STRANGER, sender="", recipient="postmaster@example.net").action
    except TimeoutError:
        return wrong(check, f"{listener} accepts and does not answer", place, start)
    except PermissionError as error:
        return unknown(check, f"{listener}: {error.strerror}", place, AS_ROOT)
    except (OSError, ValueError) as error:
        return wrong(check, f"{listener} is not answered: {printable(str(error))}", place, start)
    took = time.monotonic() - began
    if action.startswith("DEFER") and store_told:
        return good(check, f"{listener} answers {printable(action)}, as it should without Redis", place)
    if action.startswith("DEFER"):
        return wrong(
            check, f"{listener} answers {printable(action)}: Redis is unavailable to the service", place, start
        )
    if action != DUNNO:
        seen = f"{listener} answers a stranger {printable(action)!r}, not DUNNO: is that another program?"
        return wrong(check, seen, place, "give the service a port or path of its own")
    if took > _PATIENCE:
        return warning(check, f"{listener} took {took:.1f} s to answer: Postfix waits 2 s", place, start)
    return good(check, f"{listener} answers in {1000 * took:.0f} ms", place)
