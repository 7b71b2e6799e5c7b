"""How long the command line takes to start, against a bare click program with as many commands."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figures import Section, median, milliseconds, ratio, spread, table

_COMMAND = '''
@group.command()
@click.argument("address")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def command_{number}(address, as_json):
    """What the {number}th command does."""
'''


def run(bench: Bench) -> Section:
    """The cell."""
    from pbs_policy.cli.commands import PLACES

    folder = bench.directory / "bare"
    folder.mkdir()
    # A module that is imported, not a script: its byte code is kept, as ours is.
    bare = "import click\n\n\n@click.group()\ndef group():\n    pass\n"
    (folder / "bare.py").write_text(bare + "".join(_COMMAND.format(number=each) for each in range(len(PLACES))))
    programs = {
        "the interpreter alone": "pass",
        f"a bare click program of {len(PLACES)} commands": "from bare import group; group(['--help'])",
        "pbs-policy": "from pbs_policy.cli import main; main(['--help'])",
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    rounds = bench.pick(40, 8)
    bench.say(f"startup: {rounds} rounds")
    for number in range(rounds + 1):
        for name, text in programs.items():
            seconds = _time(folder, text)
            if number:  # the first round writes byte code and fills the kernel's cache
                times[name].append(seconds)
    _, click, ours = times.values()
    found = ratio(ours, click)
    rows = [[name, milliseconds(median(each)), milliseconds(min(each))] for name, each in times.items()]
    return Section(
        "Start of the command line",
        [
            f"`--help`, {rounds} starts each in turn, wall time in milliseconds.",
            table(["program", "median", "fastest"], rows),
            spread("the bare click program's starts", click),
            f"`pbs-policy --help` takes {found} times the bare click program's time.",
        ],
    )


def _time(folder: Path, text: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", text], cwd=folder, stdout=subprocess.DEVNULL, check=True, timeout=30)
    return time.perf_counter() - start
