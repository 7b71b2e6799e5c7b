"""The hook in Dovecot, whichever way it records logins; and the first of the three ways, the post-login script with
its module and settings, and the drop-in that has Dovecot run it.

Dovecot refuses every login while its configuration names a script that is missing. So the drop-in is the last file
to be written and the first to go, and the script stays for as long as a running Dovecot asks for it.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pbs_policy.command_line import command_line, useradd
from pbs_policy.dovecot.auth import Unchecked, lets_everybody_in, one_for_all, passdbs
from pbs_policy.dovecot.doveconf import DovecotConfig, read_dovecot
from pbs_policy.dovecot.logins import SCRIPT, Hook, chain, executable, find_hook
from pbs_policy.host import READ, Owned, allows
from pbs_policy.install.files import InstallError, Tree, read_accepted, read_state
from pbs_policy.install.own_scripts import chained_by_hand
from pbs_policy.install.plan import Plan, Wanted
from pbs_policy.install.record import InstallRecord
from pbs_policy.log import printable
from pbs_policy.settings.sources import DEFAULT_FILE
from pbs_policy.shipped import shipped
from pbs_policy.trust import temporary_folder

DEFAULT_SETTINGS = str(DEFAULT_FILE)
COMMAND = "install-hook"
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
class Placement:
    """Where the hook goes, in the words of the tree, and who runs it."""

    user: str
    lib: str = DEFAULT_LIB
    settings_file: str = DEFAULT_SETTINGS
    dovecot: str = "/etc/dovecot"

    def __post_init__(self) -> None:
        """Raises InstallError for what dovecot.conf cannot hold as one word."""
        for text in (self.user, self.lib, self.settings_file):
            if not re.fullmatch(r"[A-Za-z0-9_./+@:~-]+", text):
                raise InstallError(f"{printable(text)!r}: expected a name without blanks or quotes", os.EX_USAGE)

    @property
    def drop_in(self) -> str:
        """The path of the drop-in."""
        return f"{self.dovecot}/conf.d/{DROP_IN}"

    def words(self, service: str) -> tuple[str, ...]:
        """The script with its arguments, for a login to this service."""
        option = ("-c", self.settings_file) if self.settings_file != DEFAULT_SETTINGS else ()
        return (f"{self.lib}/{SCRIPT}", *option, service)

    def executable(self, service: str) -> str:
        """What Dovecot is to run at a login to this service, where nothing else is run."""
        return chain((), *self.words(service))


@dataclass(frozen=True)
class Hooking:
    """What a way of recording logins works with: a Dovecot as it is configured now, and the plan for it."""

    tree: Tree
    placement: Placement
    file: Path
    config: DovecotConfig
    plan: Plan

    def is_replaced(self, place: str) -> bool:
        """Whether a line stands in the drop-in, and so in nobody's way."""
        return place.rpartition(":")[0] == str(self.tree.place(self.placement.drop_in))

    def confirm(self, found: Iterable[Unchecked]) -> None:
        """Have the administrator look at databases that take one password of everybody."""
        self.plan.notes += [f"{each}: whoever knows it logs in as anybody, and may relay" for each in found]

    def expect(self, name: str, value: str, expected: str) -> None:
        """Raise InstallError unless doveconf reads what the drop-in has set."""
        if value != expected:
            raise InstallError(
                f"{self.file}: doveconf reads {name} = {printable(value) or 'nothing'}, not {expected}: either a "
                f"file that comes later sets it again, or {self.placement.drop_in} is not included (!include "
                "conf.d/*.conf)"
            )


Way = Callable[[Hooking], list[Wanted]]
"""What has Dovecot record its logins: the files for it. Raises InstallError where something stands in its way."""


def plan_hook(tree: Tree, record: InstallRecord, placement: Placement, way: Way) -> Plan:
    """What has Dovecot record its logins in this way. Raises InstallError, and SettingsError for a secret that cannot
    be read."""
    file = tree.place(placement.dovecot) / "dovecot.conf"
    if not file.exists():
        raise InstallError(f"{file}: there is no such file. Where is Dovecot? --dovecot-config DIR")
    plan = Plan(tree.name(placement.dovecot), afterwards=AFTERWARDS)
    plan.want(tree, record, way(Hooking(tree, placement, file, read_config(file), plan)))
    plan.commands.append(command_line("doveconf", "-c", str(file), "-n"))
    return plan


def plan_script(hooking: Hooking) -> list[Wanted]:
    """The post-login script, its settings, and the drop-in for the protocols that run no other script."""
    placement, config, plan = hooking.placement, hooking.config, hooking.plan
    chained = chained_by_hand(config, {each: placement.words(each) for each in _SERVICES})
    left = [each for each in _SERVICES if each not in [hook.protocol for hook in chained]]
    if any(hooking.is_replaced(hook.place) for hook in chained):
        if any(find_hook(config, each) is None for each in left):
            drop_in = hooking.tree.place(placement.drop_in)
            raise InstallError(f"{drop_in}: has a script of your own in it. Move that service to another file")
        left = []
    for hook in chained:
        plan.notes.append(f"{hook.place}: {hook.protocol} logins run your own script and then ours; left as it is")
    databases = passdbs(config)
    if found := lets_everybody_in(config, databases):
        plan.notes.append(f"{found}: whoever asks logs in, and may relay")
    hooking.confirm(one_for_all(databases))
    _look_at_users(hooking, [*chained, *([None] if left else [])])
    if not _is_packaged(hooking.tree, placement):
        plan.commands.append(command_line(*_COMPILE, f"{placement.lib}/pbs_postlogin.py"))
    plan.checks.append(lambda: _check_script(hooking, left, chained))
    wanted = [*_script(hooking.tree, placement), Wanted(placement.settings_file, _NEW_SETTINGS, if_missing=True)]
    return [*wanted, Wanted(placement.drop_in, _drop_in_text(placement, left).encode())] if left else wanted


def _drop_in_text(placement: Placement, protocols: list[str]) -> str:
    """The drop-in that comes along, filled in, with the services of these protocols alone."""
    text = fill_in(
        shipped("dovecot-hooks/pbs-policy.conf").read_text(),
        {
            **{Placement("pbs-policy").executable(each): placement.executable(each) for each in _SERVICES},
            "user = pbs-policy": f"user = {placement.user}",
        },
    )
    for protocol in _SERVICES:
        if protocol not in protocols:
            text = re.sub(rf"(?ms)^service {protocol}(?:-postlogin)? \{{$.*?^\}}\n", "", text)
    return text


def _look_at_users(hooking: Hooking, hooks: list[Hook | None]) -> None:
    """Whether those who run the script may read its settings. None is a service of ours."""
    tree, placement, plan = hooking.tree, hooking.placement, hooking.plan
    file = tree.place(placement.settings_file)
    state = read_state(file)
    for user in dict.fromkeys((hook.user or "root") if hook else placement.user for hook in hooks):
        account = tree.find_user(user)
        if account is None and None in hooks and user == placement.user:
            plan.obstacles.append(f"there is no user {user} to run the script. First: {useradd(user)}")
        elif account and state and not allows(Owned(state.mode, state.uid, state.gid), account, READ):
            plan.notes.append(f"{file}: {user} may not read it, and will record no login")


def _is_packaged(tree: Tree, placement: Placement) -> bool:
    """Whether a package has the script where Dovecot is to run it: it is the package's to write, and to upgrade."""
    return shipped("dovecot-hooks/pbs-postlogin").resolve().parent == tree.place(placement.lib)


def _script(tree: Tree, placement: Placement) -> list[Wanted]:
    if _is_packaged(tree, placement):
        return []
    module = shipped("dovecot-hooks/pbs_postlogin.py").read_bytes()
    script = shipped("dovecot-hooks/pbs-postlogin").read_bytes()
    compiled, name = _compile(module, placement.lib)
    return [
        Wanted(f"{placement.lib}/pbs_postlogin.py", module, is_program=True),
        Wanted(f"{placement.lib}/__pycache__/{name}", compiled, is_program=True),
        Wanted(f"{placement.lib}/pbs-postlogin", script, 0o755, is_program=True),
    ]


def read_config(file: Path) -> DovecotConfig:
    """The configuration that begins in `file`. Raises InstallError where doveconf refuses it, or is not there."""
    return read_accepted(read_dovecot, file, "doveconf", "dovecot")


def fill_in(example: str, places: dict[str, str]) -> str:
    """The example with our places instead of its own. Raises ValueError where it does not have one of them."""
    for theirs, ours in places.items():
        if theirs not in example:
            raise ValueError(f"the example no longer says {theirs!r}")
        example = example.replace(theirs, ours)
    return example


def _compile(module: bytes, lib: str) -> tuple[bytes, str]:
    """The compiled module and its file's name, by the Python that runs the script."""
    with temporary_folder() as folder:
        (folder / "pbs_postlogin.py").write_bytes(module)
        try:
            subprocess.run([*_COMPILE, "-s", str(folder), "-p", lib, str(folder)], capture_output=True, check=True)
            [compiled] = (folder / "__pycache__").iterdir()
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise InstallError(f"{PYTHON} does not compile the script's module: {error}", os.EX_UNAVAILABLE) from None
        return compiled.read_bytes(), compiled.name


def _check_script(hooking: Hooking, services: list[str], chained: list[Hook]) -> None:
    config, placement = read_config(hooking.file), hooking.placement
    for service in services:
        hook = f"service {service}-postlogin"
        for block, name, value, expected in (
            (f"service {service}", "executable", executable(config, service), f"{service} {service}-postlogin"),
            (hook, "executable", config.value((hook,), "executable"), placement.executable(service)),
            (hook, "user", config.value((hook,), "user"), placement.user),
        ):
            hooking.expect(f"{block.replace(' ', '/')}/{name}", value, expected)
    for before in chained:
        if find_hook(config, before.protocol) != before:
            raise InstallError(f"{before.place}: {before.protocol} logins would not run your own script any more")
