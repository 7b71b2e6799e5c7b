"""Doctor's check of the units, on hosts that are described: what systemctl says, and the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pbs_policy.doctor.service import check_units
from pbs_policy.host import Host, NotInstalled, ProgramOutput
from pbs_policy.shipped import shipped

SOUND = "Id={}\nLoadState=loaded\nActiveState=active\nResult=success\nFragmentPath={}\nNeedDaemonReload=no\n"


class Booted(Host):
    """A host with the units in a folder, and with a systemd that says `changes` of the socket unit."""

    def __init__(self, folder: Path, changes: tuple[str, str] = ("", "")) -> None:
        self.folder = folder
        self.changes = changes
        for name in ("pbs-policy.socket", "pbs-policy.service"):
            (folder / name).write_bytes(shipped(f"systemd/{name}").read_bytes())

    def run(self, program: str, *arguments: str) -> ProgramOutput:
        assert program == "systemctl"
        socket, service = (SOUND.format(name, self.folder / name) for name in arguments[-2:])
        return ProgramOutput(f"{socket.replace(*self.changes)}\n{service}", "", 0)

    def locate(self, path: str) -> Path:
        """The units of this machine are not the host's."""
        return Path("/nowhere") if "/systemd/system/" in path else Path(path)


@pytest.mark.parametrize(
    ("changes", "level", "seen", "mend"),
    [
        (("", ""), "good", "as they came with this version", ""),
        (("ActiveState=active\nResult=success", "ActiveState=failed\nResult=service-start-limit-hit"), "wrong",
         "pbs-policy.socket has failed (service-start-limit-hit)", "systemctl restart pbs-policy.socket"),
        (("NeedDaemonReload=no", "NeedDaemonReload=yes"), "warning", "an earlier pbs-policy.socket", "daemon-reload"),
    ],
)  # fmt: skip
def test_a_unit_that_failed_or_was_not_read_again_is_named(
    tmp_path: Path, changes: tuple[str, str], level: str, seen: str, mend: str
) -> None:
    (found,) = check_units(Booted(tmp_path, changes))
    assert (found.check, found.level, seen in found.seen, mend in found.mend) == ("service.units", level, True, True)
    assert found.place == ("" if level == "good" else str(tmp_path / "pbs-policy.socket"))


def test_a_unit_of_another_version_is_named_and_comments_are_no_difference(tmp_path: Path) -> None:
    host = Booted(tmp_path)
    unit = tmp_path / "pbs-policy.service"
    unit.write_text("# ours\n" + unit.read_text().replace("Also=pbs-policy.socket\n", ""))
    assert [each.level for each in check_units(host)] == ["good"]
    unit.write_text(unit.read_text() + "FileDescriptorStoreMax=100\n")
    (found,) = check_units(host)
    assert (found.level, found.place) == ("warning", str(unit))
    assert found.mend.startswith(f"diff {unit} ")


class Unbooted(Booted):
    def run(self, *_: str) -> ProgramOutput:
        return ProgramOutput("", "System has not been booted with systemd as init system (PID 1).\n", 1)


class WithoutSystemd(Booted):
    def run(self, *_: str) -> ProgramOutput:
        raise NotInstalled("systemctl is not installed here")


@pytest.mark.parametrize("host", [Unbooted, WithoutSystemd])
def test_without_systemd_there_is_nothing_to_look_at(tmp_path: Path, host: type[Booted]) -> None:
    assert list(check_units(host(tmp_path))) == []
    assert list(check_units(Booted(tmp_path, ("LoadState=loaded", "LoadState=not-found")))) != []
