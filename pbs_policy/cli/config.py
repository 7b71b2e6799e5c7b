"""`pbs-policy config`: the effective settings, as `postconf` shows Postfix'."""

from __future__ import annotations

import click

from pbs_policy.cli.completion import suggest_setting
from pbs_policy.cli.output import show_json
from pbs_policy.cli.session import Session, say
from pbs_policy.log import printable
from pbs_policy.settings import defaults


@click.command()
@click.option("-n", "changed", is_flag=True, help="Only settings that differ from their default, as postconf -n.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=suggest_setting)
@click.pass_obj
def config(session: Session, changed: bool, as_json: bool, names: tuple[str, ...]) -> None:
    """Print the effective settings, or those NAMEd.

    What is printed can be used as a settings file. Passwords are not among the settings, only the file they are in.

    \b
    Example:
      pbs-policy config -n
      pbs-policy config ttl
    """
    def tell(line: str) -> None:
        say(f"warning: {printable(line, 1000)}")

    _, values = session.load(tell)
    for name in names:
        if name not in values:
            raise click.BadParameter(f"there is no setting {printable(name)!r}")
    known = defaults()
    shown = {
        name: value.text
        for name, value in values.items()
        if (not names or name in names) and not (changed and value.text == known[name].text)
    }
    if as_json:
        show_json(shown)
        return
    for name, text in shown.items():
        click.echo(f"{name} = {printable(text, 10_000)}".rstrip())
