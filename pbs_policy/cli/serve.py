"""`pbs-policy serve`: the policy service."""

from __future__ import annotations

import os

import click

from pbs_policy.cli.session import Session


@click.command()
@click.pass_obj
def serve(session: Session) -> None:
    """Run the policy service, in the foreground, until SIGTERM. SIGHUP makes it read its settings anew.

    It starts also while Redis is away, and answers DEFER_IF_REJECT (try again later) until Redis can be asked.
    Errors and decisions go to standard error, or to syslog (log_to).

    \b
    Example:
      pbs-policy -c /etc/pbs-policy/pbs-policy.conf serve
      pbs-policy --set listen=inet:127.0.0.1:10041 serve
    """
    from pbs_policy.log import Log
    from pbs_policy.log_writers import writer_to
    from pbs_policy.serve import run
    from pbs_policy.sources import DEFAULT_FILE
    from pbs_policy.trust import find_doubts

    settings, values = session.load()
    log = Log(writer=writer_to(settings.log_to, os.environ), is_json=settings.log_format == "json")
    for doubt in find_doubts(session.file or DEFAULT_FILE, settings):
        log.warning(f"not safe: {doubt}")
    run(settings, values, log, session.load)
