"""A Debian of its own in a folder: made by debootstrap once, copied for each run, entered with a process table,
mounts and, where it is asked for, a network of its own, so that daemons in it have their well-known ports and meet
nobody.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Self

TOP = Path(__file__).parent.parent.parent

PACKAGES = (
    "ca-certificates", "iproute2", "procps", "postfix", "dovecot-pop3d", "dovecot-imapd", "redis-server",
    "make", "gcc", "libc6-dev", "git", "openssl", "python3", "python3-dev", "python3-venv", "pipx",
)  # fmt: skip
"""In every tree; `valkey-server` where Debian has it."""

TO_BUILD = ("build-essential", "lintian")
"""What building the Debian package takes besides what debian/control asks for."""

_SOURCES = Path("/etc/apt")
_SCRIPTS = Path("/usr/share/debootstrap/scripts")  # one for each suite; a newer one is made like the newest, sid
_SECONDS = 1_800  # for one command in a tree: a mirror may be slow


class CannotRun(Exception):
    """What the matrix needs is not here. The text says what to do."""


class Tree:
    """One Debian below `path`. A copy is to be used in `with`, and goes with it; a base stays."""

    def __init__(self, path: Path, suite: str) -> None:
        self.path = path
        self.suite = suite

    @classmethod
    def base(cls, folder: Path, suite: str) -> Tree:
        """The tree that others are copied from; made, where it is missing, in some minutes."""
        tree = cls(folder / suite, suite)
        complete = folder / f"{suite}.complete"
        if not complete.exists():
            _say(f"{suite}: debootstrap")
            shutil.rmtree(tree.path, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            packages = [*PACKAGES, *(["valkey-server"] if suite != "bookworm" else [])]
            command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", suite, str(tree.path)]
            command += [mirror(), *(["sid"] if not (_SCRIPTS / suite).exists() else [])]
            with (folder / f"{suite}.log").open("wb") as log:
                done = subprocess.run(command, stdout=log, stderr=log, check=False)
            if done.returncode:
                raise CannotRun(f"debootstrap of {suite} failed: see {folder / suite}.log")
            # Without it a package's daemon would be started when it is installed.
            policy = tree.path / "usr/sbin/policy-rc.d"
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
            complete.touch()
        tree.take_network_settings()
        return tree

    def copy(self, path: Path) -> Tree:
        """Another one with the same in it: laid over this one where the kernel can do that, otherwise copied."""
        tree = Tree(path, self.suite)
        tree.remove()
        layers = [tree.path, tree.layers / "upper", tree.layers / "work"]
        for layer in layers:
            layer.mkdir(parents=True)
        where = f"lowerdir={self.path},upperdir={layers[1]},workdir={layers[2]}"
        mount = ["mount", "-t", "overlay", "overlay", "-o", where, str(path)]
        if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
            subprocess.run(["cp", "-a", "--reflink=auto", f"{self.path}/.", str(path)], check=True)
        return tree

    @property
    def layers(self) -> Path:
        """What differs from the tree that this one is laid over."""
        return self.path.with_name(f"{self.path.name}.layers")

    def remove(self) -> None:
        """Take it away, with what an earlier run may have left."""
        subprocess.run(["umount", str(self.path)], stderr=subprocess.DEVNULL, check=False)
        for folder in (self.path, self.layers):
            shutil.rmtree(folder, ignore_errors=True)

    def take_network_settings(self) -> None:
        """What this host has to reach a mirror and an index of packages: names, certificates, pip's own settings."""
        for file in ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf"):
            if Path(file).exists():
                shutil.copyfile(file, self.path / file[1:])
        for own in (_SOURCES / "apt.conf.d").glob("*"):
            if re.search(r"(?i)proxy|Check-(Valid|Date)", own.read_text(errors="replace")):
                shutil.copyfile(own, self.path / "etc/apt/apt.conf.d" / f"99-host-{own.name}")

    def put(self, file: Path) -> str:
        """Copy a file into root's folder of the tree; returns its name there."""
        shutil.copy(file, self.path / "root")
        return f"/root/{file.name}"

    def put_checkout(self) -> None:
        """Copy the checkout, as git has it, to /root/src."""
        files = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, check=True).stdout
        tar = ["tar", "-C", str(TOP), "-c", "--files-from=-"]
        packed = subprocess.run(tar, input=files, capture_output=True, check=True).stdout
        (self.path / "root/src").mkdir()
        subprocess.run(["tar", "-x", "-C", str(self.path / "root/src")], input=packed, check=True)

    def run(self, *command: str, alone: bool = False, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the tree, as root; `alone` in a network of its own, of which not even the loopback is up.

        Raises CannotRun with the end of what it said where it fails, unless `check` is off.
        """
        inherited = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        variables = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
            "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **inherited,
        }  # fmt: skip
        inside = ["unshare", f"--mount-proc={self.path}/proc", "--fork", "--pid", "--kill-child"]
        inside += ["--net"] if alone else []
        # The mounts are of this command's own namespace, and end with it.
        terminals = f"mount -t devpts -o newinstance,ptmxmode=0666 devpts {self.path}/dev/pts"
        terminals += f' && mount --bind {self.path}/dev/pts/ptmx {self.path}/dev/ptmx; exec chroot {self.path} "$@"'
        done = subprocess.run(
            [*inside, "sh", "-c", terminals, "sh", *command],
            env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=_SECONDS, check=False,
        )  # fmt: skip
        if check and done.returncode:
            tail = "\n".join(done.stdout.splitlines()[-30:])
            raise CannotRun(f"{self.suite}: {' '.join(command)}: status {done.returncode}\n{tail}")
        return done

    def install(self, *packages: str) -> None:
        """Install Debian packages, or .deb files by their path in the tree."""
        self.run("apt-get", "update", "-qq")
        self.run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def mirror() -> str:
    """The mirror that this host's own apt takes Debian from. Raises CannotRun where it has none."""
    for file in sorted(_SOURCES.glob("sources.list.d/*.sources")):
        for uris, suites in re.findall(r"(?ms)^URIs:\s*(\S+).*?^Suites:\s*([^\n]*)", file.read_text()):
            if not re.search(r"security|backports", uris + suites.split()[0]):
                return str(uris)
    for file in [_SOURCES / "sources.list", *sorted(_SOURCES.glob("sources.list.d/*.list"))]:
        text = file.read_text() if file.exists() else ""
        found = re.search(r"(?m)^deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+\w+\s+.*main", text)
        if found:
            return found[1]
    raise CannotRun("no mirror of Debian in /etc/apt/sources.list or sources.list.d: this host's apt has to know one")


def need_root_and_debootstrap() -> None:
    """Raises CannotRun where the matrix cannot be run at all."""
    if os.geteuid():
        raise CannotRun("the matrix needs root: debootstrap, chroot, and daemons under their own users")
    for program in ("debootstrap", "unshare", "chroot"):
        if shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
            raise CannotRun(f"{program} is not installed: apt-get install debootstrap util-linux")


def _say(text: str) -> None:
    sys.stderr.write(f"matrix: {text}\n")
