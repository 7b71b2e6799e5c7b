"""`pbs-policy install-hook` and `install-postfix`: the hook into Dovecot, the service into Postfix; shown first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from pbs_policy import settings as effective
from pbs_policy.cli.session import Session, say
from pbs_policy.install import dovecot, postfix
from pbs_policy.install.dovecot_removal import plan_hook_removal
from pbs_policy.install.files import InstallError, Tree
from pbs_policy.install.last_login import plan_last_login
from pbs_policy.install.plan import Plan, apply
from pbs_policy.install.postfix_removal import plan_postfix_removal
from pbs_policy.install.record import DEFAULT_FOLDER, InstallRecord
from pbs_policy.install.reports import plan_reports
from pbs_policy.install.undo import Removal, remove
from pbs_policy.settings import Settings
from pbs_policy.settings.sources import DEFAULT_FILE, SettingsError

LEFT = 1
"""Exit status of `--remove` where something is left to be done by hand."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


_SHARED = (
    click.option("--root", default="/", type=click.Path(path_type=Path), metavar="DIR",
                 help="Take DIR for the root of the system: all other paths are looked for in it."),
    click.option("--record-dir", default=DEFAULT_FOLDER, metavar="DIR", show_default=True,
                 help="Where copies of changed files are kept, with a manifest."),
    click.option("--user", default="pbs-policy", metavar="USER", show_default=True,
                 help="System user of the post-login script and the service."),
    click.option("--remove", "removing", is_flag=True, help="Undo it, also where it was done by hand."),
    click.option("--apply/--dry-run", "applying", default=False,
                 help="Do it, or only show it.  [default: --dry-run]"),
)  # fmt: skip


def _shared_options(command: _Command) -> _Command:
    for option in _SHARED:
        command = option(command)
    return command


@click.command("install-hook", context_settings={"help_option_names": ["-h", "--help"]})
@_shared_options
@click.option("--lib-dir", default="/usr/local/lib/pbs-policy", metavar="DIR", show_default=True,
              help="Where the script goes.")  # fmt: skip
@click.option("--settings", "settings_file", metavar="FILE",
              help="Settings file of the script, made if missing.  [default: that of -c]")  # fmt: skip
@click.option("--dovecot-config", default="/etc/dovecot", metavar="DIR", show_default=True,
              help="Where dovecot.conf is.")  # fmt: skip
@click.option("--last-login", is_flag=True, help="Instead of the script, Dovecot's last_login plugin.")
@click.option("--reports", is_flag=True, help="Instead of the script, Dovecot's reports to `pbs-policy record`.")
@click.pass_obj
def install_hook(
    session: Session,
    root: Path,
    record_dir: str,
    user: str,
    removing: bool,
    applying: bool,
    lib_dir: str,
    settings_file: str | None,
    dovecot_config: str,
    last_login: bool,
    reports: bool,
) -> int:
    """Have Dovecot record logins.

    By the post-login script, by Dovecot's last_login plugin, or by its reports to pbs-policy record. Shows each file
    that would be written and each command that would be run; --apply does it. Dovecot is not reloaded.

    Exit status 78 where the configuration is not understood, 1 where --remove leaves work to do.

    \b
    Example:
      pbs-policy install-hook
      pbs-policy install-hook --apply && doveadm reload
      pbs-policy install-hook --reports
      pbs-policy install-hook --remove --apply
    """
    with _errors():
        tree = Tree(root)
        record = InstallRecord(tree, record_dir, dovecot.COMMAND)
        if removing:
            prefix = _settings_or_defaults(session, tree).key_prefix
            removal = plan_hook_removal(tree, record, dovecot_config, prefix)
            return _remove(tree, record, removal, applying, dovecot.AFTERWARDS)
        if last_login and reports:
            raise click.UsageError("--last-login or --reports, not both")
        file = settings_file or (str(session.file.absolute()) if session.file else dovecot.DEFAULT_SETTINGS)
        placement, way = dovecot.Placement(user, lib_dir, file, dovecot_config), dovecot.plan_script
        if last_login or reports:
            way = partial(plan_reports if reports else plan_last_login, _settings(session, tree, Path(file)))
        return _install(tree, dovecot.plan_hook(tree, record, placement, way), record, applying)


@click.command("install-postfix", context_settings={"help_option_names": ["-h", "--help"]})
@_shared_options
@click.option("--postfix-config", default="/etc/postfix", metavar="DIR", show_default=True,
              help="Where main.cf is.")  # fmt: skip
@click.pass_obj
def install_postfix(
    session: Session, root: Path, record_dir: str, user: str, removing: bool, applying: bool, postfix_config: str
) -> int:
    """Have Postfix ask the policy service.

    In smtpd_relay_restrictions, at the first `listen` of the settings that Postfix can reach. What stands in the list
    stays; what is not understood is refused, with the line and what to do by hand. Shows each file that would be
    written and each command that would be run; --apply does it. Postfix is not reloaded.

    Exit status 78 where the configuration is not understood, 1 where --remove leaves work to do.

    \b
    Example:
      pbs-policy install-postfix
      pbs-policy install-postfix --apply && postfix reload
      pbs-policy install-postfix --remove --apply
    """
    with _errors():
        tree = Tree(root)
        record = InstallRecord(tree, record_dir, postfix.COMMAND)
        if removing:
            removal = plan_postfix_removal(tree, record, postfix_config, _settings_or_defaults(session, tree).listen)
            return _remove(tree, record, removal, applying, postfix.AFTERWARDS)
        listeners = _settings(session, tree, session.file).listen
        return _install(tree, postfix.plan_postfix(tree, record, postfix_config, listeners, user), record, applying)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except InstallError as error:
        for line in str(error).splitlines():
            say(line)
        click.echo(error.by_hand, err=True, nl=False)
        raise click.exceptions.Exit(error.status) from None


def _settings(session: Session, tree: Tree, file: Path | None) -> Settings:
    """The settings as they are in the tree. Without a file there, the defaults."""
    place = tree.place(str((file or DEFAULT_FILE).absolute()))
    if not place.exists() and (file is None or file == DEFAULT_FILE):
        place = Path(os.devnull)
    return effective.load(place, os.environ, session.overrides)[0]


def _settings_or_defaults(session: Session, tree: Tree) -> Settings:
    """The settings of the tree; faults in them, which are said, do not keep anything from being removed."""
    try:
        return _settings(session, tree, session.file)
    except SettingsError as error:
        for line in str(error).splitlines():
            click.echo(f"note: {line}", err=True)
        click.echo("note: so what the settings have by default is looked for", err=True)
        return effective.load(Path(os.devnull), {}, ())[0]


def _install(tree: Tree, plan: Plan, record: InstallRecord, applying: bool) -> int:
    for note in plan.notes:
        click.echo(f"note: {note}", err=True)
    if not plan:
        click.echo("Nothing to do: everything is in place.")
        return os.EX_OK
    if not applying:
        click.echo(plan.shown(tree), nl=False)
        for command in plan.commands:
            click.echo(f"would run: {command}")
        for obstacle in plan.obstacles:
            click.echo(f"before --apply: {obstacle}")
        click.echo("Nothing was changed; --apply does it.")
        return os.EX_OK
    apply(tree, plan, record)
    for folder in plan.folders:
        click.echo(f"made: {tree.place(folder.path)}/")
    for change in plan.changes:
        click.echo(f"written: {tree.place(change.path)}")
    click.echo(f"What was there before is kept in {record.folder}.")
    click.echo(f"Now: {plan.afterwards}")
    return os.EX_OK


def _remove(tree: Tree, record: InstallRecord, removal: Removal, applying: bool, afterwards: str) -> int:
    if not record.entries and not record.folders and not removal.changes:
        click.echo(f"Nothing to remove: no installation in {record.folder}, and nothing of ours is configured.")
        return os.EX_OK
    if not applying:
        click.echo(removal.shown(tree), nl=False)
        for folder in reversed(record.folders):
            click.echo(f"{tree.place(folder)}/: removed, if it is empty then")
        click.echo(removal.by_hand(tree, record), nl=False)
        click.echo("Nothing was changed; --remove --apply does it.")
        return os.EX_OK
    left = remove(tree, record, removal)
    for note in removal.notes:
        click.echo(f"note: {note}", err=True)
    if left is None:
        click.echo(
            "The script stays for now: Dovecot is not reloaded yet, and without it, it would refuse every login.\n"
            f"Now: {afterwards}, and then the same command once more"
        )
        return LEFT
    for each in removal.changes:
        done = "our words taken out" if each.is_edit else "restored" if each.after else "removed"
        click.echo(f"{done}: {tree.place(each.path)}")
    for path in removal.theirs:
        click.echo(f"{tree.place(path)}: stays, since it was changed")
    for folder in left:
        click.echo(f"{folder}/: stays, since there is something in it")
    click.echo(removal.by_hand(tree, record), nl=False)
    if removal.changes:
        click.echo(f"Now: {afterwards}")
    return LEFT if removal.left else os.EX_OK
