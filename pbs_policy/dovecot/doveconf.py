"""Dovecot's configuration, for doctor and the installers: effective values from doveconf, places from files.

doveconf (2.3 and 2.4) merges blocks, reads includes and knows what is an error, so the values are its own. It gives
no lines. The files are read here with the same small parser, in the order in which Dovecot reads them: the last
assignment of a setting is the one that counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from pbs_policy.host import ConfigurationFault, Host, NotLookedAt, is_for_root

_MOST_INCLUDES = 20  # files inside files: one that includes itself comes to an end
_FAULT = re.compile(r"Error in configuration file (?P<file>[^\s:]+)(?: line (?P<line>\d+))?: (?P<what>.*)")
_BEGUN_AT = re.compile(r"section started at \S+:(?P<line>\d+)")

Path = tuple[str, ...]
"""The blocks around a setting: ("service imap-postlogin",)."""


class ConfigLine(NamedTuple):
    """A setting, or (`name` empty) the head of a block, and where it stands."""

    blocks: Path
    name: str
    value: str
    place: str


@dataclass(frozen=True)
class DovecotConfig:
    """What doveconf says (`effective`), and what the files say (`written`, with places)."""

    file: str
    effective: tuple[ConfigLine, ...]
    written: tuple[ConfigLine, ...]
    unread: tuple[str, ...] = ()
    """Included files that we may not read: where that is no error to doveconf (!include_try), it goes on without."""

    def value(self, blocks: Path, name: str) -> str:
        """The effective value of a setting; "" where it has its default."""
        return next((each.value for each in self.effective[::-1] if (each.blocks, each.name) == (blocks, name)), "")

    def has_block(self, blocks: Path) -> bool:
        """Whether there is such a block, empty or not (doveconf 2.3 does not show empty ones)."""
        return any(each.blocks[: len(blocks)] == blocks for each in (*self.effective, *self.written))

    def place(self, blocks: Path, name: str = "") -> str:
        """Where the setting was set last, else where its block begins, else the file that Dovecot begins with."""
        for wanted in (name, ""):
            found = [each for each in self.written if (each.blocks, each.name) == (blocks, wanted)]
            if found:
                return found[-1].place
        return self.place(blocks[:-1]) if blocks else self.file

    def place_of(self, line: ConfigLine) -> str:
        """Where an effective line was written."""
        found = [each for each in self.written if each[:3] == line[:3]]
        return found[-1].place if found else self.place(line.blocks, line.name)

    @property
    def version(self) -> tuple[int, int]:
        """For which Dovecot it is written: 2.4 does not start without this setting, 2.3 not with it."""
        return (2, 4) if self.value((), "dovecot_config_version") else (2, 3)

    def services(self) -> list[str]:
        """The names of the services that the configuration speaks of."""
        heads = (each.blocks[0] for each in (*self.effective, *self.written) if each.blocks)
        return sorted({head.partition(" ")[2] for head in heads if head.startswith("service ")})

    def protocols(self) -> list[str]:
        """Those of pop3 and imap that are served: both where the setting says nothing of them."""
        words = self.value((), "protocols").split()
        words += [each.name for each in self.effective if each.blocks == ("protocols",) and each.value == "yes"]
        return [each for each in ("pop3", "imap") if each in words] if words else ["pop3", "imap"]


def read_dovecot(host: Host, file: str = "") -> DovecotConfig:
    """Ask doveconf about the configuration in `file` (the default: its own).

    Raises NotLookedAt where doveconf is missing or may not read it, ConfigurationFault where it is wrong.
    """
    # -P: without it 2.3 and 2.4 hide last_login_key. What else it shows is never kept in a finding.
    answer = host.run("doveconf", "-n", "-P", *(("-c", file) if file else ()))
    if answer.status:
        match = _FAULT.search(answer.err)
        if match and "Permission denied" not in answer.err:
            begun = _BEGUN_AT.search(answer.err)
            line = match["line"] or (begun["line"] if begun else "")
            raise ConfigurationFault(match["what"], f"{match['file']}:{line}".removesuffix(":"))
        said = (answer.err.splitlines() or ["doveconf gave no reason"])[-1]
        raise NotLookedAt(said.removeprefix("doveconf: ").removeprefix("Fatal: "))
    named = re.match(r"# \S+ \([^)]*\): (\S+)", answer.out)
    file = file or (named[1] if named else "/etc/dovecot/dovecot.conf")
    written: list[ConfigLine] = []
    unread: list[str] = []
    _read_file(host, file, [], written, unread, 0)
    return DovecotConfig(file, tuple(parse_lines(answer.out, "doveconf")), tuple(written), tuple(unread))


def read_setting(host: Host, file: str, name: str) -> str:
    """One setting with its default, which -n leaves out. Raises NotLookedAt."""
    answer = host.run("doveconf", "-c", file, "-h", name)
    if answer.status:
        raise NotLookedAt(f"doveconf does not tell {name}")
    return answer.out.strip()


def parse_lines(text: str, file: str) -> Iterator[ConfigLine]:
    """The settings and block heads of `text`, without following includes."""
    yield from (line for line in _parse(text, file, []) if not line.name.startswith("!"))


_VARIABLE = re.compile(r"%%|%\{([^}]*)\}|%[-\d.]*[A-Z]*([a-z])")
_LETTERS = {"u": "user", "n": "username", "d": "domain", "r": "rip", "s": "service", "m": "mech"}


def variables(text: str) -> set[str]:
    """The variables in a value: of `%u`, `%Ln`, `%{rip}` and 2.4's `%{user | username | lower}` the name that counts;
    `user` is the whole name, `username` the part without the domain, whose name is `domain`."""
    names = set()
    for match in _VARIABLE.finditer(text):
        words = re.findall(r"[a-z_]+", (match[1] or "").lower())
        parts = [each for each in ("username", "domain") if each in words]
        names.add(parts[0] if parts else words[0] if words else _LETTERS.get(match[2] or "", match[0]))
    return names


def _read_file(
    host: Host, file: str, blocks: list[str], written: list[ConfigLine], unread: list[str], depth: int
) -> None:
    """Append the lines of `file`, and of what it includes, in the order in which Dovecot reads them."""
    try:
        text = host.read(file).decode("utf-8", "replace")
    except NotLookedAt as error:
        if is_for_root(str(error)):
            unread.append(file)
        return  # else doveconf has read it: the findings then name the file that includes it
    for line in _parse(text, file, blocks):
        if not line.name.startswith("!include"):
            written.append(line)
        elif depth < _MOST_INCLUDES:
            for each in host.glob(str(PurePosixPath(file).parent / line.value)):
                _read_file(host, each, blocks, written, unread, depth + 1)


def _parse(text: str, file: str, blocks: list[str]) -> Iterator[ConfigLine]:
    """Lines in the order of `text`. `blocks` is changed as blocks open and close, so that it holds for an include."""
    for line in split_lines(text):
        place = f"{file}:{line.first}"
        if line.kind == "close":
            del blocks[-1:]
        elif line.kind == "open":
            blocks.append(line.name)
            yield ConfigLine(tuple(blocks), "", "", place)
        else:
            yield ConfigLine(tuple(blocks), line.name, line.value, place)


class SplitLine(NamedTuple):
    """What stands on the lines `first` to `last`, counted from 1: `open` and `close` of a block, an `include`, or a
    `setting`."""

    kind: str
    first: int
    last: int
    name: str = ""
    value: str = ""


def split_lines(text: str) -> Iterator[SplitLine]:
    """The lines of one file as Dovecot reads them, those that go on behind a backslash as one; comments left out."""
    first, logical = 0, ""
    for last, physical in enumerate(text.splitlines(), 1):
        first = first if logical else last
        logical += physical.strip() if not logical else " " + physical.strip()
        if logical.endswith("\\"):
            logical = logical[:-1].rstrip()
            continue
        line, logical = re.sub(r"(^|\s+)#.*$", "", logical), ""
        include = re.match(r"(!include(?:_try)?)\s+(.+)", line)
        name, equals, value = line.partition("=")
        if include:
            yield SplitLine("include", first, last, include[1], include[2].strip())
        elif line == "}":
            yield SplitLine("close", first, last)
        elif "=" not in line.partition("{")[0] and line.endswith("{"):
            yield SplitLine("open", first, last, " ".join(line[:-1].replace('"', "").split()))
        elif equals:
            yield SplitLine("setting", first, last, name.strip(), _unquoted(value.strip()))


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
