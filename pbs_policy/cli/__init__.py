"""The `pbs-policy` command: options that all commands share, and what becomes of an error.

What stands here is loaded for every command line, so that `--help` and shell completion of a command's name come at
click's own speed; a command's module is loaded when it is to run (`commands`), with all that it needs.
Exit codes are those of sysexits.h; a command that has its own says so in its help.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pbs_policy import __version__
from pbs_policy.cli.commands import Commands
from pbs_policy.cli.completion import suggest_override
from pbs_policy.cli.session import Session, say
from pbs_policy.cli.sink import open_closed_streams, printable_output

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-c", "--config", "file", type=click.Path(path_type=Path), metavar="FILE",
    help="Settings file.  [default: /etc/pbs-policy/pbs-policy.conf]",
)  # fmt: skip
@click.option(
    "--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Override a setting; may be repeated.",
    shell_complete=suggest_override,
)  # fmt: skip
@click.version_option(__version__, prog_name="pbs-policy", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, file: Path | None, overrides: tuple[str, ...]) -> None:
    """POP-before-SMTP for Postfix and Dovecot: who logged in may relay, for a limited time.

    \b
    Examples:
      pbs-policy demo                     see the whole of it happen
      pbs-policy check 192.0.2.7          may this client relay now, and why
      pbs-policy list                     who may relay now
    """
    session = context.ensure_object(Session)
    session.file, session.overrides = file, overrides


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with its status."""
    open_closed_streams()
    status = run(arguments)
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()  # a full disk: that was said
    sys.exit(status)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its status; every error is a line on standard error, and all output prints."""
    with printable_output():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    session = Session()
    try:
        status = cli.main(arguments, prog_name="pbs-policy", standalone_mode=False, obj=session)
        sys.stdout.flush()
    except click.UsageError as error:
        context = error.ctx.command_path if error.ctx else "pbs-policy"
        return _fail(f"{error.format_message()} (see {context} --help)", os.EX_USAGE)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:
            return os.EX_OK  # shell completion has answered
        # The reader has seen enough (click makes a SystemExit with status 1 of that).
        _drop_output()
        return 141
    except Exception as error:  # noqa: BLE001 - one line for the administrator, whatever happened
        from pbs_policy.cli.errors import explain

        return _fail(*explain(error, session.values))
    return status if isinstance(status, int) else os.EX_OK


def _drop_output() -> None:
    """Python flushes standard output once more at its end, and makes status 120 of a fault: into nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int) -> int:
    for line in message.split("\n"):
        say(line)
    return status
