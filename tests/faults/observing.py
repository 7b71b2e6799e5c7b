"""One fault from its beginning to its end, and what was seen of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pbs_policy.demo.daemons import wait_until
from tests.faults.asking import MAY_RELAY, Asked, Asking
from tests.faults.fault import Again, Fault, Marks, Scale
from tests.faults.stage import Stage, action
from tests.faults.watching import AWAY, GOES_ON, INBOUND, LOGIN, RELAY, STRANGER, Met, Watching

PATIENCE = 60.0
"""Seconds after which a fault ends even where not enough was seen of it: a machine may be slow."""

NOT_RECORDED = "this login is not recorded"
"""The post-login script's line in Dovecot's log."""


@dataclass
class Seen:
    """What was seen of one fault. `met`: while it lasted; `met_later`: what began or ended outside it."""

    fault: str
    met: list[Met]
    met_later: list[Met]
    lost_logins: int  # that were not recorded, by Dovecot's log
    answers: Counter[tuple[int, str]]  # of the requests straight to the service, by group of clients and answer
    back_after: list[float]  # seconds

    def of(self, kind: str) -> list[Met]:
        """Those of one kind, while it lasted and right after."""
        return [each for each in self.met + self.met_later if each.kind == kind]

    def counts(self) -> dict[str, Counter[str]]:
        """What the table says, column by column: what was met while the fault lasted, and how often."""
        columns = {
            kind: Counter(each.outcome for each in self.met if each.kind == kind and each.outcome != AWAY)
            for kind in (LOGIN, RELAY, STRANGER, INBOUND)
        }
        logins = columns[LOGIN].total()
        lost = min(self.lost_logins, logins)
        columns[LOGIN] += Counter({"recorded": logins - lost, "not recorded": lost})
        return columns

    def harm(self) -> list[str]:
        """What must never be, each as a sentence."""
        found = [f"a login met: {each.outcome}" for each in self.of(LOGIN) if each.outcome != GOES_ON]
        found += ["a stranger relayed" for each in self.of(STRANGER) if each.outcome == "250"]
        inbound = {each.outcome for each in self.of(INBOUND)} - {"250", AWAY}
        found += [f"inbound mail met: {each.outcome}" for each in self.of(INBOUND) if each.outcome in inbound]
        for (group, answer), count in self.answers.items():
            if answer == "wrong" or (answer == "OK" and group != MAY_RELAY):
                found += [f"{answer} to a client of group {group}"] * count
        return found


def observe(stage: Stage, fault: Fault, scale: Scale) -> Seen:
    """Run one fault, from a sound site to a sound site. Raises AssertionError where it is not sound afterwards."""
    stage.fill()  # who was logged in by an earlier fault is so for half an hour
    assert wait_until(lambda: action(stage) == "OK"), "the site is not sound before the fault"
    dovecot = stage.site.dovecot
    marks = Marks()
    asking = Asking(stage.service.listeners[0], stage.directory / "asked", rate=scale.rate)
    with asking, Watching(stage.site.postfix, dovecot, logins_at_once=scale.at_once) as watching:
        with fault.happening(stage, scale, marks) as again:
            lines = dovecot.log_text().count(NOT_RECORDED)
            began = time.monotonic()
            _hold(again, lambda: _is_enough(watching.within(began), began, scale))
            met = watching.within(began, time.monotonic())
            logins = sum(each.kind == LOGIN for each in met)
            # Dovecot writes what the script said a moment later; of none there is nothing to wait for.
            if dovecot.log_text().count(NOT_RECORDED) > lines:
                wait_until(lambda: dovecot.log_text().count(NOT_RECORDED) - lines >= logins, seconds=1)
            lost = dovecot.log_text().count(NOT_RECORDED) - lines
        assert wait_until(lambda: action(stage) == "OK"), f"the site is not sound after: {fault.name}"
        sound = time.monotonic()
        assert wait_until(lambda: "250" in _relayed(watching.within(sound))), f"nobody relays after: {fault.name}"
    assert not watching.faults, watching.faults
    rest = [each for each in watching.met if each not in set(met)]
    asked = asking.asked()
    answers = Counter((each.group, each.answer) for each in asked)
    return Seen(fault.name, met, rest, lost, answers, [back_after(asked, each) for each in marks.at])


def _hold(again: Again | None, is_enough: Callable[[], bool]) -> None:
    began = time.monotonic()
    next_act = began if again else float("inf")
    while not is_enough() and time.monotonic() < began + PATIENCE:
        if again and time.monotonic() >= next_act:
            again.act()
            next_act = time.monotonic() + again.interval
        time.sleep(0.01)


def _is_enough(met: Iterable[Met], began: float, scale: Scale) -> bool:
    if time.monotonic() < began + scale.seconds:
        return False
    counts = {LOGIN: 0, RELAY: 0, STRANGER: 0, INBOUND: 0}
    for each in met:
        counts[each.kind] += each.outcome != AWAY
    return counts[LOGIN] >= scale.logins and min(counts.values()) >= 2


def _relayed(met: Iterable[Met]) -> set[str]:
    return {each.outcome for each in met if each.kind == RELAY}


def back_after(asked: Iterable[Asked], mark: float) -> float:
    """Seconds from `mark` to the first OK after it."""
    permitted = (each.answered for each in asked if each.answer == "OK" and each.group == MAY_RELAY)
    return min((each for each in permitted if each >= mark), default=float("inf")) - mark
