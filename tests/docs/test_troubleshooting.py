"""docs/troubleshooting.md: its keys are lines that real daemons log, and no line of a fault is without a key.

tests/logs/faults-*.log holds what Postfix 3.7 and 3.10, Dovecot 2.3 and 2.4 logged; tests/trees provokes it again.
"""

from __future__ import annotations

import re

import pytest

from tests.docs.log_lines import service_lines
from tests.pages import TOP

PAGE = (TOP / "docs" / "troubleshooting.md").read_text()
LOGS = {name: (TOP / "tests" / "logs" / f"faults-debian-{name}.log").read_text() for name in ("12", "13")}
OF_A_DAEMON = re.compile(r"(?:postfix/smtpd|dovecot)\[\d+\]: (.*)")
ORDINARY = re.compile(
    r"(dis)?connect from|\w{10,}: client=|(pop3|imap)-login: Log|(pop3|imap)\(.*Disconnected: Logged out"
    r"|master: Warning: (SIGHUP received|Killed with signal 15)"
)
"""What they also log where nothing is wrong."""


def keys(heading: str) -> list[str]:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^### `(.*)`$", section, re.MULTILINE)


def pattern(key: str) -> str:
    return re.escape(key).replace(r"\.\.\.", ".*")


def lines(name: str) -> list[str]:
    return [match[1] for line in LOGS[name].splitlines() if (match := OF_A_DAEMON.fullmatch(line))]


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("key", [*keys("Postfix"), *keys("Dovecot")])
def test_each_key_is_a_line_that_the_daemons_of_both_distributions_log(key: str, name: str) -> None:
    assert any(re.fullmatch(pattern(key), line) for line in lines(name))


@pytest.mark.parametrize("name", LOGS)
def test_each_line_of_a_fault_has_a_key(name: str) -> None:
    known = [pattern(key) for key in [*keys("Postfix"), *keys("Dovecot")]]
    assert len(known) > 15
    for line in lines(name):
        assert ORDINARY.match(line) or any(re.fullmatch(each, line) for each in known), line


def test_each_key_of_ours_is_a_line_that_the_service_logs() -> None:
    ours = {key for key in keys("pbs-policy") if key.startswith(("info: ", "warning: ", "error: "))}
    assert len(ours) > 5
    assert ours <= service_lines()


def test_each_check_of_doctor_that_the_page_names_is_one_that_doctor_makes() -> None:
    named = set(re.findall(r"`((?:postfix|dovecot|store|service|use)\.[a-z_]+)`", PAGE))
    made = "\n".join(file.read_text() for file in (TOP / "pbs_policy" / "doctor").glob("*.py"))
    assert len(named) > 10
    for name in named:
        assert f'"{name}"' in made, name
