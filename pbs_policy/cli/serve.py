"""The daemons: `pbs-policy serve`, the policy service on Postfix's side, and `pbs-policy record` on Dovecot's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

import click

from pbs_policy.cli.session import Session
from pbs_policy.log import Log, printable
from pbs_policy.log.writers import writer_to
from pbs_policy.service.doubts import find_doubts
from pbs_policy.service.reload import Load
from pbs_policy.settings import Settings
from pbs_policy.settings.sources import DEFAULT_FILE, Value


class Run(Protocol):
    """A daemon from its start to its end."""

    def __call__(self, settings: Settings, values: Mapping[str, Value], log: Log, load: Load, /) -> None: ...


class _IsRoot(click.ClickException):
    exit_code = os.EX_NOPERM


@click.command()
@click.option("--allow-root", is_flag=True, help="Run as root all the same.")
@click.pass_obj
def serve(session: Session, allow_root: bool) -> None:
    """Run the policy service, in the foreground, until SIGTERM. SIGHUP makes it read its settings anew.

    It starts also while Redis is away, and answers DEFER_IF_REJECT (try again later) until Redis can be asked.
    It needs no privilege, and refuses to run as root (exit status 77). Errors and decisions go to standard error,
    or to syslog (log_to).

    \b
    Example:
      pbs-policy -c /etc/pbs-policy/pbs-policy.conf serve
      pbs-policy --set listen=inet:127.0.0.1:10041 serve
    """
    from pbs_policy.service.serve import run

    _run(session, "serve", run, allow_root=allow_root)


@click.command()
@click.option("--allow-root", is_flag=True, help="Run as root all the same.")
@click.pass_obj
def record(session: Session, allow_root: bool) -> None:
    """Record the logins that Dovecot reports by itself, and renew those of users who stay connected, in the
    foreground, until SIGTERM.

    It listens for Dovecot's auth policy protocol where reports_listen says, and writes each login to Redis as the
    post-login script does. Whoever can report a login can permit an address: README says what that asks of you.
    Every minute (renew_sessions) it asks doveadm who is connected, and writes their logins again with the full ttl.
    SIGHUP makes it read its settings anew. It needs no privilege, and refuses to run as root (exit status 77).

    \b
    Example:
      pbs-policy --set reports_listen=inet:127.0.0.1:10041 --set reports_check_passwords=yes record
    """
    from pbs_policy.recorder.record import run

    _run(session, "record", run, allow_root=allow_root)


def _run(session: Session, name: str, run: Run, *, allow_root: bool) -> None:
    warnings: list[str] = []
    settings, values = session.load(warnings.append)
    if os.geteuid() == 0 and not allow_root:
        raise _IsRoot(
            "the service needs no privilege and does not run as root: User= in a unit, "
            f"`runuser -u pbs-policy -- pbs-policy {name}`, or {name} --allow-root"
        )
    log = Log(writer=writer_to(settings.log_to, os.environ), is_json=settings.log_format == "json")

    def warn(line: str) -> None:
        log.warning(f"the settings: {printable(line, 1000)}")

    def look(settings: Settings) -> None:
        for doubt in find_doubts(session.file or DEFAULT_FILE, settings):
            log.warning(f"not safe: {doubt}")

    def load_again() -> tuple[Settings, dict[str, Value]]:
        loaded = session.load(warn)
        look(loaded[0])
        return loaded

    for line in warnings:
        warn(line)
    look(settings)
    run(settings, values, log, load_again)
