"""Every command by name: where it is, and its line in the help. A command's module is loaded when it is to run, so
that the help and shell completion come at click's own speed however many commands there are.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

import click

from pbs_policy.log import printable


class _Place(NamedTuple):
    """A command of `module` under this package: the variable it is, and what it does in a line."""

    module: str
    variable: str
    summary: str


PLACES = {
    "check": _Place("check", "check", "What the service would answer a client now, and why."),
    "completion": _Place("completion", "completion", "Print the shell's completion script."),
    "config": _Place("config", "config", "Print the effective settings."),
    "demo": _Place("demo", "demo", "See the whole of it happen on this machine."),
    "denied": _Place("denies", "denied", "Who is denied, why, and for how long still."),
    "deny": _Place("denies", "deny", "Refuse relaying for a time, whatever is permitted."),
    "doctor": _Place("doctor", "doctor", "What is wrong with this installation, and what mends it."),
    "export": _Place("transfer", "export_table", "Write logins, permits and denies as JSON lines."),
    "import": _Place("transfer", "import_table", "Read what export wrote."),
    "install-hook": _Place("install", "install_hook", "Have Dovecot record logins."),
    "install-postfix": _Place("install", "install_postfix", "Have Postfix ask the policy service."),
    "list": _Place("lists", "list_logins", "Who may relay now."),
    "path": _Place("path", "path", "Where the script, the examples and the manual pages are."),
    "permit": _Place("permits", "permit", "Let an address or network relay without a login."),
    "query": _Place("query", "query", "Ask the running service one request."),
    "record": _Place("serve", "record", "Record the logins that Dovecot reports."),
    "replay": _Place("replay", "replay", "What the service would answer to a log of Postfix'."),
    "report": _Place("report", "report", "Who still relays by POP-before-SMTP."),
    "revoke": _Place("permits", "revoke", "Take logins and permits away."),
    "serve": _Place("serve", "serve", "Run the policy service."),
    "show": _Place("lists", "show", "The logins and permits of an address, network or user."),
    "stats": _Place("stats", "stats", "How often the services decided what, and which run."),
    "undeny": _Place("denies", "undeny", "End a deny."),
    "watch": _Place("watch", "watch", "Logins and decisions as they happen."),
}

_RENAMED = {"allow": "undeny"}


class Commands(click.Group):
    """The group of all commands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The command line; without anything on it the help, on standard error. (click 8.1 calls that a success.)"""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            raise click.exceptions.Exit(os.EX_USAGE)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of this name; `help COMMAND` is its --help. Raises UsageError, naming those that are alike."""
        if args[0] == "help" and ctx.resilient_parsing:
            return None, None, []  # commands are suggested
        if args == ["help"]:
            click.echo(ctx.get_help())
            ctx.exit()
        if args[0] == "help":
            args = [args[1], "--help"]
        name = args[0]
        if name not in PLACES and not ctx.resilient_parsing:
            alike = [_RENAMED[name]] if name in _RENAMED else get_close_matches(name, PLACES)
            hint = f" Did you mean {' or '.join(alike)}?" if alike else ""
            raise click.UsageError(f"No such command {printable(name)!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Every command's name."""
        return list(PLACES)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, loaded now."""
        place = PLACES.get(cmd_name)
        if place is None:
            return None
        command: click.Command = getattr(import_module(f"pbs_policy.cli.{place.module}"), place.variable)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands' part of the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.summary) for name, place in PLACES.items()])
