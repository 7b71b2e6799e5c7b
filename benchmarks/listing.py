"""`pbs-policy list` of a million logins, as an administrator runs it: when its first line is there, and its last, and
what memory that takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.figures import Bar, Section, median, megabytes, table
from benchmarks.filling import MANY_LOGGED_IN, fill

FORMS = ("table", "json")
FIRST = 0.2
"""Seconds from the start of the command to its first entry."""

MEMORY = 80_000_000


class Listing(NamedTuple):
    """What one listing took: seconds to the first entry and to the end, processor seconds, peak RSS, bytes."""

    first: float
    total: float
    processor: float
    peak: int
    size: int


def run(bench: Bench) -> Section:
    """The cell."""
    count = bench.pick(1_000_000, 20_000)
    bench.say(f"listing: filling {count:,} logins")
    redis = bench.redis("redis")
    fill(redis.socket_path, MANY_LOGGED_IN, count)
    file = bench.directory / "list.conf"
    file.write_text(f"redis_url = {redis.url}\n")
    repetitions = bench.pick(3, 1)
    starts = bench.pick(15, 3)
    section = Section("Listing", [_INTRODUCTION.format(count=count, repetitions=repetitions, starts=starts)])
    rows, first, peak = [], list[float](), list[int]()
    for form in FORMS:
        bench.say(f"listing: list -o {form}")
        begun = [_list(str(file), form, None).first for _ in range(starts)]
        whole = [_list(str(file), form, count) for _ in range(repetitions)]
        rows.append([
            f"`list -o {form}`", f"{median(begun):.3f}", f"{min(begun):.3f}",
            f"{median(each.total for each in whole):.1f}", f"{median(each.processor for each in whole):.1f}",
            megabytes(max(each.peak for each in whole)), megabytes(whole[0].size),
        ])  # fmt: skip
        first.append(median(begun))
        peak.append(max(each.peak for each in whole))
    head = ["", "first entry s", "fastest", "complete s", "CPU s", "peak RSS MB", "output MB"]
    section.blocks.append(table(head, rows))
    what = f"of {count:,} logins, the slower format"
    section.bars += [
        Bar(f"first entry {what}, s", f"at most {FIRST}", f"{max(first):.3f}", max(first) <= FIRST),
        Bar(f"peak RSS {what}, MB", f"under {megabytes(MEMORY)}", megabytes(max(peak)), max(peak) < MEMORY),
    ]
    return section


_INTRODUCTION = """\
`pbs-policy list` of {count:,} logins, Redis on the same cores: the start of {starts} commands up to the first entry
(median and fastest), and {repetitions} to the end. CPU is the command's own."""


def _list(file: str, form: str, count: int | None) -> Listing:
    """One listing to its end, where there must be `count` entries; with None only to its first."""
    command = [sys.executable, "-m", "pbs_policy", "-c", file, "list", "-o", form]
    mark = b'"client_address"' if form == "json" else b"10."
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    output = process.stdout
    if output is None:
        raise OSError("no pipe")
    first, entries, size = 0.0, 0, 0
    with output:
        for line in output:
            size += len(line)
            entries += mark in line
            if entries and not first:
                first = time.monotonic() - start
                if count is None:
                    break
    # wait4 and not wait: it alone tells the peak of this very child, or of us at its start, where that is more.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    total = time.monotonic() - start
    if not entries or (count is not None and (process.returncode or entries != count)):
        raise OSError(f"list ended with status {process.returncode} after {entries:,} of {count or 1:,} entries")
    return Listing(first, total, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, size)
