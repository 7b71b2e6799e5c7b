"""The service under runit and OpenRC, and as a container has it: what ships for them, run in a private root."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbs_policy.demo.daemons import wait_until
from pbs_policy.programs import find_program
from tests.docs.private_root import CHECKOUT, PrivateRoot
from tests.pages import TOP

FILES = TOP / "without-systemd"

# Our interpreter and checkout, which only root can reach, under the name that the program has where it is installed.
_INSTALL = f"""
set -e
useradd --system --no-create-home --shell /usr/sbin/nologin pbs-policy
chmod a+x /root {" ".join(str(each) for each in [*TOP.parents, *Path(sys.executable).parents] if str(each) != "/")}
find {Path(sys.executable).resolve().parent.parent} -maxdepth 0 -exec chmod a+x {{}} +
printf '#!/bin/sh\\nPYTHONPATH={TOP} PYTHONDONTWRITEBYTECODE=1 exec {sys.executable} -m pbs_policy "$@"\\n' \\
  >/usr/local/bin/pbs-policy
chmod 755 /usr/local/bin/pbs-policy
mkdir -p /etc/pbs-policy
# No Redis is there: that it answers "try again later" is enough to see.
echo 'redis_url = unix:///nonexistent/redis.sock' >/etc/pbs-policy/pbs-policy.conf
"""

TRY_LATER = 75


@pytest.fixture(scope="module")
def place() -> Iterator[PrivateRoot]:
    """A private root with the program installed, and its user."""
    if os.geteuid() != 0:
        pytest.skip("a private root needs root")
    if find_program("ip") is None:
        pytest.skip("ip is not installed: apt-get install iproute2")
    with PrivateRoot() as private:
        done = private.run(_INSTALL)
        assert done.returncode == 0, done.stdout
        yield private


def answers(place: PrivateRoot) -> bool:
    """Whether a service answers where the default says."""
    return place.run("pbs-policy query client_address=192.0.2.7").returncode == TRY_LATER


def processes(place: PrivateRoot) -> list[str]:
    """The process ids of the user's."""
    return place.run("pgrep -u pbs-policy -f 'pbs_policy serve'").stdout.split()


def test_runit_starts_reloads_and_replaces_it(place: PrivateRoot) -> None:
    if find_program("runsv") is None:
        pytest.skip("runit is not installed: apt-get install runit")
    place.run(f"mkdir -p /etc/sv; cp -r {CHECKOUT}/without-systemd/runit /etc/sv/pbs-policy")
    place.run("rm -r /etc/sv/pbs-policy/log")  # no syslog is there, and what it says is looked at
    place.start("runsv /etc/sv/pbs-policy")
    try:
        assert wait_until(lambda: answers(place)), place.run("cat /tmp/daemons").stdout
        (first,) = processes(place)
        place.run("echo 'ttl = 8h' >>/etc/pbs-policy/pbs-policy.conf")
        assert place.run("sv hup /etc/sv/pbs-policy").returncode == 0
        assert wait_until(lambda: "read anew: ttl='8h'" in place.run("cat /tmp/daemons").stdout)
        assert processes(place) == [first]
        place.run(f"kill -9 {first}")
        assert wait_until(lambda: processes(place) not in ([], [first]))
        assert wait_until(lambda: answers(place))
    finally:
        assert place.run("sv -w 10 force-shutdown /etc/sv/pbs-policy").returncode == 0
    assert processes(place) == []


@pytest.mark.long
def test_openrc_starts_reloads_and_replaces_it(place: PrivateRoot) -> None:
    if find_program("openrc-run") is None:
        pytest.skip("openrc is not installed: apt-get install openrc")
    script = "/etc/init.d/pbs-policy"
    place.run(f"cp {CHECKOUT}/without-systemd/openrc/pbs-policy {script}")
    # What a boot by OpenRC would have made.
    place.run(
        "cd /run && mkdir -p openrc && cd openrc && touch softlevel && mkdir -p starting started stopping inactive "
        "wasinactive failed hotplugged daemons options exclusive scheduled init.d tmp"
    )
    # Nothing that it depends on is a service of OpenRC here.
    started = place.run(f"{script} --nodeps start")
    assert started.returncode == 0, started.stdout
    try:
        assert wait_until(lambda: answers(place)), place.run("cat /tmp/daemons").stdout
        (first,) = processes(place)
        place.run("echo 'ttl = soon' >/etc/pbs-policy/pbs-policy.conf")
        refused = place.run(f"{script} --nodeps reload")
        assert refused.returncode != 0
        assert "pbs-policy.conf:1: ttl = soon" in refused.stdout
        place.run("echo 'redis_url = unix:///nonexistent/redis.sock' >/etc/pbs-policy/pbs-policy.conf")
        assert place.run(f"{script} --nodeps reload").returncode == 0
        assert processes(place) == [first]
        place.run(f"kill -9 {first}")
        assert wait_until(lambda: processes(place) not in ([], [first]))
        assert wait_until(lambda: answers(place))
    finally:
        # It waits for its supervisor to be buried, which the first process of this place does not do.
        place.run(f"timeout 10 {script} --nodeps stop")
    assert wait_until(lambda: processes(place) == [])


def test_it_runs_as_a_container_has_it(place: PrivateRoot) -> None:
    """Nobody's user, no capability, no new privileges, and nothing that can be written."""
    inside = (
        "mount --make-rprivate /; for each in / /tmp /run; do mount -o remount,ro,bind $each; done; "
        "exec setpriv --reuid=10040 --regid=10040 --clear-groups --no-new-privs --bounding-set=-all "
        "env PBS_LISTEN=inet:127.0.0.1:10041 PYTHONDONTWRITEBYTECODE=1 pbs-policy serve"
    )
    place.run(f"cat >/root/inside <<'E'\n{inside}\nE")
    place.start("unshare --mount sh /root/inside")
    query = "pbs-policy query --listener inet:127.0.0.1:10041 client_address=192.0.2.7"
    assert wait_until(lambda: place.run(query).returncode == TRY_LATER), place.run("cat /tmp/daemons").stdout
    (pid,) = place.run("pgrep -f 'pbs_policy serve'").stdout.split()
    status = place.run(f"cat /proc/{pid}/status").stdout
    assert re.search(r"^Uid:(\s+10040){4}$", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert place.run(f"nsenter -t {pid} -m -r touch /tmp/file").returncode != 0
    place.run(f"kill {pid}")
    assert wait_until(lambda: not place.run("pgrep -f 'pbs_policy serve'").stdout)


def test_the_containerfile_runs_what_there_is_as_somebody_else_than_root() -> None:
    text = (FILES / "Containerfile").read_text()
    assert re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE) == [("10040", "10040")]
    assert text.rstrip().endswith('CMD ["pbs-policy", "serve"]')
