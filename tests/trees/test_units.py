"""The units on a booted Debian, with its own systemd, Postfix and Redis: activation, reload, restarts under load."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbs_policy.demo.daemons import wait_until
from tests.trees.host import CLIENT, INSTALLED, MailHost

pytestmark = [pytest.mark.tree, pytest.mark.timeout(600)]

RESTARTS = int(os.environ.get("PBS_RESTARTS", "5"))

_INSTALL = f"""{INSTALLED}echo 'log_decisions = none' >/etc/pbs-policy/pbs-policy.conf
install -m 644 -t /etc/systemd/system systemd/pbs-policy.service systemd/pbs-policy.socket
systemctl daemon-reload
systemctl enable --now pbs-policy.socket pbs-policy 2>&1
redis-cli set pbs:login:{CLIENT} '1763881234 imap alice@example.com' ex 3000
"""

# Clients that do as Postfix does, for as long as a file is there; what became of them as JSON.
_LOAD = """
import json, os, socket, sys, threading, time
REQUEST = b"request=smtpd_access_policy\\nprotocol_state=RCPT\\nclient_address=192.0.2.7\\nsender=a@example.com\\n\\n"
seen = {"answered": 0, "deferred": 0, "closes": 0, "lost": 0, "longest": 0.0}
lock = threading.Lock()
def connect(place):
    made = socket.socket(socket.AF_UNIX if place.startswith("/") else socket.AF_INET)
    made.settimeout(60)  # a start waits for the CPU: what is late is no loss, and how late is said beside
    made.connect(place if place.startswith("/") else ("127.0.0.1", 10040))
    return made
def ask(client):
    client.sendall(REQUEST)
    reply = b""
    while not reply.endswith(b"\\n\\n"):
        data = client.recv(4096)
        if not data:
            raise ConnectionError("closed")
        reply += data
    if reply.startswith(b"action=DEFER_IF_REJECT"):  # Redis had no turn within 0.5 s: an answer, on a busy machine
        with lock:
            seen["deferred"] += 1
    elif reply != b"action=OK\\n\\n":
        raise ValueError(reply)
def run(place):
    client = None
    while os.path.exists("/run/load"):
        began = time.monotonic()
        for attempt in (1, 2):
            try:
                client = client or connect(place)
                ask(client)
                with lock:
                    seen["answered"] += 1
                break
            except (OSError, ValueError) as error:
                print(error, file=sys.stderr)
                client = None
                with lock:
                    seen["closes" if attempt == 1 else "lost"] += 1
                time.sleep(1 if attempt == 1 else 0)
        with lock:
            seen["longest"] = max(seen["longest"], time.monotonic() - began)
threads = [threading.Thread(target=run, args=(p,)) for p in ["tcp", "/var/spool/postfix/pbs-policy/policy"] * 8]
for each in threads: each.start()
for each in threads: each.join()
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def installed(host: MailHost) -> Iterator[MailHost]:
    """The service, installed by its units as the README says."""
    done = host.run(_INSTALL, seconds=500)
    assert done.returncode == 0, done.stdout
    (host.root / "root/load.py").write_text(_LOAD)
    yield host
    host.run("systemctl disable --now pbs-policy.socket pbs-policy; rm -f /etc/systemd/system/pbs-policy.*")


def shown(host: MailHost, name: str) -> str:
    return host.run(f"systemctl show -P {name} pbs-policy").stdout.strip()


def journal(host: MailHost) -> str:
    return host.run("journalctl -u pbs-policy").stdout


def ask(host: MailHost, where: str = "") -> str:
    return host.run(f"pbs-policy query client_address={CLIENT} sender=a@example.com {where}").stdout


def test_it_is_active_and_says_how_it_is(installed: MailHost) -> None:
    assert wait_until(lambda: shown(installed, "ActiveState") == "active"), journal(installed)
    assert wait_until(lambda: "Redis answers" in shown(installed, "StatusText"))
    assert shown(installed, "StatusText").startswith("listening on inet:127.0.0.1:10040 unix:/var/spool/postfix/")
    assert "warning" not in journal(installed)
    assert "error" not in journal(installed)


def test_the_unix_socket_has_the_mode_and_group_of_the_unit(installed: MailHost) -> None:
    stat = installed.run("stat -c '%a %G' /var/spool/postfix/pbs-policy/policy").stdout
    assert stat.strip() == "660 postfix"


def test_it_runs_as_its_user_without_a_privilege(installed: MailHost) -> None:
    pid = shown(installed, "MainPID")
    status = installed.run(f"cat /proc/{pid}/status").stdout
    uid = installed.run("id -u pbs-policy").stdout.strip()
    assert re.search(rf"^Uid:(\s+{uid}){{4}}$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)


@pytest.mark.parametrize("where", ["", "--listener unix:/var/spool/postfix/pbs-policy/policy"])
def test_it_answers_on_both_sockets(installed: MailHost, where: str) -> None:
    assert "OK" in ask(installed, where)


def test_a_reload_counts_and_one_with_a_fault_fails(installed: MailHost) -> None:
    installed.run("echo 'never_record = 192.0.2.0/24' >>/etc/pbs-policy/pbs-policy.conf")
    pid = shown(installed, "MainPID")
    assert installed.run("systemctl reload pbs-policy").returncode == 0
    assert wait_until(lambda: "DUNNO" in ask(installed))
    installed.run("echo 'ttl = soon' >>/etc/pbs-policy/pbs-policy.conf")
    assert installed.run("systemctl reload pbs-policy").returncode != 0
    assert "pbs-policy.conf:3: ttl = soon" in installed.run("journalctl -u pbs-policy -n 20").stdout
    assert "DUNNO" in installed.run(f"pbs-policy -c /dev/null query client_address={CLIENT}").stdout
    installed.run("echo 'log_decisions = none' >/etc/pbs-policy/pbs-policy.conf")
    assert installed.run("systemctl reload pbs-policy").returncode == 0
    assert wait_until(lambda: "OK" in ask(installed))
    assert shown(installed, "MainPID") == pid


def test_restarts_under_load_lose_nothing(installed: MailHost, tmp_path: Path) -> None:
    installed.run("touch /run/load; python3 /root/load.py >/run/load.out 2>/run/load.err </dev/null &")
    try:
        for _ in range(RESTARTS):
            done = installed.run("sleep 0.3; systemctl restart pbs-policy")
            assert done.returncode == 0, done.stdout + installed.run("journalctl -u pbs-policy -n 30").stdout
    finally:
        installed.run("rm -f /run/load")
    assert wait_until(lambda: bool(installed.run("cat /run/load.out").stdout.strip()), seconds=90)
    seen = json.loads(installed.run("cat /run/load.out").stdout)
    (tmp_path / "seen.json").write_text(json.dumps({"restarts": RESTARTS, **seen}))
    assert seen["answered"] > 1000
    assert seen["lost"] == 0, installed.run("cat /run/load.err").stdout


def test_the_first_connection_starts_it(installed: MailHost) -> None:
    installed.run("systemctl stop pbs-policy")
    assert shown(installed, "ActiveState") == "inactive"
    assert wait_until(lambda: "OK" in ask(installed))
    assert wait_until(lambda: shown(installed, "ActiveState") == "active")


def test_the_watchdog_restarts_a_service_that_hangs(installed: MailHost) -> None:
    installed.run(
        "mkdir -p /run/systemd/system/pbs-policy.service.d\n"
        "printf '[Service]\\nWatchdogSec=2\\n' >/run/systemd/system/pbs-policy.service.d/fast.conf\n"
        "echo 'log_decisions = none' >/etc/pbs-policy/pbs-policy.conf\n"
        "systemctl daemon-reload; systemctl restart pbs-policy"
    )
    pid = shown(installed, "MainPID")
    installed.run(f"kill -STOP {pid}")
    assert wait_until(lambda: shown(installed, "MainPID") not in (pid, "0"), seconds=15)
    assert wait_until(lambda: "OK" in ask(installed))
    installed.run("rm -r /run/systemd/system/pbs-policy.service.d; systemctl daemon-reload")


def test_the_password_is_a_credential_that_root_alone_can_read(installed: MailHost) -> None:
    done = installed.run(
        "set -e\n"
        "umask 077; echo wonderland >/etc/pbs-policy/redis_password; umask 022\n"
        "echo 'redis_password_file = /etc/pbs-policy/redis_password' >>/etc/pbs-policy/pbs-policy.conf\n"
        "mkdir -p /run/systemd/system/pbs-policy.service.d\n"
        "printf '[Service]\\nLoadCredential=redis_password:/etc/pbs-policy/redis_password\\n' "
        ">/run/systemd/system/pbs-policy.service.d/password.conf\n"
        "redis-cli config set requirepass wonderland\n"
        "systemctl daemon-reload; systemctl restart pbs-policy"
    )
    assert done.returncode == 0, done.stdout
    try:
        assert wait_until(lambda: "OK" in ask(installed)), installed.run("journalctl -u pbs-policy -n 20").stdout
        assert "OK" in installed.run(f"pbs-policy check {CLIENT}").stdout
    finally:
        installed.run(
            "redis-cli -a wonderland config set requirepass ''; rm -r /run/systemd/system/pbs-policy.service.d\n"
            "echo 'log_decisions = none' >/etc/pbs-policy/pbs-policy.conf; systemctl daemon-reload"
        )


def test_it_runs_without_a_user_of_its_own(installed: MailHost) -> None:
    """A host without Dovecot: nobody has made the user, and systemd makes one for as long as it runs."""
    installed.run("systemctl stop pbs-policy.socket pbs-policy; userdel pbs-policy")
    done = installed.run("systemctl start pbs-policy.socket pbs-policy")
    assert done.returncode == 0, installed.run("journalctl -u pbs-policy -n 20").stdout
    assert "OK" in ask(installed)
    assert installed.run("stat -c %U /proc/$(systemctl show -P MainPID pbs-policy)").stdout.strip() != "root"
