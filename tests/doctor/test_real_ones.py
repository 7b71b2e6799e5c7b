"""Installations like those that there are: doctor says of each what there is to say, finds its fault, and its fix is
one that can be followed by the letter: then nothing is wrong any more, and nothing of the site's own is lost."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from pbs_policy.doctor import Doctor
from pbs_policy.doctor.finding import Finding
from pbs_policy.host import Account, Host, Owned, ProgramOutput
from pbs_policy.postfix.restrictions import parse_restrictions
from pbs_policy.programs import find_program
from pbs_policy.settings import load
from tests.doctor.fixing import ByHand, Files, fix
from tests.doctor.page import PAGE, with_table
from tests.doctor.real_ones import FAULTS, SITES, Site

pytestmark = pytest.mark.skipif(
    not find_program("postconf"), reason="postfix is not installed: apt-get install postfix"
)

each_site = pytest.mark.parametrize("site", SITES.values(), ids=list(SITES))
_ELSEWHERE = ("mysql:", "pgsql:", "ldap:", "sqlite:", "socketmap:", "hash:")


class SiteHost(Host):
    """A host whose databases know no stranger; its unix socket is there, or not."""

    def __init__(self, socket: bool = True) -> None:
        self.socket = socket

    def run(self, program: str, *arguments: str) -> ProgramOutput:
        """The real programs, but for the tables of databases that are not here."""
        if program == "postmap" and arguments[-1].startswith(_ELSEWHERE):
            return ProgramOutput("", "", 1)
        return super().run(program, *arguments)

    def account(self, name: str, groups: Sequence[str] | None = None) -> Account:  # noqa: ARG002 - as of Host
        return Account(name, 101, 101, frozenset({101}))

    def group(self, account: Account) -> str:
        return account.name

    def owned(self, path: str) -> Owned:
        if not path.endswith("/policy"):
            return Owned(stat.S_IFDIR | 0o755, 0, 0)
        if not self.socket:
            raise FileNotFoundError(2, "No such file or directory", path)
        return Owned(stat.S_IFSOCK | 0o660, 103, 101)


def sound(site: Site) -> Files:
    return site.main_cf.replace("{ours}", site.ours), site.master_cf


def broken(site: Site) -> Files:
    """The site with its fault: each change is made where its words stand first, and has to be made somewhere."""
    fault, (main, master) = FAULTS[site.fault], sound(site)
    for old, new in fault.changes:
        if old in main:
            main = main.replace(old, new, 1)
        elif old in master:
            master = master.replace(old, new, 1)
    return main + fault.more, master


def examine(files: Files, site: Site, folder: Path, socket: bool = True) -> list[Finding]:
    for name, text in zip(("main.cf", "master.cf"), files, strict=True):
        file = folder / name
        file.write_text(f"compatibility_level = 3.6\n{text}" if name == "main.cf" else text)
        os.utime(file, (1e9, 1e9))  # Postfix waits until a new one is seconds old
    settings, values = load(Path("/dev/null"), overrides=[f"listen={site.listen}"])
    return list(Doctor(settings, values, str(folder), host=SiteHost(socket)).examine_postfix())


def said(findings: list[Finding]) -> Counter[str]:
    """What is not good, by level and check."""
    return Counter(f"{each.level} {each.check}" for each in findings if each.level != "good")


@each_site
def test_nothing_is_said_that_is_not_so_and_its_fault_is_found_with_a_fix_that_can_be_followed_and_harms_nothing(
    site: Site, tmp_path: Path
) -> None:
    findings = examine(sound(site), site, tmp_path)
    assert said(findings) == Counter(site.said), findings
    fault, files = FAULTS[site.fault], broken(site)
    findings = examine(files, site, tmp_path, socket=site.fault != "no socket")
    found, sites = said(findings), Counter(site.said)
    assert found[fault.said] == sites[fault.said] + 1, findings
    if fault.said != "wrong postfix.configuration":
        assert found - sites == Counter([fault.said]), findings
    (finding,) = [
        each for each in findings if fault.said == f"{each.level} {each.check}" and fault.said not in site.said
    ]
    place, seen, mend = fault.finding
    assert finding.mend
    assert finding.place == f"{tmp_path}/{place}" if place else finding.place
    assert (seen in finding.seen, mend in finding.mend) == (True, True), finding
    try:
        fixed = fix(finding, files)
    except ByHand:
        assert fault.by_hand, finding
        return
    assert not fault.by_hand, finding
    after = examine(fixed, site, tmp_path)
    assert said(after) == sites, (finding.mend, after)
    assert any((each.check, each.level) == ("postfix.smtpd", "good") for each in after)
    lost = plain_words(files[0]) - plain_words(fixed[0])
    assert not lost - plain_words(finding.mend) - plain_words(of_ours(files[0])), lost


def plain_words(text: str) -> set[str]:
    return set(re.findall(r"[^\s,{}=]+", text))


def of_ours(main_cf: str) -> str:
    """What our check is given, which may change."""
    return " ".join(each.argument for each in parse_restrictions(main_cf) if "1004" in each.argument)


def test_each_fault_is_tried() -> None:
    assert {site.fault for site in SITES.values()} == set(FAULTS)
    assert len(SITES) == 30


def test_the_page_has_the_table_of_these_tests() -> None:
    assert with_table(PAGE.read_text()) == PAGE.read_text(), "python -m tests.doctor.page"
