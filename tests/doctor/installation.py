"""An installation that is described by a folder: what `broken/` and `sound/` consist of.

main.cf, master.cf        Postfix's configuration, read through the real postconf
dovecot.conf, conf.d/     Dovecot's, read through the real doveconf where that is of the version they are for
doveconf                  else what doveconf said of it, captured by `python -m tests.doctor.capture`
pbs-policy.conf           /etc/pbs-policy/pbs-policy.conf; absent: all defaults
script.conf               /etc/pbs-policy/script.conf, which only an `executable` line can name
host                      files of the host that are not as usual (`CaseHost`)
expected                  of the broken ones, the finding: check, level, place, seen, mend; the last two in part
"""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fakeredis

from pbs_policy.doctor import Doctor
from pbs_policy.doctor.finding import Finding
from pbs_policy.host import Account, Host, Owned, ProgramOutput
from pbs_policy.programs import find_program
from pbs_policy.settings import load
from pbs_policy.shipped import shipped
from tests.stores import table_on

HERE = Path(__file__).parent
ACCOUNTS = {"root": 0, "postfix": 101, "dovecot": 102, "pbs-policy": 103}
_SCRIPTS = "/usr/local/lib/pbs-policy/"
_USUAL = {
    f"{_SCRIPTS}pbs-postlogin": stat.S_IFREG | 0o755,
    f"{_SCRIPTS}pbs_postlogin.py": stat.S_IFREG | 0o644,
    "/usr/bin/python3": stat.S_IFREG | 0o755,
}
_FOLDERS = ("/", "/etc", "/usr/bin", "/usr/local/lib/pbs-policy", "/etc/pbs-policy")
_KINDS = {"file": stat.S_IFREG, "folder": stat.S_IFDIR, "socket": stat.S_IFSOCK}


@dataclass(frozen=True)
class Case:
    """One folder."""

    directory: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.directory.name

    @property
    def has_postfix(self) -> bool:
        """Whether it has a Postfix to look at."""
        return (self.directory / "main.cf").exists()

    @property
    def has_dovecot(self) -> bool:
        """Whether it has a Dovecot to look at."""
        return (self.directory / "dovecot.conf").exists()

    @property
    def dovecot_version(self) -> str:
        """For which Dovecot its configuration is written."""
        return "2.4" if "dovecot_config_version" in (self.directory / "dovecot.conf").read_text() else "2.3"

    def expected(self) -> dict[str, str]:
        """What `expected` says."""
        lines = (self.directory / "expected").read_text().splitlines()
        return dict(line.split(": ", 1) for line in lines)

    def doctor(self, host: Host | None = None) -> Doctor:
        """A doctor who looks at this installation."""
        file = self.directory / "pbs-policy.conf"
        settings, values = load(file if file.exists() else Path("/dev/null"))
        dovecot = str(self.directory / "dovecot.conf")
        return Doctor(settings, values, str(self.directory), dovecot, host=host or CaseHost(self))

    def findings(self, host: Host | None = None) -> list[Finding]:
        """What doctor says of its Postfix and its Dovecot, places relative to the folder."""
        doctor = self.doctor(host)
        found = list(doctor.examine_postfix()) if self.has_postfix else []
        found += doctor.examine_dovecot() if self.has_dovecot else []
        found += doctor.examine_both()
        doctor.table = table_on(fakeredis.FakeRedis(), "pbs:")
        found += doctor.examine_table()
        return [self._relative(finding) for finding in found]

    def _relative(self, finding: Finding) -> Finding:
        def cut(text: str) -> str:
            return text.replace(f"{self.directory}/", "")

        return Finding(finding.check, finding.level, cut(finding.seen), cut(finding.place), cut(finding.mend))


class CaseHost(Host):
    """The host that a case describes. `host` has lines `file|folder|socket PATH MODE USER:GROUP`, `missing PATH`."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._owned: dict[str, Owned | None] = {path: Owned(mode, 0, 0) for path, mode in _USUAL.items()}
        for name in ("pbs-policy.conf", "script.conf"):
            if (case.directory / name).exists():
                self._owned[f"/etc/pbs-policy/{name}"] = Owned(stat.S_IFREG | 0o644, 0, 0)
        description = case.directory / "host"
        for line in description.read_text().splitlines() if description.exists() else ():
            kind, path, *rest = line.split()
            self._owned[path] = None
            if rest:
                user, _, group = rest[1].partition(":")
                self._owned[path] = Owned(_KINDS[kind] | int(rest[0], 8), ACCOUNTS[user], ACCOUNTS[group])

    def run(self, program: str, *arguments: str) -> ProgramOutput:
        """The real program; for doveconf of another version, what was captured of it."""
        if program == "doveconf" and not runs_doveconf(self._case.dovecot_version):
            return captured(self._case)
        return super().run(program, *arguments)

    def account(self, name: str, groups: Sequence[str] | None = None) -> Account:  # noqa: ARG002 - as of Host
        """One of ACCOUNTS, alone in its group."""
        return Account(name, ACCOUNTS[name], ACCOUNTS[name], frozenset({ACCOUNTS[name]}))

    def group(self, account: Account) -> str:
        """Called as the account, but for Postfix'."""
        return {"postfix": "mail"}.get(account.name, account.name)

    @contextmanager
    def acting_as(self, user: str, groups: Sequence[str] | None = None) -> Iterator[None]:  # noqa: ARG002 - as of Host
        """Its accounts are none of this machine's."""
        self.account(user or "root")
        yield

    def locate(self, path: str) -> Path:
        """Ours for the script and the interpreter's sake, the case's for its settings."""
        if path.startswith(_SCRIPTS):
            return shipped(path.replace(_SCRIPTS, "dovecot-hooks/"))
        if path.startswith(("/etc/pbs-policy/", "/etc/dovecot/")):
            return self._case.directory / Path(path).name
        return Path(path)

    def owned(self, path: str) -> Owned:
        """As described; a folder that is not is open to everybody."""
        found = self._owned.get(path)
        on_the_way = any(owned and each.startswith(f"{path.rstrip('/')}/") for each, owned in self._owned.items())
        if found is None and (path in _FOLDERS or (on_the_way and path not in self._owned)):
            return Owned(stat.S_IFDIR | 0o755, 0, 0)
        if found is None:
            raise FileNotFoundError(2, "No such file or directory", path)
        return found


def runs_doveconf(version: str) -> bool:
    """Whether the doveconf that is installed is of this version."""
    program = find_program("dovecot")
    if program is None or find_program("doveconf") is None:
        return False
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return said.startswith(f"{version}.")


def live(case: Case) -> ProgramOutput:
    """What the installed doveconf says of a case, without what differs from host to host."""
    said = Host().run("doveconf", "-n", "-P", "-c", str(case.directory / "dovecot.conf"))
    out = re.sub(r"(?m)^# .*\n", "", said.out)
    return ProgramOutput(out, said.err.replace(str(case.directory), "@CASE@"), said.status)


def captured(case: Case) -> ProgramOutput:
    """What was captured of doveconf: its output, or after a line `status N` its error."""
    text = (case.directory / "doveconf").read_text()
    failed = re.match(r"status (\d+)\n", text)
    if failed:
        return ProgramOutput("", text[failed.end() :].replace("@CASE@", str(case.directory)), int(failed[1]))
    return ProgramOutput(text, "", 0)


def cases(folder: str) -> list[Case]:
    """Those of `broken` or `sound`."""
    return [Case(each) for each in sorted((HERE / folder).iterdir()) if each.is_dir()]
