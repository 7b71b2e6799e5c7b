"""`pbs-policy demo`: the main job, on this machine, with nothing set up."""

from __future__ import annotations

import os

import click

from pbs_policy.demo.real import run as run_real
from pbs_policy.demo.trial import run as run_trial


@click.command()
@click.option("--real", is_flag=True, help="Through a private Postfix and Dovecot (installed, and as root).")
def demo(real: bool) -> int:
    """Show a client refused, its user's login, the client permitted, and refused again when the time is over.

    The real post-login script and the real service are run, for IPv4 and IPv6, with what goes over the wire. With
    --real the same story is told through Postfix and Dovecot. Everything is private and temporary: no system
    service, no real client and no Redis of yours is touched.

    Exit status 0 only if every step went as it should, otherwise 1; 69 where something needed is not installed.

    \b
    Example:
      pbs-policy demo
      sudo pbs-policy demo --real
    """
    told = run_real(click.echo) if real else run_trial(click.echo)
    click.echo("Every step went as it should." if told else "Not every step went as it should.")
    return os.EX_OK if told else 1
