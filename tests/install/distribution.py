"""Postfix and Dovecot with the configuration that the distribution's packages made, copied and made private.

Changed are ports, paths and where mail goes (nowhere). What an installer meets is otherwise what such a system has.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from pbs_policy.demo.dovecot import PrivateDovecot, dovecot_version
from pbs_policy.demo.postfix import LOCAL_DOMAIN, PrivatePostfix


def _copy(original: str, copy: Path) -> None:
    # With owners, modes and links, which shutil.copytree does not keep all of.
    copy.parent.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", original, str(copy)], check=True)


class DistributionPostfix(PrivatePostfix):
    """Postfix with a copy of /etc/postfix in `configuration`, its smtpd on `port`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, fragment="")
        self._start = super().command()
        self.configuration = self.place / "etc" / "postfix"
        _copy("/etc/postfix", self.configuration)
        for name in ("maildrop", "flush", "saved"):
            folder = self.queue_directory / name
            folder.mkdir()
            shutil.chown(folder, "postfix", "postdrop" if name == "maildrop" else None)
            folder.chmod(0o730 if name == "maildrop" else 0o700)
        self._edit(
            queue_directory=str(self.queue_directory),
            data_directory=str(self.place / "data"),
            maillog_file=str(self.log_file),
            maillog_file_prefixes=str(self.log_file),
            inet_interfaces="127.0.0.1",
            mydestination=LOCAL_DOMAIN,
            local_recipient_maps="",
            local_transport="discard:",
            default_transport="discard:",
            relay_transport="discard:",
            smtpd_authorized_xclient_hosts="127.0.0.0/8",
            smtpd_peername_lookup="no",
        )
        master_cf = self.configuration / "master.cf"
        lines = master_cf.read_text().splitlines(keepends=True)
        smtp = next(number for number, line in enumerate(lines) if line.split()[:2] == ["smtp", "inet"])
        lines[smtp] = lines[smtp].replace("smtp ", f"127.0.0.1:{self.port} ", 1)
        master_cf.write_text("".join(lines))

    def _edit(self, **parameters: str) -> None:
        edits = [f"{name} = {value}" for name, value in parameters.items()]
        subprocess.run(["postconf", "-c", str(self.configuration), "-e", *edits], check=True)

    def command(self) -> list[str]:
        """The command line: the copy instead of the private configuration."""
        written = time.time() - 60  # as PrivatePostfix does, and for its reason
        os.utime(self.configuration / "main.cf", (written, written))
        return [self._start[0], "-c", str(self.configuration), "-d"]


class DistributionDovecot(PrivateDovecot):
    """Dovecot with a copy of /etc/dovecot in `configuration`; what is private is in its local.conf."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, hook_config="")
        program, *_ = super().command()
        self.configuration = self.place / "etc" / "dovecot"
        _copy("/etc/dovecot", self.configuration)
        auth = self.configuration / "conf.d" / "10-auth.conf"
        auth.write_text(auth.read_text().replace("\n!include auth-system.conf.ext", "\n"))
        ssl = self.configuration / "conf.d" / "10-ssl.conf"
        # The certificate is made when the package is configured, and not in every container.
        ssl.write_text(re.sub(r"(?m)^(?=ssl\w* = .*/etc/dovecot/private/)", "#", ssl.read_text()))
        private = [
            line
            for line in (self.place / "dovecot.conf").read_text().splitlines()
            if not line.startswith(("dovecot_", "!include"))
        ]
        if dovecot_version() >= (2, 4):
            private.append("mail_inbox_path =")
        (self.configuration / "local.conf").write_text("\n".join(private) + "\n")
        self._start = [program, "-F", "-c", str(self.configuration / "dovecot.conf")]

    def command(self) -> list[str]:
        """The command line: the copy instead of the private configuration."""
        return self._start
