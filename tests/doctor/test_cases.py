"""Broken installations, one fault each: doctor names the fault, its line and what mends it, and nothing else. Sound
ones: it finds nothing. The configurations go through the real postconf and doveconf."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from pbs_policy.programs import find_program
from tests.doctor import test_lists
from tests.doctor.fixing import ByHand, fix
from tests.doctor.installation import Case, captured, cases, live, runs_doveconf
from tests.doctor.page import CHECKS
from tests.doctor.real_ones import FAULTS

BROKEN, SOUND = cases("broken"), cases("sound")
BY_HAND = {
    "a-constant-refuses-everybody", "another-port-is-open",
    "absolute-path-in-the-chroot", "dns-list-of-dial-up-addresses",
    "mynetworks-has-all-of-10", "mynetworks-in-a-table", "no-socket",
    "no-such-mail-owner", "proxy-protocol-from-everywhere", "relay-domains-find-any-domain", "relay-domains-has-com",
    "socket-is-a-file", "socket-not-for-postfix", "wrong-port-in-a-variable", "xclient-at-one-entry",
    "xclient-for-a-network", "xclient-in-a-table",
}  # fmt: skip
"""What only the administrator can decide, or does outside of main.cf and master.cf."""

LEFT = {"only-a-greylist-is-asked": ["postfix.policy_services"], "class-in-an-access-table": ["postfix.access"]}
"""What is said after a fix that was not said before: it was not known then where ours is asked."""

WITH_DOVECOT = [case for case in [*BROKEN, *SOUND] if case.has_dovecot]


def need_postconf(case: Case) -> None:
    if case.has_postfix and find_program("postconf") is None:
        pytest.skip("postfix is not installed: apt-get install postfix")


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_doctor_names_the_fault_and_its_line_and_what_it_says_mends_it(case: Case, tmp_path: Path) -> None:
    need_postconf(case)
    (found,) = [finding for finding in case.findings() if finding.level != "good"]
    expected = case.expected()
    for name in ("check", "level", "place"):
        assert getattr(found, name) == expected[name], found
    assert expected["seen"] in found.seen
    assert expected["mend"] in found.mend
    if not case.has_postfix or case.has_dovecot:
        return
    of_postfix, names = case.name.removeprefix("postfix-"), ("main.cf", "master.cf")
    try:
        files = fix(found, ((case.directory / names[0]).read_text(), (case.directory / names[1]).read_text()))
    except ByHand:
        assert of_postfix in BY_HAND, found.mend
        return
    assert of_postfix not in BY_HAND
    shutil.copytree(case.directory, tmp_path, dirs_exist_ok=True)
    for name, text in zip(names, files, strict=True):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (1e9, 1e9))  # Postfix waits until a new one is seconds old
    left = [finding.check for finding in Case(tmp_path).findings() if finding.level != "good"]
    assert left == LEFT.get(of_postfix, []), found.mend


@pytest.mark.parametrize("case", SOUND, ids=lambda case: case.name)
def test_doctor_finds_nothing_wrong_with_a_sound_installation(case: Case) -> None:
    need_postconf(case)
    findings = case.findings()
    assert [finding for finding in findings if finding.level != "good"] == []
    checked = {finding.check for finding in findings}
    assert {"postfix.order", "postfix.default_action", "dovecot.recorded"} <= checked


@pytest.mark.parametrize("case", WITH_DOVECOT, ids=lambda case: case.name)
def test_what_was_captured_is_what_doveconf_says(case: Case) -> None:
    if not runs_doveconf(case.dovecot_version):
        assert (case.directory / "doveconf").exists()
        return
    said, known = live(case), captured(case)
    assert said.status == known.status
    if said.status:
        assert said.err.replace("@CASE@", str(case.directory)) == known.err
    else:
        assert said.out == known.out


def test_every_check_of_postfix_and_dovecot_has_a_broken_installation() -> None:
    named = {case.expected()["check"] for case in BROKEN}
    named |= set(re.findall(r"postfix\.\w+", str(test_lists.FOUND)))
    named |= {fault.said.rpartition(" ")[2] for fault in FAULTS.values()}
    named |= {"postfix.rewriting", "postfix.running"}  # about more than the configuration: test_postfix
    assert {name for name in CHECKS if name.startswith(("postfix.", "dovecot."))} <= named
    assert (len(BROKEN) >= 30, len(SOUND) >= 5) == (True, True)
