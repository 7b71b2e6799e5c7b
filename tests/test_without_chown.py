"""The service's own unix sockets where the system gives nothing to another owner or group, as in the shipped unit:
`SystemCallFilter=~@privileged` refuses these calls with EPERM, whatever they would change."""

from __future__ import annotations

import grp
import os
import platform
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from pbs_policy.demo.daemons import DaemonError
from tests.service import Client, Service

# The calls of @chown and @setuid that a service could make, by their numbers on each architecture.
_REFUSED = {
    "x86_64": (92, 93, 94, 105, 106, 113, 114, 116, 117, 119, 122, 123, 260),
    "aarch64": (54, 55, 143, 144, 145, 146, 147, 149, 151, 152, 159),
}
pytestmark = pytest.mark.skipif(platform.machine() not in _REFUSED, reason="the filter needs its calls' numbers here")

# A filter of seccomp(2), in the language of bpf(4), and then the program of the arguments: PR_SET_NO_NEW_PRIVS is 38,
# PR_SET_SECCOMP 22 and SECCOMP_MODE_FILTER 2; a filter returns ERRNO (0x50000) with EPERM, or ALLOW (0x7fff0000).
_FILTERED = """
import ctypes, os, struct, sys
refused = [int(each) for each in sys.argv[1].split(",")]
code = struct.pack("HBBI", 0x20, 0, 0, 0)
for at, number in enumerate(refused):
    code += struct.pack("HBBI", 0x15, len(refused) - at, 0, number)
code += struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000) + struct.pack("HBBI", 0x06, 0, 0, 0x50001)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
prctl = ctypes.CDLL(None, use_errno=True).prctl
prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
program = Program(len(code) // 8, code)
if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.addressof(program), 0, 0):
    sys.exit(f"no filter: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[2], sys.argv[2:])
"""


def filtered(*command: str) -> list[str]:
    """The command with that filter."""
    return [sys.executable, "-c", _FILTERED, ",".join(map(str, _REFUSED[platform.machine()])), *command]


class FilteredService(Service):
    """A service in such an environment."""

    def command(self) -> list[str]:
        return filtered(*super().command())


Start = Callable[[Mapping[str, str]], Service]


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A folder whose path leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="pbs-") as name:
        yield Path(name)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda settings: stack.enter_context(FilteredService(tmp_path, settings))


def test_the_filter_refuses_to_change_an_owner_and_a_group(tmp_path: Path) -> None:
    code = f"import os; os.chown({str(tmp_path)!r}, -1, -1)"
    done = subprocess.run(filtered(sys.executable, "-c", code), capture_output=True, text=True, check=False)
    assert "PermissionError: [Errno 1] Operation not permitted" in done.stderr


def test_the_service_opens_its_own_sockets_without_giving_them_away(start: Start, short_directory: Path) -> None:
    pytest.importorskip("prometheus_client")
    service = start({"listen": f"unix:{short_directory}/policy", "metrics_listen": f"unix:{short_directory}/metrics"})
    with service.connect() as client:
        assert client.ask("unknown") == "DUNNO"
    for name in ("policy", "metrics"):
        assert stat.S_IMODE((short_directory / name).stat().st_mode) == 0o660
    assert "metrics and health at" in service.log()


def other_group() -> grp.struct_group:
    """A group that is not ours. Only root may give a folder to one, or a member."""
    groups = grp.getgrall() if os.geteuid() == 0 else [grp.getgrgid(each) for each in os.getgroups()]
    found = next((each for each in groups if each.gr_gid != os.getegid()), None)
    if found is None:
        pytest.skip("we are in one group alone")
    return found


def test_the_group_of_its_folder_needs_not_be_given(start: Start, short_directory: Path) -> None:
    group = other_group()
    os.chown(short_directory, -1, group.gr_gid)
    short_directory.chmod(0o2750)
    place = short_directory / "policy"
    service = start({"listen": f"unix:{place}", "unix_socket_group": group.gr_name})
    with Client(service.listeners[0]) as client:
        assert client.ask("unknown") == "DUNNO"
    assert (place.stat().st_gid, stat.S_IMODE(place.stat().st_mode)) == (group.gr_gid, 0o660)


def test_a_group_that_cannot_be_given_is_a_fault_that_says_what_to_do(start: Start, short_directory: Path) -> None:
    group = other_group().gr_name
    with pytest.raises(DaemonError) as failed:
        start({"listen": f"unix:{short_directory}/policy", "unix_socket_group": group})
    said = f"we may not give it to the group {group} (unix_socket_group): leave that empty, and chgrp {group} "
    assert said in str(failed.value)
    assert not (short_directory / "policy").exists()
