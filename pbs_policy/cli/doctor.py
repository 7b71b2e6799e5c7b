"""`pbs-policy doctor`: what is wrong with this installation, where, and what mends it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pbs_policy.cli.output import show_json
from pbs_policy.cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pbs_policy.doctor.finding import Finding

WARNINGS, FAULTS = 1, 2
"""Exit statuses: nothing worse than a warning, and anything that is wrong, or may be."""

_QUIET = ("good", "not looked at")
"""What says nothing about the state of the installation that somebody should act on."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--postfix-config", default="", metavar="DIR", help="Postfix's configuration directory.")
@click.option("--dovecot-config", default="", metavar="FILE", help="Dovecot's configuration file, or its folder.")
@click.option("--trial/--no-trial", default=True, show_default=True,
              help="Record a login of a documentation address by the real script, and ask the service.")  # fmt: skip
@click.option("--quiet", "-q", is_flag=True, help="Print what is not good, and nothing where all is.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
@click.pass_obj
def doctor(
    session: Session, postfix_config: str, dovecot_config: str, trial: bool, quiet: bool, as_json: bool
) -> int:
    """Look at the installation as it is: what is wrong, in which file and line, and what mends it.

    Looks at Postfix (postconf), Dovecot (doveconf), the post-login script, Redis, the running service and the logins
    that are there. Run it as root, to see what each user may read. Nothing is changed; the trial's login is one of an
    address of a documentation network, and is deleted.

    Exit status 0 if nothing is wrong, 1 with warnings, 2 with faults, or with anything that could not be looked at
    (unknown). What is not there to be looked at changes neither.

    \b
    Example:
      sudo pbs-policy doctor
      pbs-policy doctor --no-trial --postfix-config /etc/postfix-out
      pbs-policy doctor --quiet || logger -t doctor "look at the mail host"
      pbs-policy doctor --json | jq -r '.[] | select(.level == "wrong") | .mend'
    """
    findings: list[Finding] = []
    for finding in _findings(session, postfix_config, dovecot_config, trial):
        if quiet and finding.level in _QUIET:
            continue
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        from dataclasses import asdict

        show_json([asdict(finding) for finding in findings])
    elif not quiet:
        click.echo(_summary(findings))
    return _status(findings)


def _findings(session: Session, postfix_config: str, dovecot_config: str, trial: bool) -> Iterator[Finding]:
    from pbs_policy.doctor import Doctor, settings_faults
    from pbs_policy.settings.sources import SettingsError

    try:
        settings, values = session.load()
    except SettingsError as error:
        yield from settings_faults(error)
        return
    if Path(dovecot_config or "-").is_dir():
        dovecot_config = str(Path(dovecot_config, "dovecot.conf"))
    yield from Doctor(settings, values, postfix_config, dovecot_config, trial).examine()


def _show(finding: Finding) -> None:
    from pbs_policy.log import printable

    click.echo(f"{finding.level:<14}{finding.check:<28}{printable(finding.seen, 2000)}")
    if finding.level == "good":
        return
    if finding.place:
        click.echo(f"{'':<14}in    {printable(finding.place, 2000)}")
    if finding.mend:
        click.echo(f"{'':<14}mend  {printable(finding.mend, 2000)}")


def _summary(findings: Iterable[Finding]) -> str:
    levels = [finding.level for finding in findings]
    names = ("wrong", "unknown", "warning", "good", "not looked at")
    return ", ".join(f"{levels.count(name)} {name}" for name in names if name in levels)


def _status(findings: Iterable[Finding]) -> int:
    levels = {finding.level for finding in findings}
    return FAULTS if levels & {"wrong", "unknown"} else WARNINGS if "warning" in levels else 0
