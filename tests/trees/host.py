"""A mail host that a page can be tried on: a Debian tree, booted with its own systemd, and a second host beside it.

The law: the tree itself is never written to (an overlay takes the changes), nothing is reached but what is in here
(three network namespaces on one bridge, no way out), and everything ends with the context.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from pbs_policy.demo.daemons import wait_until
from tests.docs.wheels import fetch

TOP = Path(__file__).parent.parent.parent
MAIL, PROXY, CLIENT, OTHER, NEXT = (f"192.0.2.{last}" for last in (1, 5, 7, 8, 25))
"""The mail host, a place for a load balancer, two clients, and where the mail host sends what it relays."""

NAME, USER, PASSWORD = "mail.example.com", "alice@example.com", "wonderland"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = ("systemd-nspawn", "ip", "curl", "swaks", "smtp-sink", "haproxy", "nft")
PACKAGES = "apt-get install systemd-container iproute2 curl swaks postfix haproxy nftables"

INSTALLED = """
set -e
useradd --system --no-create-home --shell /usr/sbin/nologin pbs-policy
python3 -m venv /opt/pbs-policy
/opt/pbs-policy/bin/pip install -q . 2>&1
ln -s /opt/pbs-policy/bin/pbs-policy /usr/local/bin/
install -d /etc/pbs-policy
"""
"""How the package is installed by hand, before anything of it is started: in the checkout, as root."""

# What an administrator has done before the tutorial: Postfix and Dovecot take mail for alice@example.com. All
# that is not about users, domains and the way out stays as the packages made it.
_PREPARED = f"""
set -e
systemctl disable --now valkey-server 2>/dev/null && systemctl reset-failed && systemctl restart redis-server || true
useradd --create-home vmail
echo '{USER}:{{PLAIN}}{PASSWORD}' >/etc/dovecot/users
chgrp dovecot /etc/dovecot/users
chmod 640 /etc/dovecot/users
sed -i 's/^!include auth-system/#&/' /etc/dovecot/conf.d/10-auth.conf
postconf -e myhostname={NAME} mydestination=localhost virtual_mailbox_domains=example.com \\
  virtual_mailbox_maps=static:alice virtual_transport=discard: relayhost=[{NEXT}] \\
  smtpd_peername_lookup=no smtp_tls_security_level=
echo '{MAIL} {NAME} mail' >>/etc/hosts
systemctl restart postfix dovecot
"""

_DOVECOT = {
    "2.3": """mail_location = maildir:~/Maildir
passdb {
  driver = passwd-file
  args = /etc/dovecot/users
}
userdb {
  driver = static
  args = uid=vmail gid=vmail home=/home/vmail/%u
}
""",
    "2.4": """mail_driver = maildir
mail_path = ~/Maildir
mail_inbox_path =
passdb passwd-file {
  passwd_file_path = /etc/dovecot/users
}
userdb static {
  fields {
    uid = vmail
    gid = vmail
    home = /home/vmail/%{user}
  }
}
""",
}


def lacking() -> str | None:
    """What is missing to run these, or None."""
    if os.geteuid() != 0:
        return "booting a tree needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{' '.join(absent)} not installed: {PACKAGES}" if absent else None


class MailHost:
    """`tree` booted, with Postfix, Dovecot and Redis as packaged, and our checkout in /root/pbs-policy."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.dovecot = "2.3" if (tree / "usr/share/dovecot/conf.d/10-director.conf").exists() else "2.4"
        self._stack = ExitStack()
        self._space = f"pbs{os.getpid()}"
        self.place = Path()
        self.root = Path()
        self._init = 0

    def __enter__(self) -> Self:
        try:
            self._network()
            self._boot()
            self._prepare()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, script: str, *, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Run lines of a shell on the mail host, as root in the checkout."""
        command = ["nsenter", "-t", str(self._init), "-a", "/bin/bash", "-c", f"cd /root/pbs-policy\n{script}"]
        return subprocess.run(
            command,
            env={"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds,
        )  # fmt: skip

    def elsewhere(self, script: str, *, client: str = CLIENT, typed: str = "") -> subprocess.CompletedProcess[str]:
        """Run lines of a shell on the second host, which knows the mail host's name. `typed` is what it reads."""
        inside = f'mount --bind {self.place}/hosts /etc/hosts; exec bash -c "$1"'
        command = self.in_space(client, "unshare", "--mount", "sh", "-c", inside, "sh", script)
        return subprocess.run(
            command, input=typed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            # Without a terminal curl reads the password that it asks for from here.
            timeout=60, start_new_session=True,
        )  # fmt: skip

    def in_space(self, address: str, *command: str) -> list[str]:
        """The command line that runs this command with the network of that host, and the files of this machine."""
        return ["ip", "netns", "exec", self._space + self._named(address), *command]

    @staticmethod
    def _named(address: str) -> str:
        return "-" + address.rpartition(".")[2]

    def _network(self) -> None:
        def ip(*words: str) -> None:
            subprocess.run(["ip", *words], check=True)

        switch = self._space + "-0"
        ip("netns", "add", switch)
        self._stack.callback(ip, "netns", "del", switch)
        ip("-n", switch, "link", "add", "br0", "up", "type", "bridge")
        for address in (MAIL, PROXY, CLIENT, OTHER, NEXT):
            space = self._space + self._named(address)
            ip("netns", "add", space)
            self._stack.callback(ip, "netns", "del", space)
            port = "p" + address.rpartition(".")[2]
            ip(
                *("-n", switch, "link", "add", port, "up", "master", "br0"),
                *("type", "veth", "peer", "name", "eth0", "netns", space),
            )
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        sink = subprocess.Popen(
            self.in_space(NEXT, "smtp-sink", "-u", "nobody", f"{NEXT}:25", "10"), stderr=subprocess.DEVNULL
        )
        self._stack.callback(sink.wait)
        self._stack.callback(sink.kill)

    def _boot(self) -> None:
        self.place = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pbs-", dir="/var/tmp")))
        self.root = self.place / "root"
        for name in ("root", "changes", "work"):
            (self.place / name).mkdir()
        (self.place / "hosts").write_text(f"127.0.0.1 localhost\n{MAIL} {NAME}\n")
        layers = f"lowerdir={self.tree},upperdir={self.place}/changes,workdir={self.place}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.root], check=True)
        self._stack.callback(lambda: subprocess.run(["umount", self.root]))
        space = self._space + self._named(MAIL)
        console = self._stack.enter_context((self.place / "console").open("wb"))
        booting = subprocess.Popen(
            # The environment lets systemd 256 and later run on a kernel with the old control groups.
            ["systemd-nspawn", "-q", "-b", "-D", self.root, "--keep-unit", "--register=no", "--console=pipe",
             f"--network-namespace-path=/run/netns/{space}", "-E", "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"],
            stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._stack.callback(booting.wait)
        self._stack.callback(self._halt)

        def booted() -> bool:
            pgrep = ["pgrep", "-P", str(booting.pid), "-x", "systemd"]
            self._init = int(subprocess.run(pgrep, capture_output=True, text=True).stdout or 0)
            return bool(self._init) and self.run("true").returncode == 0 and self._state() in ("running", "degraded")

        (self.root / "root" / "pbs-policy").mkdir()
        assert wait_until(booted, seconds=60), (self.place / "console").read_text()

    def _state(self) -> str:
        return self.run("systemctl is-system-running").stdout.strip()

    def _halt(self) -> None:
        # The end of the first process is the end of all of that process namespace.
        if self._init:
            os.kill(self._init, 9)

    def _prepare(self) -> None:
        files = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, check=True, capture_output=True, text=True).stdout
        subprocess.run(
            ["cp", "--parents", "-t", self.root / "root/pbs-policy", *filter(None, files.split("\0"))],
            cwd=TOP, check=True,
        )  # fmt: skip
        version = self.run("python3 -c 'import sys; print(*sys.version_info[:2], sep=\".\")'").stdout.strip()
        fetch(version, self.root)
        (self.root / "etc/dovecot/conf.d/20-users.conf").write_text(_DOVECOT[self.dovecot])
        done = self.run(_PREPARED)
        assert done.returncode == 0, done.stdout
