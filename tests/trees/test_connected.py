"""Users who stay connected, on a booted Debian: the recorder in its unit, beside Dovecot as it is packaged."""

from __future__ import annotations

import subprocess

import pytest

from pbs_policy.demo.daemons import wait_until
from tests.trees.host import CLIENT, INSTALLED, MAIL, PASSWORD, USER, MailHost

pytestmark = [pytest.mark.tree, pytest.mark.timeout(600)]

_INSTALL = f"""{INSTALLED}echo 'ttl = 9s' >/etc/pbs-policy/pbs-policy.conf
pbs-policy install-hook --apply 2>&1
install -m 644 dovecot-hooks/sessions.conf /etc/dovecot/conf.d/99-pbs-policy-sessions.conf
systemctl restart dovecot
install -m 644 -t /etc/systemd/system systemd/pbs-policy-record.service
systemctl daemon-reload
systemctl enable --now pbs-policy-record 2>&1
"""

_IDLE = f"""
import imaplib, ssl, sys
client = imaplib.IMAP4("{MAIL}", timeout=30)
client.starttls(ssl._create_unverified_context())
client.login("{USER}", "{PASSWORD}")
client.send(b"x IDLE\\r\\n")
print(client.readline(), flush=True)
sys.stdin.read()
"""


def test_the_unit_renews_the_login_of_who_is_connected(host: MailHost) -> None:
    done = host.run(_INSTALL, seconds=500)
    assert done.returncode == 0, done.stdout
    command = host.in_space(CLIENT, "python3", "-c", _IDLE)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline().startswith(b"b'+ idling")
            asked = f"redis-cli get pbs:login:{CLIENT}"
            assert wait_until(lambda: f" imap-session {USER}" in host.run(asked).stdout, seconds=30), _logs(host)
        finally:
            program.kill()
    assert "error" not in _logs(host)


def _logs(host: MailHost) -> str:
    return host.run("journalctl -u pbs-policy-record --no-pager -o cat").stdout
