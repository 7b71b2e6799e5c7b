"""Where settings are written down: the file, the environment, the command line. What they mean is in `settings`.

The file is in the manner of Postfix's main.cf (`postfix/main_cf`), because its readers administer Postfix and because
the post-login script must read it in microseconds: `name = value`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pbs_policy.postfix.main_cf import joined_lines
from pbs_policy.trust import read_trusted

BLANKS = " \t\r\n\v\f"
"""What counts as blank in the file: ASCII's, for the script as well."""

DEFAULT_FILE = Path("/etc/pbs-policy/pbs-policy.conf")


class SettingsError(Exception):
    """The settings are not usable. `faults` are all there are, each `place: what is wrong, what was expected`."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))


@dataclass(frozen=True, slots=True)
class Value:
    """A setting's text as somebody wrote it, and the place: `FILE:LINE`, a variable's name, `--set`, `default`."""

    text: str
    place: str


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is nearest, or nothing."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def from_file(file: Path | None, known: Collection[str], faults: list[str]) -> Iterator[tuple[str, Value]]:
    """The settings of a file; None means DEFAULT_FILE, which may be absent."""
    path = file or DEFAULT_FILE
    try:
        data, _ = read_trusted(path, for_root=True)
    except OSError as error:
        if file is not None or not isinstance(error, FileNotFoundError):
            faults.append(f"{path}: {error.strerror}")
        return
    seen: dict[str, int] = {}
    for lines in joined_lines(data):
        number = lines[0][0]
        place = f"{path}:{number}"
        try:
            line = " ".join(_without_settings(lines, known, path, faults))
        except UnicodeDecodeError:
            faults.append(f"{place}: not UTF-8 text")
            continue
        name, equals, text = (part.strip(BLANKS) for part in line.partition("="))
        if not equals or not name:
            # The line is not shown: it may be a password, or be of another file than was meant.
            faults.append(f"{place}: expected name = value, found no {'name' if equals else '='}")
        elif name in seen:
            faults.append(f"{place}: {name} is set a second time (first in line {seen[name]})")
        else:
            seen[name] = number
            yield name, Value(text, place)


def _without_settings(
    lines: list[tuple[int, bytes]], known: Collection[str], path: Path, faults: list[str]
) -> Iterator[str]:
    """The texts of a line and its continuations, but for continuations that look like a setting. Such a one would be
    lost in the value of the setting before it: require_tls would silently not hold."""
    number, first = lines[0]
    yield first.decode()
    for at, line in lines[1:]:
        name, equals, _ = (part.strip(BLANKS) for part in line.decode().partition("="))
        if equals and name in known:
            before = first.decode().partition("=")[0].strip(BLANKS)
            faults.append(
                f"{path}:{at}: {name} has a blank in front, so it would continue {before} in line {number}: "
                "begin it at the start of the line"
            )
        else:
            yield line.decode()


def from_environment(
    environment: Mapping[str, str], known: Collection[str], faults: list[str]
) -> Iterator[tuple[str, Value]]:
    """PBS_TTL=8h and its like. Other programs own names with PBS_ in front: only near misses are faults."""
    for variable, text in sorted(environment.items()):
        name = variable.removeprefix("PBS_").lower()
        if name == variable.lower():
            continue
        if name in known:
            yield name, Value(text.strip(), variable)
        elif difflib.get_close_matches(name, list(known), n=1, cutoff=0.85):
            faults.append(f"{variable}: unknown setting{did_you_mean(name, known)}")


def from_overrides(overrides: Iterable[str], faults: list[str]) -> Iterator[tuple[str, Value]]:
    """The settings of `--set name=value` options."""
    for override in overrides:
        name, equals, text = (part.strip() for part in override.partition("="))
        if equals:
            yield name, Value(text, "--set")
        else:
            faults.append(f"--set {override}: expected name=value")
