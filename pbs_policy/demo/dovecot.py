"""A private Dovecot with one user, and POP3 and IMAP clients that come from any address.

The law is that of `daemons.py`. The base configuration differs between Dovecot 2.3 and 2.4; what is shown or
tested is the text that the caller includes, verbatim, after it.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pbs_policy.demo.conversation import Conversation
from pbs_policy.demo.daemons import DaemonError, OpenPlace, installed
from pbs_policy.demo.ports import free_port, greets, has_ipv6
from pbs_policy.programs import missing

USER = "alice@example.com"
# It guards an empty mailbox on the loopback interface.
PASSWORD = "correct horse"  # noqa: S105 - of the private instance alone, shown to everybody
"""The one user of the private Dovecot."""

# Mail is read and written as this user: it is there on every system and owns nothing.
_MAIL_USER = "nobody"

_BASE_2_3 = """\
disable_plaintext_auth = no
mail_location = maildir:{place}/mail
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {place}/users
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={place}/mail
}}
"""

_BASE_2_4 = """\
dovecot_config_version = {version}
dovecot_storage_version = {version}
auth_allow_cleartext = yes
mail_driver = maildir
mail_path = {place}/mail
passdb passwd-file {{
  passwd_file_path = {place}/users
  default_password_scheme = PLAIN
}}
userdb static {{
  fields {{
    uid = {uid}
    gid = {gid}
    home = {place}/mail
  }}
}}
"""

_COMMON = """\
base_dir = {place}/run
state_dir = {place}/state
log_path = {log}
protocols = pop3 imap
listen = {listen}
ssl = no
first_valid_uid = 1
# Lets a client of these networks say for whom it speaks: XCLIENT in POP3, ID in IMAP.
login_trusted_networks = {trusted}
service pop3-login {{
  inet_listener pop3 {{
    port = {pop3_port}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service imap-login {{
  inet_listener imap {{
    port = {imap_port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
# A wrong password is answered at once here: there is nobody to be slowed down.
auth_failure_delay = 0
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
!include {place}/hook.conf
"""


def dovecot_version(program: Sequence[str] = ()) -> tuple[int, int]:
    """Return the version of this Dovecot, or of the installed one, such as (2, 3)."""
    major, minor = _version(program or installed("dovecot", "dovecot")).split(".")[:2]
    return int(major), int(minor)


def _version(program: Sequence[str]) -> str:
    text = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True).stdout
    return re.split("[^0-9.]", text)[0]


class PrivateDovecot(OpenPlace):
    """A Dovecot in the foreground with POP3 and IMAP on ports of 127.0.0.1 and ::1, and the one user USER.

    `hook_config` is the text of a configuration file, such as one of `dovecot-hooks/`, with its paths, user
    and Redis address put in place; it is included as it is. A script that it names is run by its `user`, who
    must be able to read it there. `program` is how another Dovecot than the installed one is started.
    """

    def __init__(self, directory: Path, *, hook_config: str, program: Sequence[str] = ()) -> None:
        super().__init__("dovecot", directory)
        self._program = tuple(program)
        if not program:  # whose processes are all in our group; on SIGTERM each has a second to end
            self.stop_signal = signal.SIGKILL
        self.pop3_port = free_port()
        self.imap_port = free_port()
        self._hook_config = hook_config

    def command(self) -> list[str]:
        """Write the instance's files and return the command line (dovecot(1): -F stays in the foreground)."""
        reason = missing("dovecot")
        if reason is not None:
            raise DaemonError(reason)
        program = self._program or installed("dovecot", "dovecot")
        base = _BASE_2_3 if dovecot_version(program) < (2, 4) else _BASE_2_4
        mail_user = pwd.getpwnam(_MAIL_USER)
        mail = self.place / "mail"
        mail.mkdir(exist_ok=True)
        os.chown(mail, mail_user.pw_uid, mail_user.pw_gid)
        self._write_secret(self.place / "users", f"{USER}:{{PLAIN}}{PASSWORD}\n")
        (self.place / "hook.conf").write_text(self._hook_config, encoding="utf-8")
        ipv6 = has_ipv6()
        configuration = self.place / "dovecot.conf"
        text = (base + _COMMON).format(
            version=_version(program),
            place=self.place,
            log=self.log_file,
            uid=mail_user.pw_uid,
            gid=mail_user.pw_gid,
            listen="127.0.0.1, ::1" if ipv6 else "127.0.0.1",
            trusted="127.0.0.0/8 ::1" if ipv6 else "127.0.0.0/8",
            pop3_port=self.pop3_port,
            imap_port=self.imap_port,
        )
        configuration.write_text(text, encoding="utf-8")
        return [*program, "-F", "-c", str(configuration)]

    def _write_secret(self, path: Path, text: str) -> None:
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
        # The auth process reads it as Dovecot's own user ($default_internal_user), who in another Debian's tree has
        # another number.
        if self._program:
            path.chmod(0o644)
        else:
            shutil.chown(path, "dovecot")

    def is_ready(self) -> bool:
        """Whether both login services greet their clients."""
        return greets(self.pop3_port, b"+OK") and greets(self.imap_port, b"* OK")


@dataclass(frozen=True)
class LoginAttempt:
    """Whether the login succeeded, and the transcript."""

    succeeded: bool
    transcript: list[str]


def pop3_login(
    port: int, client_address: str, user: str = USER, password: str = PASSWORD, *, host: str = "127.0.0.1"
) -> LoginAttempt:
    """Log in by POP3 as a client from `client_address`, and quit.

    Dovecot believes the address because of its XCLIENT for POP3, which login_trusted_networks allows. Raises
    ConnectionError if Dovecot hangs up or does not take the address; a refused login is a result, no error.
    """
    with Conversation(host, port) as client:
        _expect(client, client.read_line(), "+OK")
        _expect(client, client.ask(f"XCLIENT ADDR={client_address}"), "+OK")
        _expect(client, client.ask(f"USER {user}"), "+OK")
        succeeded = client.ask(f"PASS {password}", shown="PASS ****").startswith("+OK")
        client.ask("QUIT")
        return LoginAttempt(succeeded, client.transcript)


def imap_login(
    port: int, client_address: str, user: str = USER, password: str = PASSWORD, *, host: str = "127.0.0.1"
) -> LoginAttempt:
    """Log in by IMAP as a client from `client_address`, and log out.

    Dovecot believes the address because of the ID command's x-originating-ip, which login_trusted_networks
    allows. Raises ConnectionError as `pop3_login` does.
    """
    with Conversation(host, port) as client:
        _expect(client, client.read_line(), "* OK")
        client.send(f'a ID ("x-originating-ip" "{client_address}")')
        _expect(client, _read_tagged(client, "a"), "a OK")
        client.send(f'b LOGIN "{user}" "{password}"', shown=f'b LOGIN "{user}" ****')
        succeeded = _read_tagged(client, "b").startswith("b OK")
        client.send("c LOGOUT")
        _read_tagged(client, "c")
        return LoginAttempt(succeeded, client.transcript)


def _read_tagged(client: Conversation, tag: str) -> str:
    line = client.read_line()
    while line.startswith("* "):
        line = client.read_line()
    if not line.startswith(f"{tag} "):
        raise ConnectionError("not the answer to our command; so far:\n" + "\n".join(client.transcript))
    return line


def _expect(client: Conversation, line: str, start: str) -> None:
    if not line.startswith(start):
        raise ConnectionError("refused; so far:\n" + "\n".join(client.transcript))
