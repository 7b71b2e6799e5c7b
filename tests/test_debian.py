"""The Debian package says the same as the rest: version, dependencies, manual pages, settings."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from pbs_policy import __version__, settings
from pbs_policy.install.dovecot import _NEW_SETTINGS

TOP = Path(__file__).parent.parent
DEBIAN = TOP / "debian"
CONTROL = (DEBIAN / "control").read_text()


def test_the_changelog_begins_with_this_version() -> None:
    assert (DEBIAN / "changelog").read_text().startswith(f"pbs-policy ({__version__}) ")


def test_each_dependency_is_one_of_the_package_with_the_same_lower_bound() -> None:
    """But for hiredis: those of Debian 12 and 13 are too old to be used (`store/resp.py`)."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    package = CONTROL[CONTROL.index("\nDepends:") :].partition("\nRecommends:")[0]
    for dependency in project["dependencies"]:
        if dependency.startswith("hiredis"):
            assert (DEBIAN / "py3dist-overrides").read_text() == "hiredis\n", "dh_python3 asks for no package"
            continue
        name, bound = re.fullmatch(r"([\w-]+)>=([\d.]+).*", dependency).groups()  # type: ignore[union-attr]  # as written
        assert f" python3-{name} (>= {bound}),\n" in package, dependency
    assert f" python3 (>= {project['requires-python'].removeprefix('>=')}),\n" in package


def test_each_manual_page_is_where_path_finds_it() -> None:
    links = (DEBIAN / "pbs-policy.links").read_text()
    for page in (TOP / "docs/man").glob("*.[1-9]"):
        assert f"usr/share/man/man{page.suffix[1]}/{page.name} usr/share/pbs-policy/man/{page.name}\n" in links


def test_the_settings_file_changes_nothing() -> None:
    file = DEBIAN / "pbs-policy.conf"
    _, values = settings.load(file, {}, ())
    assert {name: value.text for name, value in values.items()} == {
        name: value.text for name, value in settings.defaults().items()
    }
    assert file.read_bytes().splitlines()[0] == _NEW_SETTINGS.splitlines()[0], "as install-hook writes it"


def test_the_licence_is_the_same_wherever_it_is_said() -> None:
    text = (TOP / "LICENSE").read_text()
    copyright_file = (DEBIAN / "copyright").read_text()
    assert "Copyright (c) 2026 the pbs-policy authors\n" in text
    assert "\nCopyright: 2026, the pbs-policy authors\nLicense: Expat\n" in copyright_file
    terms = text.partition("authors\n")[2].split()
    assert " ".join(terms) in " ".join(copyright_file.replace("\n .\n", "\n").split())
    assert tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["license"] == "MIT"


@pytest.mark.parametrize("script", sorted(DEBIAN.glob("*.p[or]*[mt]")), ids=lambda script: script.name)
def test_a_maintainer_script_can_be_parsed(script: Path) -> None:
    done = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


_STUB = """#!/bin/sh
echo "${{0##*/}} $*" >>{log}
{body}
"""


@pytest.mark.parametrize(
    ("postfix", "hook", "dovecot", "stays"),
    [
        ("exit 0", "exit 0", "", ""),
        ("exit 1", "exit 0", "", "Postfix would go on asking the policy service"),
        ("exit 78", "exit 0", "", "Postfix would go on asking the policy service"),
        ("exit 0", "exit 78", "", "Dovecot would go on asking for /usr/lib/pbs-policy/pbs-postlogin"),
        ("exit 0", "[ -e {log}.again ] || {{ touch {log}.again; exit 1; }}", "", ""),
        (
            "exit 0",
            "exit 0",
            "executable = script-login /usr/lib/pbs-policy/pbs-postlogin imap",
            "Dovecot would refuse",
        ),
    ],
    ids=["removed", "left-in-postfix", "refused-in-postfix", "refused-in-dovecot", "at-the-second-time", "named"],
)
def test_the_package_is_removed_with_our_words_in_postfix_and_dovecot_or_stays_and_says_why(
    tmp_path: Path, postfix: str, hook: str, dovecot: str, stays: str
) -> None:
    log = tmp_path / "log"
    bodies = {
        "pbs-policy": f'if [ "$1" = install-postfix ]; then {postfix}; else {hook.format(log=log)}; fi',
        "doveconf": f"echo '{dovecot}'",
        **dict.fromkeys(("postfix", "doveadm", "deb-systemd-invoke", "sleep"), ""),
    }
    for name, body in bodies.items():
        stub = tmp_path / name
        stub.write_text(_STUB.format(log=log, body=body))
        stub.chmod(0o755)
    prerm = DEBIAN / "pbs-policy.prerm"
    done = subprocess.run(
        ["sh", prerm, "remove"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, bool(done.stderr)) == ((1, True) if stays else (0, False)), done.stderr
    assert stays in done.stderr
    if stays:
        assert "not removed: " in done.stderr
    did = log.read_text()
    assert "pbs-policy install-postfix --remove --apply\n" in did
    assert ("postfix reload\n" in did) is postfix.endswith(" 0"), "nothing is told to a Postfix that still asks"


@pytest.mark.parametrize(
    ("called", "socket", "begun_anew"),
    [("triggered", "failed", True), ("triggered", "active", False), ("configure", "failed", False)],
)
def test_postfix_installed_later_has_the_sockets_opened(
    tmp_path: Path, called: str, socket: str, begun_anew: bool
) -> None:
    """By a trigger on Postfix's program: without its group the socket of its queue directory cannot be made."""
    assert (DEBIAN / "pbs-policy.triggers").read_text() == "interest-noawait /usr/sbin/postfix\n"
    log = tmp_path / "log"
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$*" >>{log}\n[ "$1" != is-failed ] || [ {socket} = failed ]\n')
    systemctl.chmod(0o755)
    postinst = (DEBIAN / "pbs-policy.postinst").read_text().replace("/run/systemd/system", str(tmp_path))
    subprocess.run(["sh", "-c", postinst, "postinst", called], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True)
    done = log.read_text().splitlines() if log.exists() else []
    anew = ["stop pbs-policy.service", "start pbs-policy.socket pbs-policy.service"]
    assert [line for line in done if line.startswith(("stop", "start"))] == (anew if begun_anew else [])
