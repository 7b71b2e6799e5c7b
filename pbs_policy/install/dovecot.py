"""The hook in Dovecot: the post-login script with its module and settings, and the drop-in that has Dovecot run it;
or, for busy sites, the drop-in alone that has Dovecot's last_login plugin write the login table.

Dovecot refuses every login while its configuration names a script that is missing. So the drop-in is the last file
to be written and the first to go, and the script stays for as long as a running Dovecot asks for it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pbs_policy.demo.daemons import find_program, missing
from pbs_policy.install.files import InstallError, Tree, read_state, useradd
from pbs_policy.install.last_login import fill_in, last_login_drop_in
from pbs_policy.install.plan import Plan, Wanted
from pbs_policy.install.record import Record
from pbs_policy.install.undo import Removal
from pbs_policy.log import printable
from pbs_policy.settings import Settings
from pbs_policy.shipped import shipped
from pbs_policy.sources import DEFAULT_FILE

DEFAULT_SETTINGS = str(DEFAULT_FILE)
COMMAND = "install-hook"
DEFAULT_FOLDER = "/etc/dovecot"
DEFAULT_LIB = "/usr/local/lib/pbs-policy"
DROP_IN = "99-pbs-policy.conf"
AFTERWARDS = "doveadm reload"

# Of the script's first line: what compiles the module is what runs it.
PYTHON = "/usr/bin/python3"
# With the hash of the source in it instead of the time of its file: the same bytes whenever and wherever it is done.
_COMPILE = [PYTHON, "-I", "-m", "compileall", "-q", "--invalidation-mode", "checked-hash"]

_SERVICES = ("pop3", "imap")

_NEW_SETTINGS = b"""\
# Settings of pbs-policy, for the policy service and the post-login script: name = value.
# `pbs-policy config` shows them all; what is not set here has its default.
"""


@dataclass(frozen=True, slots=True)
class Hook:
    """Where the hook goes, in the words of the tree, and who runs it."""

    user: str
    lib: str = DEFAULT_LIB
    settings_file: str = DEFAULT_SETTINGS
    dovecot: str = DEFAULT_FOLDER

    def __post_init__(self) -> None:
        """Raises InstallError for what dovecot.conf cannot hold as one word."""
        for text in (self.user, self.lib, self.settings_file):
            if not re.fullmatch(r"[A-Za-z0-9_./+@:~-]+", text):
                raise InstallError(f"{printable(text)!r}: expected a name without blanks or quotes", os.EX_USAGE)

    @property
    def drop_in(self) -> str:
        """The path of the drop-in."""
        return f"{self.dovecot}/conf.d/{DROP_IN}"

    def executable(self, service: str) -> str:
        """What Dovecot is to run at a login to this service."""
        option = f" -c {self.settings_file}" if self.settings_file != DEFAULT_SETTINGS else ""
        return f"script-login {self.lib}/pbs-postlogin{option} {service}"


class DovecotConfiguration:
    """The dovecot.conf of a folder, as Dovecot itself understands it (doveconf(1))."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "dovecot.conf"
        self.command = ["doveconf", "-c", str(self.file), "-n"]

    def run(self, *arguments: str) -> str:
        """What doveconf says. Raises InstallError where it refuses, or is not there."""
        program = find_program("doveconf")
        if program is None:
            raise InstallError(missing("dovecot") or "doveconf is not installed", os.EX_UNAVAILABLE)
        command = [program, "-c", str(self.file), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise InstallError(f"doveconf does not accept {self.file}: {printable(done.stderr.strip(), 2000)}")
        return done.stdout.strip()

    def value(self, name: str, *options: str) -> str:
        """One setting."""
        return self.run("-h", *options, name)

    def version(self) -> tuple[int, int]:
        """Dovecot's version, such as (2, 4)."""
        found = re.match(r"# (\d+)\.(\d+)", self.run("-n"))
        if found is None:
            raise InstallError("doveconf -n does not begin with Dovecot's version", os.EX_SOFTWARE)
        return int(found[1]), int(found[2])


def plan_script(tree: Tree, record: Record, hook: Hook) -> Plan:
    """What has Dovecot run the post-login script. Raises InstallError where another one stands in its place."""
    dovecot = _configuration(tree, hook)
    drop_in = fill_in(
        shipped("dovecot-hooks/pbs-policy.conf").read_text(),
        {
            **{Hook("pbs-policy").executable(each): hook.executable(each) for each in _SERVICES},
            "user = pbs-policy": f"user = {hook.user}",
        },
    )
    for service in _SERVICES:
        _refuse_other_script(dovecot, hook, service)
    plan = Plan(tree.name(hook.dovecot), afterwards=AFTERWARDS)
    plan.want(
        tree,
        record,
        [
            *_script(tree, hook),
            Wanted(hook.settings_file, _NEW_SETTINGS, if_missing=True),
            Wanted(hook.drop_in, drop_in.encode()),
        ],
    )
    account, state = tree.find_user(hook.user), read_state(tree.place(hook.settings_file))
    if account is None:
        plan.obstacles.append(f"there is no user {hook.user} to run the script. First: {useradd(hook.user)}")
    elif state and not account.may_read(state):
        plan.notes.append(f"{tree.place(hook.settings_file)}: {hook.user} may not read it, and will record no login")
    if not _is_packaged(tree, hook):
        plan.commands.append(shlex.join([*_COMPILE, f"{hook.lib}/pbs_postlogin.py"]))
    plan.commands.append(shlex.join(dovecot.command))
    plan.check = lambda: _check_script(dovecot, hook)
    return plan


def _is_packaged(tree: Tree, hook: Hook) -> bool:
    """Whether a package has the script where Dovecot is to run it: it is the package's to write, and to upgrade."""
    return shipped("dovecot-hooks/pbs-postlogin").resolve().parent == tree.place(hook.lib)


def _script(tree: Tree, hook: Hook) -> list[Wanted]:
    if _is_packaged(tree, hook):
        return []
    module = shipped("dovecot-hooks/pbs_postlogin.py").read_bytes()
    script = shipped("dovecot-hooks/pbs-postlogin").read_bytes()
    compiled, name = _compile(module, hook.lib)
    return [
        Wanted(f"{hook.lib}/pbs_postlogin.py", module),
        Wanted(f"{hook.lib}/__pycache__/{name}", compiled),
        Wanted(f"{hook.lib}/pbs-postlogin", script, 0o755),
    ]


def plan_last_login(tree: Tree, record: Record, hook: Hook, settings: Settings) -> Plan:
    """What has Dovecot's last_login plugin write the login table.

    Raises InstallError for settings that the plugin cannot follow.
    """
    dovecot = _configuration(tree, hook)
    plan = Plan(tree.name(hook.dovecot), afterwards=AFTERWARDS)
    drop_in = last_login_drop_in(dovecot.version(), settings)
    plan.want(tree, record, [Wanted(hook.drop_in, drop_in.encode(), 0o644)])
    plan.commands = [shlex.join(dovecot.command)]
    plan.check = lambda: _check_last_login(dovecot, hook)
    return plan


def script_files(tree: Tree, record: Record) -> list[str]:
    """Everything in the record that has to outlive the drop-in."""
    return [path for path in record.entries if path != _drop_in(tree, record)]


def needs_script(tree: Tree, record: Record, removal: Removal) -> bool:
    """Whether Dovecot needs the script at the next login: its drop-in had to stay, or it runs as configured before.

    Until it is reloaded, it listens for logins on `BASE_DIR/pop3-postlogin`; /proc/net/unix lists that (proc(5)).
    """
    if _drop_in(tree, record) in removal.edited:
        return True
    dovecot = _installed(tree, record)
    if dovecot is None or not tree.is_running_system:
        return False
    base = Path(dovecot.value("base_dir")).resolve()
    return any(_listens(base / f"{service}-postlogin") for service in _SERVICES)


def _listens(socket: Path) -> bool:
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines():
        path = Path(line.split()[-1])
        if path.name == socket.name and path.is_absolute() and path.parent.resolve() == socket.parent:
            return True
    return False


def check_left(tree: Tree, record: Record) -> None:
    """Raise InstallError unless Dovecot, where it is still installed, accepts what is left without the drop-in."""
    dovecot = _installed(tree, record)
    if dovecot is not None:
        dovecot.run("-n")


def _drop_in(tree: Tree, record: Record) -> str:
    return tree.name(f"{record.configuration}/conf.d/{DROP_IN}")


def _installed(tree: Tree, record: Record) -> DovecotConfiguration | None:
    """The configuration that the record is about, None where Dovecot is not installed any more."""
    dovecot = DovecotConfiguration(tree.place(record.configuration))
    return dovecot if dovecot.file.exists() and find_program("doveconf") else None


def _configuration(tree: Tree, hook: Hook) -> DovecotConfiguration:
    dovecot = DovecotConfiguration(tree.place(hook.dovecot))
    if not dovecot.file.exists():
        raise InstallError(f"{dovecot.file}: there is no such file. Where is Dovecot? --dovecot-config DIR")
    return dovecot


def _refuse_other_script(dovecot: DovecotConfiguration, hook: Hook, service: str) -> None:
    executable = dovecot.value(f"service/{service}/executable")
    asked = executable.partition(" ")[2]
    if executable == service or (asked and "pbs-postlogin" in dovecot.value(f"service/{asked}/executable")):
        return
    raise InstallError(
        f"{_place_of(dovecot, executable)}: service {service} has executable = {printable(executable)}, which "
        f"the drop-in would replace. By hand: put the script before the one that service {printable(asked)} runs: "
        f"executable = {hook.executable(service)} /path/of/the/other/script"
    )


def _compile(module: bytes, lib: str) -> tuple[bytes, str]:
    """The compiled module and its file's name, by the Python that runs the script."""
    with tempfile.TemporaryDirectory(prefix="pbs-") as name:
        folder = Path(name)
        (folder / "pbs_postlogin.py").write_bytes(module)
        try:
            subprocess.run([*_COMPILE, "-s", name, "-p", lib, name], capture_output=True, check=True)
            [compiled] = (folder / "__pycache__").iterdir()
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise InstallError(f"{PYTHON} does not compile the script's module: {error}", os.EX_UNAVAILABLE) from None
        return compiled.read_bytes(), compiled.name


def _check_script(dovecot: DovecotConfiguration, hook: Hook) -> None:
    for service in _SERVICES:
        for name, expected in (
            (f"service/{service}/executable", f"{service} {service}-postlogin"),
            (f"service/{service}-postlogin/executable", hook.executable(service)),
            (f"service/{service}-postlogin/user", hook.user),
        ):
            _expect(dovecot, hook, name, dovecot.value(name), expected)


def _check_last_login(dovecot: DovecotConfiguration, hook: Hook) -> None:
    for service in _SERVICES:
        plugins = dovecot.value("mail_plugins", "-f", f"protocol={service}")
        if "last_login" not in plugins.split():
            _expect(dovecot, hook, f"protocol/{service}/mail_plugins", plugins, "... last_login")


def _expect(dovecot: DovecotConfiguration, hook: Hook, name: str, value: str, expected: str) -> None:
    if value != expected:
        raise InstallError(
            f"{dovecot.file}: doveconf reads {name} = {printable(value) or 'nothing'}, not {expected}: either a file "
            f"that comes later sets it again, or {hook.drop_in} is not included (!include conf.d/*.conf)"
        )


def _place_of(dovecot: DovecotConfiguration, executable: str) -> str:
    """`FILE:LINE` where `executable` is set, or dovecot.conf."""
    for file in [dovecot.file, *sorted((dovecot.file.parent / "conf.d").glob("*.conf"))]:
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
            name, _, value = line.partition("=")
            if name.strip() == "executable" and value.split() == executable.split():
                return f"{file}:{number}"
    return str(dovecot.file)
