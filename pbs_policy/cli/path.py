"""`pbs-policy path`: where the files are that come with the program and are used elsewhere."""

from __future__ import annotations

import click

from pbs_policy.log import printable
from pbs_policy.shipped import SHIPPED, shipped


def suggest_name(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """The names of what ships."""
    return [name for name in SHIPPED if name.startswith(incomplete)]


@click.command()
@click.argument("name", required=False, shell_complete=suggest_name)
def path(name: str | None) -> None:
    """Print where a folder is that came with pbs-policy, or a FOLDER/FILE in it; without a NAME, all of them.

    \b
    Example:
      pbs-policy path
      man -l "$(pbs-policy path man)"/pbs-policy.8*
      ls "$(pbs-policy path dovecot-hooks)"
    """
    if name is None:
        width = max(map(len, SHIPPED))
        for each, what in SHIPPED.items():
            click.echo(f"{each:{width}}  {shipped(each)}  ({what.summary})")
        return
    try:
        place = shipped(name)
    except FileNotFoundError:
        raise click.BadParameter(f"there is no {printable(name)!r}; there are {', '.join(SHIPPED)}") from None
    click.echo(place)
