"""Complete private installations, for the tests of this folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pbs_policy.demo.real import Site, installation
from pbs_policy.demo.service import PrivateService
from tests.conftest import need
from tests.patience import PatientService, be_patient


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is entered here is left with the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def folder(stack: ExitStack) -> Callable[[], Path]:
    """Make a folder that the script's user can enter."""

    def make() -> Path:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-")))
        directory.chmod(0o755)
        return directory

    return make


@pytest.fixture
def install(stack: ExitStack, folder: Callable[[], Path]) -> Callable[..., Site]:
    """Start Redis, service, Postfix and Dovecot with these settings. Service and script wait longer for Redis than as
    shipped, unless they are not to be `patient`."""
    need("redis", "postfix", "dovecot")

    def start(
        *, patient: bool = True, postfix_example: str = "main.cf.inet", chroot: bool = False, **settings: str
    ) -> Site:
        directory = folder()
        service = PatientService if patient else PrivateService
        lines = {"ttl": "5m", "log_decisions": "all"} | settings
        made = installation(directory, service, postfix_example=postfix_example, chroot=chroot, **lines)
        site = stack.enter_context(made)
        if patient:
            be_patient(directory)
        return site

    return start
