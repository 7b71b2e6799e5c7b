"""The story, told by the daemons of a Debian as its packages configure them: run in a tree by its own
/usr/bin/python3, as root, alone in a network. Nothing but the standard library, and pbs-policy as it was installed.

    inside.py STORE [remove-package]

STORE is redis or valkey. Each step is a line of JSON on standard output; exit status 1 where one of them failed. With
`remove-package` the Debian package is removed and purged at the end; otherwise both installers take things out again.
"""

from __future__ import annotations

import contextlib
import imaplib
import json
import os
import poplib
import pwd
import re
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

SERVER = {4: "192.0.2.1", 6: "2001:db8::1"}
CLIENT = {4: "192.0.2.10", 6: "2001:db8::10"}
STRANGER = {4: "192.0.2.99", 6: "2001:db8::99"}
TTL = 8
SETTINGS = Path("/etc/pbs-policy/pbs-policy.conf")
LOCAL, REMOTE = "bob@example.org", "bob@example.net"
USER, PASSWORD = "alice", "correct horse"  # of a Debian that lives for a minute, without a network


def say(**fact: object) -> None:
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


class Failed(Exception):
    """A step did not go as it should."""


def run(*command: str, accept: tuple[int, ...] = (0,)) -> str:
    """What the command says on both streams. Raises Failed for another exit status."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode not in accept:
        raise Failed(f"{' '.join(command)}: status {done.returncode}: {(done.stdout + done.stderr).strip()[-1500:]}")
    return done.stdout + done.stderr


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(0.05)


class Daemon:
    """A daemon in the foreground under its own user, as its unit runs it."""

    def __init__(self, name: str, user: str, *command: str) -> None:
        self.user, self.command = user, command
        self.log = Path(f"/var/log/matrix-{name}.log")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its log begins anew."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                user=self.user, group=pwd.getpwnam(self.user).pw_gid, extra_groups=[], start_new_session=True,
            )  # fmt: skip

    def stop(self) -> None:
        """End it, and wait for that."""
        if self.process is None:
            raise Failed(f"{self.command[0]} does not run")
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


def set_up_network() -> None:
    run("ip", "link", "set", "lo", "up")
    for address in (*SERVER.values(), *CLIENT.values(), *STRANGER.values()):
        run("ip", "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))


def answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), 2):
        return True
    return False


def store_daemon(store: str) -> Daemon:
    for folder in (f"/run/{store}", f"/var/log/{store}"):
        Path(folder).mkdir(exist_ok=True)
        os.chown(folder, pwd.getpwnam(store).pw_uid, pwd.getpwnam(store).pw_gid)
    options = ["--daemonize", "no", "--supervised", "no", "--logfile", "", "--save", ""]
    return Daemon(store, store, f"/usr/bin/{store}-server", f"/etc/{store}/{store}.conf", *options)


def set_up_dovecot() -> str:
    version = run("dovecot", "--version").split()[0]
    plain = "disable_plaintext_auth = no" if version.startswith("2.3") else "auth_allow_cleartext = yes"
    Path("/etc/dovecot/local.conf").write_text(f"{plain}\nssl = no\nlog_path = /var/log/dovecot.log\n")
    run("useradd", "--create-home", USER)
    subprocess.run(["chpasswd"], input=f"{USER}:{PASSWORD}\n", text=True, check=True)
    mailbox = Path("/var/mail") / USER
    mailbox.touch()
    os.chown(mailbox, pwd.getpwnam(USER).pw_uid, pwd.getpwnam("mail").pw_gid)
    mailbox.chmod(0o660)
    return version


def set_up_postfix() -> str:
    Path("/etc/mailname").write_text("mail.example.org\n")
    run(
        "postconf", "-e", "myhostname = mail.example.org", "mydestination = example.org", "inet_interfaces = all",
        "inet_protocols = all", "local_recipient_maps =", "local_transport = discard:",
        "default_transport = discard:", "relay_transport = discard:", "smtpd_peername_lookup = no",
        "maillog_file = /var/log/mail.log",
    )  # fmt: skip
    return run("postconf", "-dh", "mail_version").strip()


def relay(client: dict[int, str], family: int, recipient: str = REMOTE) -> int:
    """The reply code to RCPT; a message that may go is sent to the end."""
    source = (client[family], 0)
    with smtplib.SMTP(SERVER[family], 25, "client.example.com", timeout=30, source_address=source) as connection:
        connection.ehlo()
        connection.mail(f"{USER}@example.com")
        code, _ = connection.rcpt(recipient)
        if code == 250:
            code, _ = connection.data(b"Subject: a message\r\n\r\nPermitted because of a login.\r\n")
        return code


class _AtClient:
    """A client at the address of its family."""

    def __init__(self, family: int) -> None:
        self.family = family
        super().__init__(SERVER[family])  # type: ignore[call-arg]  # of the class beside this one

    def _create_socket(self, timeout: float | None = None) -> socket.socket:  # noqa: ARG002 - the libraries say so
        return socket.create_connection((self.host, self.port), 30, (CLIENT[self.family], 0))  # type: ignore[attr-defined]


class Pop3(_AtClient, poplib.POP3): ...


class Imap(_AtClient, imaplib.IMAP4): ...


def pop3(family: int) -> None:
    """A login; raises where it is refused."""
    client = Pop3(family)
    client.user(USER)
    client.pass_(PASSWORD)
    client.quit()


def imap(family: int) -> None:
    """A login; raises where it is refused."""
    client = Imap(family)
    client.login(USER, PASSWORD)
    client.logout()


def expect(seen: object, *wanted: object) -> None:
    """Raise Failed for anything else."""
    if seen not in wanted:
        raise Failed(f"seen {seen}, expected {' or '.join(map(str, wanted))}")


REFUSED, DEFERRED = (454, 554), (450, 454)


class Story:
    """The steps, in their order; each raises where it does not go as it should."""

    def __init__(self, store: str, remove_package: bool) -> None:
        self.store = store_daemon(store)
        self.service = Daemon("pbs-policy", "pbs-policy", "/usr/bin/env", "pbs-policy", "serve")
        self.dovecot = Daemon("dovecot", "root", "/usr/sbin/dovecot", "-F")
        self.remove_package = remove_package
        self.main_cf = b""

    def steps(self) -> Iterator[tuple[str, Callable[[], None]]]:
        yield "the store answers", self.start_store
        yield "pbs-policy check, config and path work", self.look
        yield "the service is ready", self.start_service
        yield "Dovecot and Postfix run as their packages have them", self.start_daemons
        yield "install-hook --apply, doveadm reload", self.install_hook
        yield "install-postfix --apply, postfix reload", self.install_postfix
        yield "doctor finds nothing wrong", self.doctor
        for family, login in ((4, pop3), (6, imap)):
            name = f"{login.__name__.upper()} over IPv{family}"
            yield f"{name}: a client without a login is refused", partial(self.refused, family)
            yield f"{name}: a login permits, only from its address", partial(self.permitted, family, login)
            yield f"{name}: the permission lapses after the ttl", partial(self.lapses, family)
        yield "the store is stopped: logins go on, relaying waits, inbound mail is untouched", self.without_store
        yield "the store is back: a login permits again", partial(self.permitted, 4, pop3)
        yield "the service is stopped: relaying waits, inbound mail is untouched", self.without_service
        yield "the service is back: a login permits again", self.with_service
        if self.remove_package:
            yield "the package is put over itself, as an upgrade does it: logins go on and permit", self.upgrade
            yield "the package does not go while Dovecot's configuration has a fault", self.refuse_removal
            yield "the package is removed: logins go on, main.cf is as it was", self.remove
            yield "the package is purged: no file of it is left", self.purge
        else:
            yield "both installers take everything out again", self.take_out

    def start_store(self) -> None:
        self.store.start()
        wait_until(lambda: answers("127.0.0.1", 6379), "the store answers")

    def look(self) -> None:
        SETTINGS.write_text(f"{SETTINGS.read_text()}ttl = {TTL}s\n")
        expect(run("pbs-policy", "config", "ttl").strip(), f"ttl = {TTL}s")
        if not Path(run("pbs-policy", "path", "dovecot-hooks").strip(), "pbs-postlogin").is_file():
            raise Failed("the script is not where `pbs-policy path dovecot-hooks` says")
        out = run("pbs-policy", "check", CLIENT[4], accept=(1,))
        if "DUNNO" not in out:
            raise Failed(out)

    def start_service(self) -> None:
        self.service.start()
        wait_until(lambda: "ready" in self.service.log.read_text(), "the service says that it is ready")

    def start_daemons(self) -> None:
        self.main_cf = Path("/etc/postfix/main.cf").read_bytes()
        run("postfix", "start")
        self.dovecot.start()
        for port in (25, 110, 143):
            wait_until(partial(answers, SERVER[4], port), f"port {port} answers")
        pop3(4)

    def install_hook(self) -> None:
        run("pbs-policy", "install-hook", "--apply")
        run("doveadm", "reload")

    def install_postfix(self) -> None:
        run("pbs-policy", "install-postfix", "--apply")
        run("postfix", "reload")

    def doctor(self) -> None:
        # 1 is a warning: a ttl of seconds, say. 2 is a fault.
        run("pbs-policy", "doctor", accept=(0, 1))

    def refused(self, family: int) -> None:
        expect(relay(CLIENT, family), *REFUSED)

    def permitted(self, family: int, login: Callable[[int], None]) -> None:
        def relayed() -> bool:
            login(family)
            return relay(CLIENT, family) == 250

        wait_until(relayed, "a login permits")  # Dovecot and Postfix take a moment for their new configuration
        expect(relay(STRANGER, family), *REFUSED)
        expect(relay(STRANGER, family, LOCAL), 250)
        listed = run("pbs-policy", "list", "-o", "tsv")
        if not re.search(rf"(?m)^login\t{re.escape(CLIENT[family])}\t{USER}\t", listed):
            raise Failed(f"pbs-policy list: {listed}")

    def lapses(self, family: int) -> None:
        start = time.monotonic()
        wait_until(lambda: relay(CLIENT, family) in REFUSED, "refused again", 3 * TTL)
        if time.monotonic() - start > TTL + 2:
            raise Failed("the permission outlived its ttl")

    def without_store(self) -> None:
        self.store.stop()
        pop3(4)
        imap(6)
        expect(relay(CLIENT, 4), *DEFERRED)
        expect(relay(CLIENT, 4, LOCAL), 250)
        self.start_store()

    def without_service(self) -> None:
        self.service.stop()
        expect(relay(CLIENT, 4), *DEFERRED)
        expect(relay(CLIENT, 4, LOCAL), 250)

    def with_service(self) -> None:
        self.start_service()
        self.permitted(4, pop3)

    def take_out(self) -> None:
        run("pbs-policy", "install-postfix", "--remove", "--apply")
        run("postfix", "reload")
        run("pbs-policy", "install-hook", "--remove", "--apply", accept=(0, 1))
        run("doveadm", "reload")

        # The script outlives the drop-in for as long as Dovecot, which is being reloaded, asks for it.
        wait_until(
            lambda: "Nothing to remove" in run("pbs-policy", "install-hook", "--remove", "--apply", accept=(0, 1)),
            "the script goes when Dovecot has forgotten it",
        )
        self.as_before()

    def as_before(self) -> None:
        expect(Path("/etc/postfix/main.cf").read_bytes() == self.main_cf, True)
        if Path("/etc/dovecot/conf.d/99-pbs-policy.conf").exists():
            raise Failed("the drop-in is still there")
        wait_until(lambda: relay(CLIENT, 4) in REFUSED, "Postfix relays for nobody")
        pop3(4)
        imap(6)

    def upgrade(self) -> None:
        own = SETTINGS.read_text()
        for package in Path("/root").glob("pbs-policy_*.deb"):
            run("dpkg", "--install", str(package))
        expect(SETTINGS.read_text(), own)
        self.permitted(6, imap)

    def refuse_removal(self) -> None:
        by_hand = Path("/etc/dovecot/conf.d/95-by-hand.conf")
        by_hand.write_text("no_such_setting = yes\n")
        said = run("apt-get", "remove", "-y", "pbs-policy", accept=(100,))
        by_hand.unlink()
        if "not removed: Dovecot would go on asking for" not in said:
            raise Failed(said)
        expect("ok installed" in run("dpkg", "-s", "pbs-policy"), True)
        run("doveadm", "reload")
        # What the first attempt has undone is done again, for the next.
        self.install_postfix()
        self.permitted(4, pop3)

    def remove(self) -> None:
        run("apt-get", "remove", "-y", "pbs-policy")
        self.as_before()
        expect(SETTINGS.exists(), True)

    def purge(self) -> None:
        run("apt-get", "purge", "-y", "pbs-policy")
        for left in (SETTINGS, Path("/usr/lib/pbs-policy"), Path("/var/lib/pbs-policy"), Path("/usr/bin/pbs-policy")):
            if left.exists():
                raise Failed(f"{left} is still there")
        pop3(4)


def main() -> int:
    """Tell the story; returns the exit status."""
    set_up_network()
    postfix, dovecot = set_up_postfix(), set_up_dovecot()
    store = run(f"/usr/bin/{sys.argv[1]}-server", "--version")
    found = re.search(r"v=([0-9.]+)", store)
    say(
        postfix=postfix, dovecot=dovecot, python=sys.version.split()[0],
        store=f"{sys.argv[1].capitalize()} {found[1] if found else store}",
    )  # fmt: skip
    story = Story(sys.argv[1], "remove-package" in sys.argv)
    for step, action in story.steps():
        start = time.monotonic()
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever it is, the step has failed, and the logs say why
            say(step=step, seconds=round(time.monotonic() - start, 1), error=f"{type(error).__name__}: {error}")
            for log in (story.service.log, Path("/var/log/dovecot.log"), Path("/var/log/mail.log")):
                if log.exists():
                    say(log=str(log), text=log.read_text(errors="replace")[-3000:])
            return 1
        say(step=step, seconds=round(time.monotonic() - start, 1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
