"""Who has changed the login table: each change that an administrator makes is a line in syslog (facility mail).

The socket is that of `log_to`, where that is syslog's, else the system's own. Where there is none, as in a container,
no line is written.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pbs_policy.cli.sink import to_the_end
from pbs_policy.log import Log, value, writers
from pbs_policy.settings import Settings


class Tell(Protocol):
    """Says what a command has changed: its name, and what it was about, in the names that listings have."""

    def __call__(self, command: str, **fields: str) -> None: ...


@contextmanager
def audit(settings: Settings) -> Iterator[Tell]:
    """What tells of each change as it is made. All are made, whether or not standard output is read. At the end
    syslog is given half a second to take the rest."""
    path = settings.log_to.partition(":")[2] or writers.SYSLOG
    with to_the_end():
        if not Path(path).exists():
            yield lambda *_, **__: None
            return
        writer = writers.Syslog(path)
        lines = Log(writer=writer, is_json=settings.log_format == "json")

        def tell(command: str, **fields: str) -> None:
            said = {"command": command, **fields, **_account()}
            lines.info(" ".join(f"{name}={value(text)}" for name, text in said.items() if text))

        try:
            yield tell
        finally:
            lines.write_now()
            writer.close()


def _account() -> dict[str, str]:
    """The account that this process is of, and by sudo's word the one that became it."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = str(number)
    return {"account": name, "sudo_user": os.environ.get("SUDO_USER", "")}
