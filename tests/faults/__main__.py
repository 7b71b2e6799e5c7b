"""`make faults`: every fault, several times, for as long as it takes to count. What was seen is put into the page
(docs/faults.md) row by row, so that it stays there where a run is interrupted.

python -m tests.faults WORD       only the faults with WORD in their names
python -m tests.faults --times    only times and memory: best on a quiet machine
python -m tests.faults --floods   only what a flood of requests costs others
python -m tests.faults --changed  only what comes of changed replies of Redis
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.figures import Bar
from benchmarks.machine import fingerprint
from pbs_policy.demo.daemons import DaemonError
from pbs_policy.programs import missing
from tests.faults import flood, lies
from tests.faults.every import FAULTS
from tests.faults.fault import LONG, Fault
from tests.faults.observing import Seen, observe
from tests.faults.page import PAGE, with_bars, with_fault
from tests.faults.stage import Stage, stage
from tests.faults.timing import measure
from tests.faults.watching import AWAY, GOES_ON, INBOUND, LOGIN, RELAY, STRANGER

ROUNDS = 5  # of the faults
REPETITIONS = 3  # of what is timed


def say(text: str) -> None:
    """What is going on, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def count(runs: Sequence[Seen]) -> list[Bar]:
    """The bars on what was seen in all runs together."""
    logins = sum(met.kind == LOGIN for one in runs for met in one.met)  # during the fault; refused, after it as well
    refused = sum(met.outcome != GOES_ON for one in runs for met in one.of(LOGIN))
    relays = [met for one in runs for kind in (RELAY, STRANGER) for met in one.of(kind) if met.outcome != AWAY]
    inbound = [met for one in runs for met in one.of(INBOUND) if met.outcome != AWAY]
    harmed = sum(met.outcome != "250" for met in inbound)
    asked = len(relays) + sum(one.answers.total() for one in runs)
    wrong = sum("OK" in harm or "relayed" in harm for one in runs for harm in one.harm())
    times = [time for one in runs for time in one.back_after if one.fault != "the service is down"]
    slowest = max(times)
    return [
        Bar("wrong `OK` in all faults together", "0 of 1,000,000", f"{wrong} of {asked:,}",
            not wrong and asked >= 10**6),
        Bar("logins refused", "0 of 10,000", f"{refused} of {logins:,}", not refused and logins >= 10**4),
        Bar("mail for the own domain rejected or deferred", "0", f"{harmed} of {len(inbound):,}", not harmed),
        Bar("back after Redis, its master or the network is, the slowest", "within 1 s", f"{slowest:.2f} s",
            slowest <= 1),
    ]  # fmt: skip


def made() -> str:
    """When, by what and on what, and how much that had to do: a few runnable processes a core are ours."""
    load = f"load average {os.getloadavg()[2]:.0f}"
    return f"{time.strftime('%Y-%m-%d', time.gmtime())}, `make faults`, {fingerprint()}, {load}."


Measure = Callable[[Stage, Callable[[str], None]], list[Bar]]

MEASURES: dict[str, tuple[str, Measure]] = {
    "--times": ("Times and memory", lambda site, say: measure(site, REPETITIONS, say)),
    "--floods": ("Floods", flood.measure),
    "--changed": ("Changed replies", lies.measure),
}


def write_bars(bars: Sequence[Bar], title: str) -> None:
    """Put bars into the page."""
    for bar in bars:
        say(" | ".join(bar.row()))
    PAGE.write_text(with_bars(PAGE.read_text(), bars, title, made()))


def see(site: Stage, fault: Fault) -> list[Seen]:
    """Observe a fault ROUNDS times, and put it into the page."""
    seen: list[Seen] = []
    failures = 0
    while len(seen) < ROUNDS:
        try:
            found = observe(site, fault, LONG)
        except AssertionError as error:
            say(f"{fault.name}: FAILED: {error}")
            failures += 1
            if failures > ROUNDS:
                raise SystemExit(f"there is nothing to be seen of: {fault.name}") from error
            continue
        seen.append(found)
        words = {kind: dict(counts) for kind, counts in found.counts().items()}
        harm = found.harm()
        say(f"{len(seen)} of {ROUNDS}, {fault.name}: {words}{' HARM: ' + harm[0] if harm else ''}")
    PAGE.write_text(with_fault(PAGE.read_text(), fault, seen, made()))
    return seen


def main(word: str = "") -> None:
    """Run the faults with `word` in their names; all of them, and measure; or measure some of the bars."""
    chosen = [] if word in MEASURES else [each for each in FAULTS if word in each.name]
    if lack := missing("redis", "postfix", "dovecot") or next(filter(None, (each.lacks() for each in chosen)), ""):
        raise DaemonError(lack)
    with stage() as site:
        seen = [one for each in chosen for one in see(site, each)]
        if not word:
            write_bars(count(seen), "Faults")
        for option, (title, measure) in MEASURES.items():
            if word in ("", option):
                write_bars(measure(site, say), title)


if __name__ == "__main__":
    main(*sys.argv[1:])
