"""This machine once more, to be written to: its files under an overlay, processes and network of its own.

The law: what runs in it runs as root on the real programs of this machine, and nothing of it is left. The machine's
own files, processes and network are never touched: they are other namespaces.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.pages import TOP, tracked_files

CHECKOUT = "/root/pbs-policy"

_INSIDE = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/root" "$1/changes" "$1/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/changes,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs run
case "$3" in /tmp/*|/run/*)  # the checkout, and its interpreter, where these two hide it
  mkdir "$1/checkout" "$1/checkout-work"
  mkdir -p ".$3"
  mount -t overlay overlay -o "lowerdir=$3,upperdir=$1/checkout,workdir=$1/checkout-work" ".$3" ;;
esac
mount --rbind /dev dev
mount -t proc proc proc
ip link set lo up
mkdir -p root/pbs-policy
cp -a "$2/." root/pbs-policy/
echo ready
exec chroot . sh -c "cd /; exec sleep infinity"
"""


class PrivateRoot:
    """A copy of this machine in which shell lines can be run, and files read and written (`root`)."""

    def __enter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory(prefix="pbs-")
        with tempfile.TemporaryDirectory(prefix="pbs-") as checkout:
            listed = [name for name in tracked_files() if (TOP / name).exists()]
            subprocess.run(["cp", "--parents", "-t", checkout, *listed], cwd=TOP, check=True)
            unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
            self._process = subprocess.Popen(
                [*unshare, "sh", "-c", _INSIDE, "sh", self._temporary.name, checkout, str(TOP)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            assert self._process.stdout
            said = self._process.stdout.readline()
            if said != b"ready\n":
                said += self._process.stdout.read()
                self.close()
                raise OSError(f"no private root: {said.decode()}")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        self._first = int(children)
        self.root = Path(f"/proc/{self._first}/root")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process in it, and take the place away."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._temporary.cleanup()

    def run(self, script: str, *, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run shell lines as root in the checkout."""
        enter = ["nsenter", "-t", str(self._first), "-a", "--root", "--wd"]
        command = [*enter, "bash", "-c", f"cd {CHECKOUT} || exit 99\n{script}"]
        return subprocess.run(
            command,
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
                "LANG": "C.UTF-8",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )

    def start(self, command: str) -> None:
        """Run a daemon in the background, to end with the place; what it says goes to /tmp/daemons."""
        done = self.run(f"setsid {command} </dev/null >>/tmp/daemons 2>&1 &")
        assert done.returncode == 0, done.stdout
