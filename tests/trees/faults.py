"""`python -m tests.trees.faults TREE`: the faults of docs/troubleshooting.md on real daemons, and what these log.

Prints the lines that tests/logs/faults-*.log hold. A fault is what is done to a sound mail host; between two of them
everything is put back.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from pbs_policy.demo.daemons import wait_until
from tests.pages import TOP, snippets
from tests.trees.host import PASSWORD, USER, MailHost

CHECK = "smtpd_relay_restrictions"
_ASK = "timeout=2s, try_limit=2, { default_action = DEFER_IF_REJECT 4.3.0 relay permission cannot be checked now }"
_SCRIPT = "/usr/local/lib/pbs-policy/pbs-postlogin"
_DROP_IN = "/etc/dovecot/conf.d/99-pbs-policy.conf"
_STOP = "systemctl stop pbs-policy.socket pbs-policy"
# Without the units, which let the service listen where they say alone.
_LISTEN_UNIX = (
    f"{_STOP}; systemd-run --quiet --unit direct -p User=pbs-policy /usr/local/bin/pbs-policy "
    "--set listen=unix:/var/spool/postfix/pbs-policy/policy serve; "
    "for i in $(seq 100); do [ -S /var/spool/postfix/pbs-policy/policy ] && break; sleep 0.1; done"
)


@dataclass(frozen=True)
class Fault:
    """What is done wrong on the mail host, and what a client then does."""

    name: str
    wrong: str
    client: str = "send"


def _asks(where: str, options: str = _ASK) -> str:
    check = f"check_policy_service {{ {where}, {options} }}"
    wanted = f"permit_mynetworks, permit_auth_destination, {check}, reject_unauth_destination"
    return f"postconf -e '{CHECK} = {wanted}'; postfix reload"


def _stand_in(answer: str) -> str:
    """Something else that listens at the policy port, and answers each request with this."""
    program = f"""
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            if line == b"\\n":
                self.wfile.write(b"{answer}")
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("127.0.0.1", 10040), Handler).serve_forever()
"""
    return (
        f"{_STOP}; cat >/root/stand-in.py <<'END'\n{program}END\n"
        "systemd-run --quiet --unit stand-in python3 /root/stand-in.py; "
        "for i in $(seq 100); do ss -ltn | grep -q 127.0.0.1:10040 && break; sleep 0.1; done"
    )


FAULTS = [
    Fault("nobody has logged in", "true"),
    Fault("the service is stopped", _STOP),
    Fault("another port in main.cf", _asks("inet:127.0.0.1:10041")),
    Fault("the service hangs", "systemctl kill --signal=STOP pbs-policy"),
    Fault("Redis is stopped", "systemctl stop redis-server"),
    Fault(
        "an absolute path to a socket, chrooted",
        f"install -d -o pbs-policy -g postfix -m 2750 /var/spool/postfix/pbs-policy; {_LISTEN_UNIX}; "
        "postconf -F smtp/inet/chroot=y; " + _asks("unix:/var/spool/postfix/pbs-policy/policy"),
    ),
    Fault(
        "a socket that nobody made",
        f"{_STOP}; rm -rf /var/spool/postfix/pbs-policy; " + _asks("unix:pbs-policy/policy"),
    ),
    Fault(
        "a socket's folder that is closed to Postfix",
        f"install -d -o pbs-policy -m 700 /var/spool/postfix/pbs-policy; {_LISTEN_UNIX}; "
        + _asks("unix:pbs-policy/policy"),
    ),
    Fault("another service answers an empty action", _stand_in("action=\\n\\n")),
    Fault("another service answers something else", _stand_in("hello\\n\\n")),
    Fault("Redis' port in main.cf", _asks("inet:127.0.0.1:6379")),
    Fault("no braces around default_action", _asks("inet:127.0.0.1:10040", "default_action = DEFER_IF_REJECT later")),
    Fault(
        "nothing refuses",
        f"postconf -e '{CHECK} = permit_mynetworks, check_policy_service inet:127.0.0.1:10040'; postfix reload",
    ),
    Fault("the script is missing", f"rm {_SCRIPT}", "login"),
    Fault("the script is not executable", f"chmod -x {_SCRIPT}", "login"),
    Fault("two blanks in executable", f"sed -i 's/-login /-login  /' {_DROP_IN}; doveadm reload", "login"),
    Fault(
        "a user that there is not",
        f"sed -i 's/user = pbs-policy/user = pbspolicy/' {_DROP_IN}; systemctl restart dovecot",
        "login",
    ),
    Fault("Redis is stopped, at a login", "systemctl stop redis-server", "login"),
    Fault("Redis hangs, at a login", "systemctl kill --signal=STOP redis-server", "login"),
    Fault("a settings file that the script may not read", "chmod 600 /etc/pbs-policy/pbs-policy.conf", "login"),
    Fault("Redis asks for a password", "redis-cli config set requirepass secret", "login"),
    Fault("Redis takes no writes", "redis-cli replicaof 192.0.2.99 6379", "login"),
]

_SOUND = """
systemctl stop stand-in direct 2>/dev/null
systemctl kill --signal=CONT pbs-policy redis-server 2>/dev/null
systemctl stop pbs-policy.socket pbs-policy
rm -rf /etc/postfix /etc/dovecot /etc/pbs-policy /usr/local/lib/pbs-policy /var/spool/postfix/pbs-policy
tar -C / -xpf /root/sound.tar
systemctl start pbs-policy.socket
systemctl restart redis-server pbs-policy dovecot postfix
redis-cli flushall
until ss -ltn | grep -q :25 && ss -ltn | grep -q :993 && ss -ltn | grep -q :10040; do sleep 0.1; done
"""


def install(host: MailHost) -> None:
    """Follow the tutorial to where everything is in place, and remember that."""
    for step in snippets(TOP / "docs" / "tutorial.md"):
        done = host.run(step.text)
        if "install-postfix --apply" in step.text:
            break
    assert "written: /etc/postfix/main.cf" in done.stdout, done.stdout
    done = host.run("tar -C / -cpf /root/sound.tar etc/postfix etc/dovecot etc/pbs-policy usr/local/lib/pbs-policy")
    assert done.returncode == 0, done.stdout


def log_of(host: MailHost, fault: Fault) -> list[str]:
    """Put everything right, provoke the fault, and return what Postfix, Dovecot and pbs-policy logged then."""
    host.run("systemctl reset-failed 2>/dev/null; " + _SOUND)
    cursor = host.run("journalctl -q -n 1 --show-cursor | tail -1").stdout.partition("cursor: ")[2].strip()
    host.run(fault.wrong)
    if fault.client == "send":
        host.elsewhere(f"swaks --server mail.example.com --from {USER} --to bob@example.net --timeout 15")
    else:
        host.elsewhere(f"curl -s -m 10 --insecure --user {USER}:{PASSWORD} pop3s://mail.example.com/")
    lines: list[str] = []

    def settled() -> bool:
        before = len(lines)
        lines[:] = host.run(f"sleep 0.3; journalctl -q -o short --after-cursor='{cursor}'").stdout.splitlines()
        return len(lines) == before and bool(lines)

    wait_until(settled, seconds=8)
    said = [re.sub(r"^.*? (?=(postfix/|dovecot|pbs-policy)[\w/-]*\[\d+\]: )", "", line) for line in lines]
    return [line for line in said if re.match(r"postfix/smtpd|dovecot|pbs-policy\[", line)]


def main(tree: Path) -> None:
    """Print what is logged of every fault."""
    with MailHost(tree) as host:
        install(host)
        for fault in FAULTS:
            sys.stdout.write(f"# {fault.name}\n")
            sys.stdout.writelines(f"{line}\n" for line in log_of(host, fault))
            sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
