"""What the installers' tests share: running a command, and everything there is below a folder."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pbs_policy.cli.install import install_hook, install_postfix
from pbs_policy.cli.session import Session
from pbs_policy.demo.dovecot import dovecot_version
from pbs_policy.programs import find_program

HOOK, POSTFIX = install_hook, install_postfix
VERSION = "2.4" if find_program("dovecot") and dovecot_version() >= (2, 4) else "2.3"
"""In which of Dovecot's two languages its configuration is written here."""

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


MAIN_CF, MASTER = "/etc/postfix/main.cf", "/etc/postfix/master.cf"
CONF_D = "/etc/dovecot/conf.d"
DROP_IN, OWN = f"{CONF_D}/99-pbs-policy.conf", f"{CONF_D}/20-own.conf"
SETTINGS = "/etc/pbs-policy/pbs-policy.conf"
LIB = "/usr/local/lib/pbs-policy"

USERADD = "First: useradd --system --no-create-home --shell /usr/sbin/nologin pbs-policy"

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


def pbs(root: Path, line: str) -> Outcome:
    """One command line in a tree, which the line calls ROOT: `install-hook --apply`, with `--set` anywhere."""
    words = iter(shlex.split(line.replace("ROOT", str(root))))
    command = {"install-hook": HOOK, "install-postfix": POSTFIX}[next(words)]
    given = [(word, next(words) if word == "--set" else word) for word in words]
    arguments, sets = ([text for word, text in given if (word == "--set") is is_set] for is_set in (False, True))
    return run(command, "--root", str(root), *arguments, sets=tuple(sets))


Edit = Callable[[str], str]
Files = Mapping[str, "str | tuple[str, int] | Edit | None"]
"""What a test puts into a tree: a text, a text and a mode, what becomes of the text that is there, or nothing."""

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
    lines = [*(version if VERSION == "2.4" else []), "ssl = no", "!include conf.d/*.conf"]
    write(root, "/etc/dovecot/dovecot.conf", "".join(f"{line}\n" for line in lines))
    write(root, "/etc/dovecot/conf.d/10-logging.conf", "auth_verbose = yes\n")


def only_23() -> None:
    """Skip what is written in the words of Dovecot 2.3."""
    if VERSION != "2.3":
        pytest.skip("written for Dovecot 2.3: apt-get install dovecot-core on Debian 12")


def arrange(root: Path, files: Files) -> None:
    """Give the tree these files; of one that is there already, what a function makes of its text; None: it goes."""
    for path, content in files.items():
        place = root / path.lstrip("/")
        if content is None:
            place.unlink()
        elif callable(content):
            write(root, path, content(place.read_text()), place.stat().st_mode & 0o777)
        else:
            write(root, path, *([content] if isinstance(content, str) else content))


def age(path: Path) -> None:
    """Make the file a minute old: Postfix reads a younger main.cf again and again until it is seconds old."""
    written = time.time() - 60
    os.utime(path, (written, written))


def postconf(folder: Path, *arguments: str) -> str:
    """What `postconf -c FOLDER` says."""
    command = ["postconf", "-c", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main_cf(text: str) -> str:
    """Debian's main.cf without smtpd_relay_restrictions, and with this text at its end."""
    kept = (line for line in DEBIAN_MAIN_CF.splitlines(keepends=True) if "relay_restrictions" not in line)
    return "".join(kept) + text
