"""The check of the service's units, where systemd runs them: that none has failed, and that they are of this version.

A failed socket unit leaves Postfix with nobody to ask, while the service may go on and look well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pbs_policy.command_line import command_line
from pbs_policy.doctor.finding import Finding, good, warning, wrong
from pbs_policy.host import Host, NotLookedAt
from pbs_policy.shipped import shipped

CHECK = "service.units"
_UNITS = ("pbs-policy.socket", "pbs-policy.service")
_PROPERTIES = ("Id", "LoadState", "ActiveState", "Result", "FragmentPath", "NeedDaemonReload")
_PACKAGED = ("/usr/lib/systemd/system", "/lib/systemd/system")
_RESTART = "systemctl stop pbs-policy.service && systemctl restart pbs-policy.socket pbs-policy.service"
"""A socket is not started while its service runs without it."""


def check_units(host: Host) -> Iterator[Finding]:
    """Nothing where systemd does not run, or has no such unit."""
    try:
        answer = host.run("systemctl", "show", f"--property={','.join(_PROPERTIES)}", *_UNITS)
    except NotLookedAt:
        return
    units = [dict(re.findall(r"(?m)^(\w+)=(.*)$", block)) for block in answer.out.split("\n\n")]
    loaded = [unit for unit in units if unit.get("LoadState") == "loaded"] if not answer.status else []
    findings = [found for unit in loaded for found in _judge(unit, host)]
    yield from findings
    if loaded and not findings:
        yield good(CHECK, f"{' and '.join(unit['Id'] for unit in loaded)}: as they came with this version")


def _judge(unit: dict[str, str], host: Host) -> Iterator[Finding]:
    name, file = unit["Id"], unit.get("FragmentPath", "")
    if unit.get("ActiveState") == "failed":
        seen = f"{name} has failed ({unit.get('Result')}), and systemd does not start it again"
        yield wrong(CHECK, seen, file, f"journalctl -u {name} says why; then {_RESTART}")
    elif unit.get("NeedDaemonReload") == "yes":
        seen = f"systemd goes by an earlier {name} than the one in the file"
        yield warning(CHECK, seen, file, f"systemctl daemon-reload && {_RESTART}")
    try:
        ours = _of_this_version(name, file, host)
        differs = bool(ours) and _lines(host.read(ours)) != _lines(host.read(file))
    except NotLookedAt:
        return
    if differs:
        seen = f"{name} is of another version, or was edited"
        mend = f"{command_line('diff', file, ours)}; lines of your own belong in a drop-in (systemctl edit {name})"
        yield warning(CHECK, seen, file, mend)


def _of_this_version(name: str, file: str, host: Host) -> str:
    """The unit as it came with what is installed: from the package that an own one hides, or with us; "" for none."""
    for folder in _PACKAGED:
        path = f"{folder}/{name}"
        if host.locate(path).exists():
            return "" if host.locate(path).samefile(host.locate(file)) else path
    try:
        return str(shipped(f"systemd/{name}"))
    except FileNotFoundError:
        return ""


def _lines(data: bytes) -> list[bytes]:
    """What counts of a unit. Debian's package enables the socket by itself, and leaves `Also=` out."""
    lines = (line.strip() for line in data.splitlines())
    return [line for line in lines if line and not line.startswith((b"#", b";", b"Also="))]
