"""Runs the cells that are named, or all of them, and writes what they found. README.md says what each measures."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from benchmarks import (
    consistency,
    day,
    listing,
    logins,
    memory,
    monitoring,
    reports,
    sessions,
    startup,
    table,
    throughput,
    watching,
)
from benchmarks.bench import Bench
from benchmarks.figures import CannotRun, Section
from benchmarks.machine import description, fingerprint
from benchmarks.processes import SOURCES, Programs, build
from benchmarks.results import write

CELLS: dict[str, tuple[str, Callable[[Bench], Section]]] = {
    "throughput": ("Throughput", throughput.run),
    "table": ("Login table", table.run),
    "listing": ("Listing", listing.run),
    "logins": ("Cost of a login", logins.run),
    "reports": ("Reports", reports.run),
    "sessions": ("Sessions", sessions.run),
    "startup": ("Start of the command line", startup.run),
    "memory": ("Memory of the service", memory.run),
    "watching": ("Watching", watching.run),
    "monitoring": ("Monitoring", monitoring.run),
    "day": ("A day of logins", day.run),
    "consistency": ("Consistency", consistency.run),
}

CELL_SECONDS = 2_400
"""What one cell may take at the most; every wait in it is bounded far below that."""


def main() -> int:
    """Returns the exit status: 1 where a cell failed or an answer was wrong. A bar that is missed is a result."""
    options = _parse_options()
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGALRM, _overdue)
    sections: dict[str, str] = {}
    failed = False
    with tempfile.TemporaryDirectory(prefix="pbs-bench-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)  # scripts in it are run by other users
        try:
            programs = build(Path(directory))
        except CannotRun as reason:
            print(f"benchmarks: {reason}", file=sys.stderr)
            return 1
        started = time.monotonic()
        for name in options.cells or CELLS:
            title, _ = CELLS[name]
            sections[title], success = _run_cell(name, options.quick, Path(directory) / name, programs, started)
            failed |= not success
            print(f"\n## {title}\n\n{sections[title]}\n", flush=True)
    if options.output is not None:
        write(options.output, description(), sections, whole=not options.cells)
        print(f"benchmarks: written to {options.output}", file=sys.stderr)
    return int(failed)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"{', '.join(CELLS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a few minutes: shows that all works, proves nothing")
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="where the results go (default: benchmarks/RESULTS.md; with --quick nowhere but standard output)",
    )  # fmt: skip
    options = parser.parse_args()
    unknown = [name for name in options.cells if name not in CELLS]
    if unknown:
        parser.error(f"no cell {unknown[0]!r}: there are {', '.join(CELLS)}")
    if options.output is None and not options.quick:
        options.output = SOURCES / "RESULTS.md"
    return options


def _run_cell(name: str, quick: bool, directory: Path, programs: Programs, started: float) -> tuple[str, bool]:
    """The cell's text, and whether it came to its end with right answers."""
    _, cell = CELLS[name]
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    head = f"{time.strftime('%Y-%m-%d %H:%M %Z')}, `{command}`, {fingerprint()}."
    directory.mkdir()
    signal.alarm(CELL_SECONDS)
    try:
        with ExitStack() as stack:
            section = cell(Bench(quick, directory, programs, stack, started))
    except CannotRun as reason:
        return f"{head}\n\nLeft out: {reason}", True
    except Exception as error:  # noqa: BLE001 - what the other cells found is not to be lost with this one
        return f"{head}\n\n**Failed** with {type(error).__name__}: {error}", False
    finally:
        signal.alarm(0)
    return f"{head}\n\n{section.text()}", True


def _end(_: int, __: FrameType | None) -> None:
    sys.exit(143)  # through all the contexts, which end what they started


def _overdue(_: int, __: FrameType | None) -> None:
    raise TimeoutError(f"not done within {CELL_SECONDS} s")


if __name__ == "__main__":
    sys.exit(main())
