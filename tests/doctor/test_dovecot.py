"""Doctor's checks of Dovecot's post-login services: a site's own script, and fixes followed by the letter."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pbs_policy.doctor.dovecot import check_logins
from pbs_policy.doctor.finding import Finding
from pbs_policy.doctor.script import _check_user
from pbs_policy.dovecot.logins import Hook, find_hooks
from pbs_policy.host import Host
from tests.doctor.fixing import ByHand
from tests.doctor.installation import Case, cases, runs_doveconf
from tests.doctor.test_dovecot_auth import Files, config_of

OWN = """\
protocols = imap
service imap {
  executable = imap imap-postlogin
}
service imap-postlogin {
  executable = script-login /usr/local/bin/own
  unix_listener imap-postlogin {
  }
}
"""


@pytest.mark.parametrize(
    ("script", "level"),
    [
        ("#!/bin/sh\nexec /usr/local/lib/pbs-policy/pbs-postlogin imap \"$@\"\n", "good"),
        ("#!/bin/sh\nredis-cli SET pbs:login:$IP ...\n", "good"),
        ("#!/bin/sh\nexec \"$@\"\n", "unknown"),
        ("", "unknown"),
    ],
)  # fmt: skip
def test_an_own_script_that_names_neither_ours_nor_the_table_is_not_called_good(script: str, level: str) -> None:
    findings = list(check_logins(config_of(OWN), [], [], Files(script)))
    (found,) = [each for each in findings if each.check == "dovecot.recorded" and "own" in each.seen]
    assert found.level == level


def test_an_own_script_for_both_protocols_is_said_once_and_needs_two_services() -> None:
    shared = OWN.replace("protocols = imap", "service pop3 {\n  executable = pop3 imap-postlogin\n}")
    findings = list(check_logins(config_of(shared), [], [], Files("#!/bin/sh\n")))
    (found,) = [each for each in findings if each.level != "good"]
    assert found.seen.startswith("whether pop3 and imap logins are recorded: /usr/local/bin/own")
    assert "a service for each protocol" in found.mend


def test_the_script_has_the_groups_of_its_service() -> None:
    ours = OWN.replace("/usr/local/bin/own", "/usr/local/lib/pbs-policy/pbs-postlogin imap")
    (hook,) = find_hooks(config_of(ours))
    assert hook.groups == ("",)
    words = "  user = daemon\n  group = mail\n  extra_groups = adm, tty\n"
    given = ours.replace("  unix_listener", f"{words}  unix_listener")
    (hook,) = find_hooks(config_of(given))
    assert hook.groups == ("mail", "adm", "tty")
    (hook,) = find_hooks(config_of(given.replace("= mail", "= $default_internal_group")))
    assert hook.groups == ("dovecot", "adm", "tty")


@pytest.mark.parametrize(("groups", "said"), [(("", "mail"), []), (("", "pbs-none"), ["not each of the groups"])])
def test_groups_that_are_not_there_are_named(groups: tuple[str, ...], said: list[str]) -> None:
    hook = Hook("imap", "imap-postlogin", "/none", (), "daemon", "dovecot.conf:5", groups=groups)
    found = [each.seen for each in _check_user(hook, Host()) if each.level != "good"]
    assert [each[: len(begin)] for each, begin in zip(found, said, strict=True)] == said


def fix(found: Finding, folder: Path) -> None:
    """Follow the fix, at its place. Raises ByHand."""
    name, _, number = found.place.partition(":")
    file, mend = folder / name, found.mend
    if not name or not file.is_relative_to(folder):
        raise ByHand(mend)
    lines = file.read_text().splitlines()
    at = int(number or len(lines)) - 1
    if match := re.fullmatch(r"(?:service \w+ \{ )?(executable = [^}]*?)(?: \} \(.*\))?", mend):
        if "executable" not in lines[at]:
            raise ByHand(mend)
        lines[at] = match[1]
    elif re.fullmatch(r"user = \S+", mend):
        lines[at] = mend if lines[at].strip().startswith("user") else f"{lines[at]}\n  {mend}"
    elif match := re.fullmatch(r"(unix_listener \S+ \{) \} in (service \S+)", mend):
        lines.append(f"{match[2]} {{\n  {match[1]}\n  }}\n}}")
    elif re.fullmatch(r"auth_policy_\w+ = \S+", mend):
        lines.append(mend)
    else:
        raise ByHand(mend)
    file.write_text("\n".join(lines) + "\n")


# What doctor says afterwards is asked of the Dovecot that is here.
HERE = "2.4" if runs_doveconf("2.4") else "2.3"
BROKEN = [
    case for case in cases("broken") if case.has_dovecot and not case.has_postfix and case.dovecot_version == HERE
]


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_what_doctor_says_of_dovecot_mends_it_where_it_is_followed_by_the_letter(case: Case, tmp_path: Path) -> None:
    if not runs_doveconf(HERE):
        pytest.skip("dovecot is not installed: apt-get install dovecot-core")
    (found,) = [finding for finding in case.findings() if finding.level != "good"]
    shutil.copytree(case.directory, tmp_path, dirs_exist_ok=True)
    try:
        fix(found, tmp_path)
    except ByHand:
        assert not found.mend.startswith(("executable =", "user =", "unix_listener"))
        return
    assert [finding for finding in Case(tmp_path).findings() if finding.level != "good"] == [], found.mend
