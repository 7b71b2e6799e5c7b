"""`make faults`: every fault, several times, for as long as it takes to count; then docs/faults.md is written.

python -m tests.faults WORD       only the faults with WORD in their names, and no page
python -m tests.faults --page     no faults: the page of what an interrupted run has seen
python -m tests.faults --times    only times and memory, put into the page that there is: best on a quiet machine
python -m tests.faults --floods   the same with what a flood of requests costs others
python -m tests.faults --changed  the same with what comes of changed replies of Redis
python -m tests.faults --anew WORD   only the faults with WORD in their names, put into the page that there is
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
from tests.faults import flood, kept, lies
from tests.faults.every import FAULTS, lacks
from tests.faults.fault import LONG, Fault
from tests.faults.observing import Seen, observe
from tests.faults.page import CHANGED, FLOODS, PAGE, TIMES, page, with_bars, with_fault
from tests.faults.stage import Stage, stage
from tests.faults.timing import measure
from tests.faults.watching import AWAY, GOES_ON, INBOUND, LOGIN, RELAY, STRANGER

ROUNDS = 5  # of the faults
REPETITIONS = 3  # of what is timed


def say(text: str) -> None:
    """What is going on, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def count(seen: dict[str, list[Seen]]) -> list[Bar]:
    """The bars on what was seen in all runs together."""
    runs = [one for each in seen.values() for one in each]
    logins = sum(met.kind == LOGIN for one in runs for met in one.met)  # during the fault; refused, after it as well
    refused = sum(met.outcome != GOES_ON for one in runs for met in one.of(LOGIN))
    relays = [met for one in runs for kind in (RELAY, STRANGER) for met in one.of(kind) if met.outcome != AWAY]
    inbound = [met for one in runs for met in one.of(INBOUND) if met.outcome != AWAY]
    harmed = sum(met.outcome != "250" for met in inbound)
    asked = len(relays) + sum(sum(one.answers.values()) for one in runs)
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
    "--times": (TIMES, lambda site, say: measure(site, REPETITIONS, say)),
    "--floods": (FLOODS, flood.measure),
    "--changed": (CHANGED, lies.measure),
}


def measure_anew(title: str, measure: Measure) -> None:
    """Measure some of the bars anew, and put them into the page."""
    with stage() as site:
        bars = measure(site, say)
    for bar in bars:
        say(" | ".join(bar.row()))
    PAGE.write_text(with_bars(PAGE.read_text(), bars, title, made()))


def observe_anew(word: str) -> None:
    """Observe the faults with `word` in their names, and put them into the page."""
    chosen = [each for each in FAULTS if word in each.name]
    seen: dict[str, list[Seen]] = {each.name: [] for each in chosen}
    with stage() as site:
        run(site, chosen, seen, lambda _: None)
    for each in chosen:
        PAGE.write_text(with_fault(PAGE.read_text(), each, seen[each.name], made()))


def observe_twice_at_most(site: Stage, fault: Fault) -> Seen | None:
    """What was seen, the second time where the first came to nothing; None, and a line, where both did."""
    for _ in range(2):
        try:
            return observe(site, fault, LONG)
        except AssertionError as error:
            say(f"{fault.name}: FAILED: {error}")
    return None


def run(site: Stage, chosen: Sequence[Fault], seen: dict[str, list[Seen]], keep: Callable[[Seen], None]) -> None:
    """Each fault until it was seen ROUNDS times."""
    for number in range(ROUNDS):
        for each in chosen:
            if len(seen[each.name]) > number:
                continue
            found = observe_twice_at_most(site, each)
            if found is None:
                raise SystemExit(f"there is nothing to be seen of: {each.name}")
            keep(found)
            seen[each.name].append(found)
            words = {kind: dict(counts) for kind, counts in found.counts().items()}
            harm = found.harm()
            say(f"{number + 1} of {ROUNDS}, {each.name}: {words}{' HARM: ' + harm[0] if harm else ''}")


def write_page(site: Stage, seen: dict[str, list[Seen]]) -> None:
    """Measure times and memory as well, and write the page."""
    bars = count(seen) + [bar for _, each in MEASURES.values() for bar in each(site, say)]
    for bar in bars:
        say(" | ".join(bar.row()))
    PAGE.write_text(page(FAULTS, seen, bars, made()))


def main(word: str = "") -> None:
    """Run the faults with `word` in their names; all of them, and write the page; or write it of what was seen."""
    chosen = [each for each in FAULTS if word in each.name or word == "--page"]
    if lack := missing("redis", "postfix", "dovecot") or next(filter(None, map(lacks, chosen)), ""):
        raise DaemonError(lack)
    seen: dict[str, list[Seen]] = {each.name: [] for each in chosen}
    if word in ("", "--page"):
        for one in kept.load():
            seen[one.fault].append(one)
    with stage() as site:
        if word != "--page":
            run(site, chosen, seen, (lambda _: None) if word else kept.keep)
        if word in ("", "--page"):
            write_page(site, seen)
            kept.forget()


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1] in MEASURES:
        measure_anew(*MEASURES[sys.argv[1]])
    elif len(sys.argv) == 3 and sys.argv[1] == "--anew":
        observe_anew(sys.argv[2])
    else:
        main(*sys.argv[1:])
