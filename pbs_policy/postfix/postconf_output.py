"""What postconf prints, and where main.cf says it: parsed in one place for `doctor`, which looks, and `install`,
which changes. Pure: who runs postconf, and what its errors are, is for each of them to say."""

from __future__ import annotations

from collections.abc import Iterator

from pbs_policy.sources import logical_lines

_SUBMISSION = ("submission", "submissions", "smtps", "465", "587")


def parse_pairs(text: str) -> Iterator[tuple[str, str]]:
    """Name and value of each line `name = value` (postconf, -n, -x); the value is empty in `name =`."""
    for line in text.splitlines():
        name, equals, value = line.partition(" =")
        if equals:
            yield name, value.strip()


def parse_overrides(text: str) -> dict[tuple[str, str], dict[str, str]]:
    """The services' own settings (postconf -P): by service, as name and type, each parameter's value."""
    overrides: dict[tuple[str, str], dict[str, str]] = {}
    for place, value in parse_pairs(text):
        name, kind, parameter = place.rsplit("/", 2)
        overrides.setdefault((name, kind), {})[parameter] = value
    return overrides


def parse_entries(text: str, command: str) -> Iterator[list[str]]:
    """The columns of each entry of master.cf (postconf -M, master(5)) that runs `command`: name, type, private,
    unprivileged, chroot, wakeup, maxproc, command, arguments."""
    for line in text.splitlines():
        columns = line.split(None, 8)
        if len(columns) > 7 and columns[7].rpartition("/")[2] == command:
            yield columns


def is_submission(name: str) -> bool:
    """Whether an entry of this name, `[address:]port`, is for clients that authenticate (RFC 6409, RFC 8314)."""
    return name.rpartition(":")[2] in _SUBMISSION


def parse_assignments(main_cf: bytes) -> Iterator[tuple[str, int]]:
    """Each parameter that main.cf sets, with its line; of several lines for one, the last counts."""
    for number, line in logical_lines(main_cf):
        name, equals, _ = line.decode("utf-8", "surrogateescape").partition("=")
        if equals:
            yield name.strip(), number
