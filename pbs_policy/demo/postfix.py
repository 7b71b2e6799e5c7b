"""A private Postfix that takes mail and lets none leave, and a client that comes from any address.

The law is that of `daemons.py`. What the restrictions let through goes to the discard(8) transport, for our
own domain as well as for a relayed message: it can answer a relay attempt with 250 and still send nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pbs_policy.demo.conversation import Conversation
from pbs_policy.demo.daemons import DaemonError, OpenPlace
from pbs_policy.demo.ports import free_port, greets, has_ipv6
from pbs_policy.programs import find_program, missing

LOCAL_DOMAIN = "local.example"
"""The domain that the private Postfix takes mail for; any other recipient is a relay attempt."""

# Only the parts of a stock master.cf that a message passes on its way from smtpd to discard. Without pickup
# there is no way in but SMTP.
_MASTER_CF = """\
{smtpd}
cleanup   unix       n  -  n  -  0  cleanup
qmgr      unix       n  -  n  300  1  qmgr
rewrite   unix       -  -  n  -  -  trivial-rewrite
bounce    unix       -  -  n  -  0  bounce
defer     unix       -  -  n  -  0  bounce
trace     unix       -  -  n  -  0  bounce
error     unix       -  -  n  -  -  error
retry     unix       -  -  n  -  -  error
discard   unix       -  -  n  -  -  discard
anvil     unix       -  -  n  -  1  anvil
proxymap  unix       -  -  n  -  -  proxymap
postlog   unix-dgram n  -  n  -  1  postlogd
"""

_MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {place}/queue
data_directory = {place}/data
maillog_file = {log}
maillog_file_prefixes = {log}
inet_interfaces = {interfaces}
# Also where ::1 cannot be listened on: otherwise XCLIENT takes no IPv6 address.
inet_protocols = all
myhostname = mx.{domain}
mydestination = {domain}
local_recipient_maps =
alias_maps =
alias_database =
local_transport = discard:
default_transport = discard:
relay_transport = discard:
# Nobody is trusted for the address alone, not even this machine: only the restrictions let a client relay.
mynetworks =
smtpd_authorized_xclient_hosts = 127.0.0.0/8, [::1]
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
"""

# Postfix' own owner and modes of these folders (the postfix-files list of its distribution).
_QUEUE_FOLDERS = ("active", "bounce", "corrupt", "defer", "deferred", "hold", "incoming", "private", "trace")


class PrivatePostfix(OpenPlace):
    """A Postfix `master -d` with its own configuration, queue, data and log, on a port of 127.0.0.1 and ::1.

    `fragment` is the text of a main.cf fragment, such as one of `postfix-examples/`, with the policy
    service's address put in place; it is appended as it is. `chroot=True` runs smtpd chrooted in
    `queue_directory`, as Debian does; a relative `unix:` path is found below that directory either way.
    """

    def __init__(self, directory: Path, *, fragment: str, chroot: bool = False) -> None:
        super().__init__("postfix", directory)
        self.port = free_port()
        self.queue_directory = self.place / "queue"
        self._fragment = fragment
        self._chroot = chroot

    def command(self) -> list[str]:
        """Write the instance's files and return the command line (master(8): -d stays in the foreground)."""
        reason = missing("postfix")
        if reason is not None:
            raise DaemonError(reason)
        built_in = _built_in_settings("daemon_directory", "mail_owner", "setgid_group")
        self._make_folders(built_in["mail_owner"], built_in["setgid_group"])
        configuration = self.place / "conf"
        configuration.mkdir(exist_ok=True)
        ipv6 = has_ipv6()
        main_cf = _MAIN_CF.format(
            place=self.place,
            log=self.log_file,
            domain=LOCAL_DOMAIN,
            interfaces="127.0.0.1, ::1" if ipv6 else "127.0.0.1",
        )
        hosts = ["127.0.0.1", "[::1]"] if ipv6 else ["127.0.0.1"]
        jail = "y" if self._chroot else "n"
        smtpd = "\n".join(f"{host}:{self.port} inet n - {jail} - - smtpd" for host in hosts)
        (configuration / "main.cf").write_text(main_cf + self._fragment, encoding="utf-8")
        (configuration / "master.cf").write_text(_MASTER_CF.format(smtpd=smtpd), encoding="utf-8")
        # Postfix reads main.cf again and again until it is a few seconds old, in case its writer is not done.
        written = time.time() - 60
        os.utime(configuration / "main.cf", (written, written))
        return [f"{built_in['daemon_directory']}/master", "-c", str(configuration), "-d"]

    def _make_folders(self, owner: str, setgid_group: str) -> None:
        self.queue_directory.mkdir(exist_ok=True)
        self.queue_directory.chmod(0o755)
        (self.queue_directory / "pid").mkdir(exist_ok=True)
        for folder in (self.place / "data", *(self.queue_directory / name for name in _QUEUE_FOLDERS)):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o700)
            shutil.chown(folder, owner)
        public = self.queue_directory / "public"
        public.mkdir(exist_ok=True)
        shutil.chown(public, owner, setgid_group)
        public.chmod(0o2710)

    def is_ready(self) -> bool:
        """Whether smtpd greets its clients."""
        return greets(self.port, b"220 ")

    def has_failed(self) -> bool:
        """Whether smtpd cannot live with its configuration; master would try again every minute, for ever."""
        return "bad command startup -- throttling" in self.log_text()


def _built_in_settings(*names: str) -> dict[str, str]:
    """Return Postfix' compiled-in values, whatever this machine's own main.cf says (postconf(1), -d)."""
    program = find_program("postconf") or "postconf"
    done = subprocess.run([program, "-d", *names], capture_output=True, text=True, check=True)
    return dict(line.split(" = ", 1) for line in done.stdout.splitlines())


@dataclass(frozen=True)
class SmtpAttempt:
    """The reply to RCPT, or to the end of the message if that was sent, and the transcript."""

    code: int
    text: str
    transcript: list[str]


def attempt_relay(
    port: int,
    client_address: str,
    sender: str,
    recipient: str,
    *,
    host: str = "127.0.0.1",
    message: str | None = None,
) -> SmtpAttempt:
    """Speak SMTP as a client from `client_address`, up to the RCPT reply; with a `message`, to the end of it.

    Postfix believes the address because of its XCLIENT extension (XCLIENT_README). A refused RCPT is a
    result, no error. Raises ConnectionError if Postfix hangs up, or refuses something before RCPT.
    """
    with Conversation(host, port) as client:
        _expect(client, None, 2)
        _expect(client, "EHLO client.example.net", 2)
        prefix = "IPV6:" if ":" in client_address else ""
        _expect(client, f"XCLIENT NAME=[UNAVAILABLE] ADDR={prefix}{client_address}", 2)
        _expect(client, "EHLO client.example.net", 2)
        _expect(client, f"MAIL FROM:<{sender}>", 2)
        client.send(f"RCPT TO:<{recipient}>")
        code, text = _read_reply(client)
        if message is not None and code == 250:
            _expect(client, "DATA", 3)
            for line in message.splitlines():
                # A leading dot is doubled: RFC 5321 section 4.5.2.
                client.send("." + line if line.startswith(".") else line)
            client.send(".")
            code, text = _read_reply(client)
        _expect(client, "QUIT", 2)
        return SmtpAttempt(code, text, client.transcript)


def _read_reply(client: Conversation) -> tuple[int, str]:
    lines = [client.read_line()]
    while lines[-1][3:4] == "-":
        lines.append(client.read_line())
    return int(lines[-1][:3]), "\n".join(line[4:] for line in lines)


def _expect(client: Conversation, line: str | None, first_digit: int) -> None:
    if line is not None:
        client.send(line)
    code, text = _read_reply(client)
    if code // 100 != first_digit:
        raise ConnectionError(f"{code} {text}; so far:\n" + "\n".join(client.transcript))
