"""What the installers' tests share: running a command, and everything there is below a folder."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
from click.testing import CliRunner

from pbs_policy.cli.install import install_hook, install_postfix
from pbs_policy.cli.session import Session
from pbs_policy.demo.dovecot import dovecot_version

HOOK, POSTFIX = install_hook, install_postfix

DEBIAN_MAIN_CF = """\
# See /usr/share/postfix/main.cf.dist for a commented, more complete version
smtpd_banner = $myhostname ESMTP $mail_name (Debian)
biff = no
compatibility_level = 3.6
smtpd_relay_restrictions = permit_mynetworks permit_sasl_authenticated defer_unauth_destination
myhostname = mail.example.com
mynetworks = 127.0.0.0/8
recipient_delimiter = +
"""

MASTER_CF = """\
smtp      inet  n       -       y       -       -       smtpd
cleanup   unix  n       -       y       -       0       cleanup
"""


INET_CHECK = (
    "check_policy_service { inet:127.0.0.1:10040, timeout=2s, try_limit=2, "
    "{ default_action = DEFER_IF_REJECT 4.3.0 relay permission cannot be checked now } }"
)


@dataclass(frozen=True)
class Outcome:
    """What a command has said, on both streams, and its exit status."""

    status: int
    output: str


def run(command: click.Command, *arguments: str, file: Path | None = None, sets: tuple[str, ...] = ()) -> Outcome:
    """One run of a command, with `-c FILE` and `--set NAME=VALUE`. Raises what the command raises."""
    result = CliRunner().invoke(command, arguments, obj=Session(file, sets), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return Outcome(int(result.return_value or 0), result.output)


Snapshot = dict[str, tuple[object, ...]]


def snapshot(*folders: Path) -> Snapshot:
    """Everything below the folders: kind, mode, owner, and the bytes of files and links."""
    found: Snapshot = {}
    for folder in folders:
        for path in [folder, *sorted(folder.rglob("*"))]:
            about = path.lstat()
            content: object = None
            if stat.S_ISREG(about.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(about.st_mode):
                content = str(path.readlink())
            found[str(path)] = (oct(about.st_mode), about.st_uid, about.st_gid, content)
    return found


def write(root: Path, path: str, text: str, mode: int = 0o644) -> Path:
    """A file of a tree, with the folders above it."""
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(mode)
    age(place)
    return place


def write_dovecot(root: Path) -> None:
    """A small Dovecot that looks for drop-ins where Debian's does."""
    version = ["dovecot_config_version = 2.4.0", "dovecot_storage_version = 2.4.0"]
    lines = [*(version if dovecot_version() >= (2, 4) else []), "ssl = no", "!include conf.d/*.conf"]
    write(root, "/etc/dovecot/dovecot.conf", "".join(f"{line}\n" for line in lines))
    write(root, "/etc/dovecot/conf.d/10-logging.conf", "auth_verbose = yes\n")


def assert_named_and_nothing_written(
    root: Path, install: Callable[..., Outcome], path: str, own: str, place: str, said: str
) -> Outcome:
    """What is said where `own`, the site's file at `path`, stands in the way at this line."""
    write(root, path, own)
    before = snapshot(root)
    refused = install(root, "--apply")
    assert refused.status == os.EX_CONFIG
    assert f"{root}{path}:{place}: " in refused.output
    assert said in refused.output
    assert snapshot(root) == before
    return refused


def age(path: Path) -> None:
    """Make the file a minute old: Postfix reads a younger main.cf again and again until it is seconds old."""
    written = time.time() - 60
    os.utime(path, (written, written))


def postconf(folder: Path, *arguments: str) -> str:
    """What `postconf -c FOLDER` says."""
    command = ["postconf", "-c", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def install_postfix_in(root: Path, *options: str, sets: tuple[str, ...] = ()) -> Outcome:
    """`pbs-policy install-postfix` in a tree."""
    return run(POSTFIX, "--root", str(root), *options, sets=sets)


def set_main_cf(root: Path, text: str) -> None:
    """Make the tree's main.cf Debian's without smtpd_relay_restrictions, and with this text at its end."""
    kept = "".join(line for line in DEBIAN_MAIN_CF.splitlines(keepends=True) if "relay_restrictions" not in line)
    write(root, "/etc/postfix/main.cf", kept + text)
