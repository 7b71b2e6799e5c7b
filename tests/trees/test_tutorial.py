"""docs/tutorial.md, line by line as it stands there, on a booted Debian: each promise of the page is looked for."""

from __future__ import annotations

import re

import pytest

from pbs_policy.demo.daemons import wait_until
from tests.pages import TOP, Snippet, snippets
from tests.trees.host import PASSWORD, MailHost

pytestmark = [pytest.mark.tree, pytest.mark.timeout(600)]
STEPS = snippets(TOP / "docs" / "tutorial.md")


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_of_the_tutorial_shows_what_it_promises(step: Snippet, host: MailHost) -> None:
    assert step.kind in ("sh", "sh second-host")
    assert step.promised or step is STEPS[-1], "the reader is not told what to see"
    shown = ""
    for line in step.text.splitlines():
        if step.kind == "sh second-host":
            shown += host.elsewhere(line, typed=PASSWORD + "\n").stdout
        elif line.startswith("journalctl"):
            shown += _asked_until_it_is_there(host, line, step)
        else:
            shown += host.run(line).stdout
    for promise in step.promised:
        assert re.search(promise, " ".join(shown.split())), shown


def _asked_until_it_is_there(host: MailHost, line: str, step: Snippet) -> str:
    """As the page says of the log: what a service logs may come a moment later."""
    logged = ""

    def is_there() -> bool:
        nonlocal logged
        logged = host.run(line).stdout
        return re.search(step.promised[-1], logged) is not None

    wait_until(is_there, seconds=10)
    return logged
