"""Each fault for a moment: nobody is harmed, and what users see is what docs/faults.md says."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from benchmarks.processes import cpu_seconds
from pbs_policy.demo.daemons import wait_until
from tests.conftest import need
from tests.faults import peer_faults
from tests.faults.every import FAULTS
from tests.faults.fault import SHORT, Fault
from tests.faults.observing import observe
from tests.faults.page import PAGE, documented
from tests.faults.peers import peers
from tests.faults.stage import FaultyService, Stage, action, stage
from tests.faults.watching import GOES_ON, INBOUND
from tests.patience import be_patient, patient_command

DOCUMENTED = documented(PAGE.read_text())

SLOW = {"450", "not recorded"}
"""What a machine that has too much to do makes of some, and never of all, where the page has others: it is of a quiet
one."""


@pytest.fixture(scope="module")
def site() -> Iterator[Stage]:
    need("redis", "postfix", "dovecot")
    with stage() as made:
        yield made


class PatientService(FaultyService):
    """A service that waits longer for Redis."""

    def own_command(self) -> list[str]:
        return patient_command(super().own_command())


@pytest.fixture(scope="module")
def patient_site() -> Iterator[Stage]:
    """For faults that are not Redis': on a busy machine it may need longer for an answer than it has."""
    need("redis", "postfix", "dovecot")
    with stage(PatientService) as made:
        be_patient(made.directory)
        yield made


@pytest.mark.parametrize("fault", FAULTS, ids=[each.name for each in FAULTS])
def test_users_see_what_the_page_says_when(fault: Fault, request: pytest.FixtureRequest) -> None:
    if lack := fault.lacks():
        pytest.skip(lack)
    site: Stage = request.getfixturevalue("patient_site" if fault in vars(peer_faults).values() else "site")
    # Once more where it is something else: a machine that has too much to do keeps Redis from answering in time, too.
    strange = strangers_to_the_page(fault, site) and strangers_to_the_page(fault, site)
    assert not strange


def strangers_to_the_page(fault: Fault, site: Stage) -> list[str]:
    """What users see of the fault and the page does not say. Raises AssertionError where anybody is harmed."""
    seen = observe(site, fault, SHORT)
    assert not seen.harm()
    assert sum(seen.answers.values()) >= 10, "hardly anything was asked"
    found = []
    for column, counts in seen.counts().items():
        assert counts, f"nothing was seen of: {column}"
        # What comes again and again meets whom it meets: in a short time, perhaps not all that the page names.
        said = DOCUMENTED[fault.name][column]
        as_said = (said - {GOES_ON}) & counts.keys()
        accepted = said | SLOW if as_said and column != INBOUND else said
        found += [f"{column}: {each}, and the page says {sorted(said)}" for each in counts if each not in accepted]
    return found


def test_the_page_has_each_fault_and_no_other() -> None:
    assert list(DOCUMENTED) == [each.name for each in FAULTS]


def test_a_service_without_a_descriptor_waits_and_then_accepts_again(site: Stage) -> None:
    if lack := peer_faults.lacks_prlimit():
        pytest.skip(lack)
    limit = peer_faults.DESCRIPTORS
    with site.other_service("prlimit", f"--nofile={limit}:{limit}"):
        with peers("idle", site.service.listeners[0], limit * 3):
            before, began = cpu_seconds(site.service.pid), time.monotonic()
            assert not wait_until(lambda: cpu_seconds(site.service.pid) - before > 0.5, seconds=1), "it spins"
            assert time.monotonic() - began >= 1
        assert wait_until(lambda: action(site) == "OK")
