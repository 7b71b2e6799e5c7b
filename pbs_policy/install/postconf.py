"""One Postfix configuration as Postfix itself understands it (postconf(1)), and where in its files things stand."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pbs_policy.install.files import InstallError
from pbs_policy.log import printable
from pbs_policy.postfix.postconf_output import (
    is_submission,
    parse_assignments,
    parse_entries,
    parse_overrides,
    parse_pairs,
)
from pbs_policy.programs import find_program


@dataclass(frozen=True, slots=True)
class Smtpd:
    """An smtpd of master.cf. `name` is `smtp/inet`, `overrides` its own `-o` settings."""

    name: str
    overrides: dict[str, str]

    @property
    def is_submission(self) -> bool:
        """Whether it is for clients that authenticate (RFC 6409, RFC 8314)."""
        return is_submission(self.name.partition("/")[0])


class PostfixConfiguration:
    """The main.cf and master.cf of a folder. For a copy, `shown_as` is the folder that messages speak of."""

    def __init__(self, folder: Path, shown_as: Path | None = None) -> None:
        self.folder = folder
        self.shown_as = shown_as or folder
        self.main_cf = folder / "main.cf"
        self.master_cf = folder / "master.cf"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What `postconf -c FOLDER ARGUMENT...` says. Raises InstallError where it refuses, or is not there."""
        program = find_program("postconf")
        if program is None:
            raise InstallError("postconf is not installed: apt-get install postfix", os.EX_UNAVAILABLE)
        done = subprocess.run(
            [program, "-c", str(self.folder), *arguments],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().replace(str(self.folder), str(self.shown_as))
            raise InstallError(f"postconf does not accept {self.shown_as}: {printable(said, 2000)}")
        return done

    def value(self, name: str, *, expanded: bool = False) -> str:
        """The value of a parameter, of main.cf or by default; `expanded` with the values of what it refers to."""
        return self.run("-hx" if expanded else "-h", name).stdout.strip()

    def set_in_main_cf(self) -> dict[str, str]:
        """Every parameter that main.cf sets, expanded."""
        return dict(parse_pairs(self.run("-nx").stdout))

    def warnings(self) -> set[str]:
        """What postconf finds strange in these files."""
        return set(self.run("-n").stderr.replace(str(self.folder), str(self.shown_as)).splitlines())

    def smtpds(self) -> list[Smtpd]:
        """The smtpd services of master.cf, none where there is no such file."""
        if not self.master_cf.exists():
            return []
        overrides = parse_overrides(self.run("-Px").stdout)
        smtpds = parse_entries(self.run("-M").stdout, "smtpd")
        entries = [(name, kind) for name, kind, *_ in smtpds if kind in ("inet", "pass")]
        return [Smtpd("/".join(entry), overrides.get(entry, {})) for entry in entries]

    def lines_of(self, name: str) -> list[int]:
        """The numbers of the lines of main.cf that set a parameter; the last one counts."""
        return [number for known, number in parse_assignments(self.main_cf.read_bytes()) if known == name]

    def place_of(self, name: str) -> str:
        """`FILE:LINE` of a parameter in main.cf, or the file where it is not set."""
        lines = self.lines_of(name)
        return f"{self.shown_as}/main.cf:{lines[-1]}" if lines else f"{self.shown_as}/main.cf"

    def place_in_master_cf(self, service: str, parameter: str) -> str:
        """`FILE:LINE` of a service's own setting in master.cf, or of the service."""
        name, _, kind = service.partition("/")
        at = ""
        inside = False
        for number, line in enumerate(self.master_cf.read_text(errors="replace").splitlines(), 1):
            if line[:1] not in ("#", " ", "\t", ""):
                inside = line.split()[:2] == [name, kind]
                at = f":{number}" if inside else at
            if inside and not line.lstrip().startswith("#") and re.search(rf"\b{re.escape(parameter)}\b", line):
                return f"{self.shown_as}/master.cf:{number}"
        return f"{self.shown_as}/master.cf{at}"
