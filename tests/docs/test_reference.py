"""docs/reference.md has every line of the log and every exit status that there is, and none that there is not."""

from __future__ import annotations

import re

from tests.docs.log_lines import exit_statuses, script_lines, service_lines
from tests.pages import TOP

PAGE = (TOP / "docs" / "reference.md").read_text()


def rows(heading: str) -> list[str]:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `?(.*?)`? \|", section, re.MULTILINE)[1:]


def test_each_line_that_a_daemon_can_log_is_in_the_reference() -> None:
    listed = rows("Log lines of the service") + rows("Log lines of the recorder")
    assert sorted(listed) == sorted(service_lines())


def test_each_line_that_the_script_can_say_is_in_the_reference() -> None:
    assert sorted(rows("Log lines of the post-login script")) == sorted(script_lines())


def test_each_exit_status_is_in_the_reference() -> None:
    section = PAGE.partition("\n## Exit statuses\n")[2]
    listed = [int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)]
    assert listed == sorted(exit_statuses())
