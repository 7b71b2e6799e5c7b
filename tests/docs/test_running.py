"""Every shell snippet of README and docs runs, as it stands there, on the real programs in a private root.

A line or a snippet that does not run here is named below with the reason. tests/trees types the tutorial in a booted
Debian, with systemd and a second host.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from pbs_policy.demo.daemons import wait_until
from pbs_policy.programs import find_program
from tests.conftest import need
from tests.docs.private_root import PrivateRoot
from tests.docs.wheels import fetch
from tests.pages import PAGES, TOP, Snippet, snippets

NOT_RUN = {
    "README.md:1": "it sets up the checkout and runs every test, this one as well",
    "docs/howto/monitoring.md:2": "the metrics are off where nothing is set; their own tests ask for them",
    "docs/fuzzing.md:1": "it fuzzes for minutes, and is for developers; tests/fuzz is run by `make test`",
    "docs/howto/debian.md:2": "it builds and installs a Debian package; `make matrix` does so in trees of its own",
    "docs/tutorial.md:8": "after a login from another host: tests/trees",
    "docs/tutorial.md:9": "after a login from another host: tests/trees",
}
"""Snippets of a shell that are run by nobody, and why."""

LINES_NOT_RUN = {
    r"(systemctl|journalctl) ": "no systemd runs here; tests/trees has one",
    r"apt-get ": "a package is installed by whoever runs the tests (.ci/run)",
}
"""Lines that are left out, and why."""

ASKED = {
    "pbs-policy": ("pbs-policy query client_address=192.0.2.7", 1),
    "pbs-policy-record": ("ss -ltn | grep -q 127.0.0.1:10041", 0),
}
"""What tells that a daemon of ours serves, by its exit status."""

STATUSES = {
    "pbs-policy check 192.0.2.7": {1},
    # 1 where Dovecot still runs the script, 0 where it was quicker to let it go.
    "pbs-policy install-hook --remove --apply": {0, 1},
    "pbs-policy install-hook --remove --apply; doveadm reload": {0},
    # Without a login there is nobody to show, and nothing to revoke.
    "pbs-policy doctor": {0, 1},
}
"""Exit statuses, where another than 0 is right."""

# What goes on running must not keep the pipe that our output goes to.
_DAEMONS = """
set -e
exec >/tmp/daemons 2>&1
cd /etc/dovecot/conf.d
if grep -q '/etc/dovecot/private/dovecot' 10-ssl.conf && [ ! -s /etc/dovecot/private/dovecot.pem ]; then
  rm -f /etc/dovecot/private/dovecot.*
  openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=mail.example.com \\
    -keyout /etc/dovecot/private/dovecot.key -out /etc/dovecot/private/dovecot.pem 2>/dev/null
fi
postconf -e inet_interfaces=loopback-only smtpd_peername_lookup=no maillog_file=/var/log/postfix.log
setsid redis-server --bind 127.0.0.1 --save '' &
$(postconf -h daemon_directory)/master -w
dovecot
"""


@pytest.fixture
def place() -> Iterator[PrivateRoot]:
    """A private root in which Redis, Postfix and Dovecot run, as the packages configured them."""
    need("redis", "postfix", "dovecot", "openssl")
    if find_program("ip") is None:
        pytest.skip("ip is not installed: apt-get install iproute2")
    with PrivateRoot() as private:
        version = private.run("/usr/bin/python3 -c 'import sys; print(*sys.version_info[:2], sep=\".\")'").stdout
        fetch(version.strip(), private.root)
        done = private.run(_DAEMONS)
        assert done.returncode == 0, (private.root / "tmp/daemons").read_text()
        yield private


def run(snippet: Snippet, place: PrivateRoot) -> None:
    """Run a snippet line by line; the service is started as its unit says."""
    shown = ""
    for line in snippet.text.replace("\\\n", "").splitlines():
        if line.startswith("systemctl enable --now ") and "pbs-policy" in line:
            name = "pbs-policy-record" if "pbs-policy-record" in line else "pbs-policy"
            unit = (place.root / f"etc/systemd/system/{name}.service").read_text()
            user, command = (re.search(rf"^{name}=(.*)$", unit, re.MULTILINE) for name in ("User", "ExecStart"))
            assert user
            assert command
            place.start(f"runuser -u {user[1]} -- {command[1]}")
            query, status = ASKED[name]
            assert wait_until(lambda: place.run(query).returncode == status)  # noqa: B023 - asked within the turn
        if line.startswith("systemctl disable --now ") and "pbs-policy" in line:
            place.run("pkill -u pbs-policy; while pgrep -u pbs-policy; do sleep 0.1; done")
        if any(re.match(left_out, line) for left_out in LINES_NOT_RUN):
            continue
        done = place.run(line.partition("  #")[0])
        shown += done.stdout
        assert done.returncode in STATUSES.get(line, {0}), f"{snippet.name}: {line}\n{done.stdout}"
    if all(not re.match(left_out, snippet.text.splitlines()[-1]) for left_out in LINES_NOT_RUN):
        for promise in snippet.promised:
            assert re.search(promise, " ".join(shown.split())), f"{snippet.name}: {shown}"


def of(page: str, *numbers: int) -> list[Snippet]:
    """Snippets of a page by their numbers."""
    return [snippets(TOP / page)[number - 1] for number in numbers]


SCENES = {
    "by hand": [*of("README.md", 3, 4), *of("docs/howto/many-logins.md", 1), *of("README.md", 5, 7)],
    "by the installers": [
        *of("docs/tutorial.md", 1, 2, 3),
        *of("docs/install.md", 1, 2),
        *of("docs/tutorial.md", 4),
        *of("docs/howto/debian.md", 1),
        *of("docs/howto/smtp-auth.md", 3, 5),
        *of("docs/tutorial.md", 4),
        *of("docs/tutorial.md", 11, 12),
    ],
    "the hook": of("dovecot-hooks/README.md", 1, 3, 5),
}
"""Which snippets run one after the other: some need what those before them have done."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("scene", SCENES)
def test_the_snippets_of_the_pages_run_as_they_stand_there(scene: str, place: PrivateRoot) -> None:
    for snippet in SCENES[scene]:
        run(snippet, place)


def test_each_shell_snippet_is_run_or_listed_with_the_reason() -> None:
    run_here = {snippet.name for scene in SCENES.values() for snippet in scene}
    for page in PAGES:
        for snippet in snippets(page):
            if snippet.kind == "sh":
                assert (snippet.name in run_here) != (snippet.name in NOT_RUN), snippet.name
