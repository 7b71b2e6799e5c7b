"""Every fault, in the order of the page, and what it takes to bring it about besides the daemons."""

from __future__ import annotations

import socket
import subprocess
import tempfile

from pbs_policy.programs import find_program
from tests.faults import peer_faults, redis_faults, service_faults
from tests.faults.fault import Fault
from tests.faults.peers import TCP_REPAIR

FAULTS: list[Fault] = [*redis_faults.FAULTS, *service_faults.FAULTS, *peer_faults.FAULTS]


def lacks(fault: Fault) -> str:
    """What is missing here to bring it about, as a sentence, or nothing."""
    return next((lack for need in fault.needs if (lack := _LACKS[need]())), "")


def lacks_tmpfs() -> str:
    """Whether no file system may be mounted, which takes root, and in a container CAP_SYS_ADMIN."""
    with tempfile.TemporaryDirectory() as place:
        mounted = subprocess.run(
            [find_program("mount") or "mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True
        )
        if mounted.returncode:
            return f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}"
        subprocess.run([find_program("umount") or "umount", place], check=True)
    return ""


def lacks_repair() -> str:
    """Whether no socket may be closed without a word, which takes CAP_NET_ADMIN."""
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        except OSError as error:
            return f"a connection cannot be made to vanish here (TCP_REPAIR): {error.strerror}"
    return ""


def lacks_faketime() -> str:
    """Whether there is no library that lies about the time."""
    return "" if service_faults.faketime() else "libfaketime is not installed: apt-get install libfaketime"


def lacks_prlimit() -> str:
    """Whether there is no prlimit(1)."""
    return "" if find_program("prlimit") else "prlimit is not installed: apt-get install util-linux"


_LACKS = {"tmpfs": lacks_tmpfs, "repair": lacks_repair, "faketime": lacks_faketime, "prlimit": lacks_prlimit}
