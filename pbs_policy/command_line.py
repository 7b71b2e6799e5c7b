"""Command lines that are offered to be pasted into a shell, as root perhaps: names in them come from anybody."""

from __future__ import annotations

import shlex

from pbs_policy.log import printable

_LONGEST_NAME = 1000


def command_line(*words: str, about: str = "") -> str:
    """`words`, and whom or what the command is `about`: each is one word to the shell whatever it holds, and what it
    is about is no option either."""
    shown = [printable(word, len(word)) for word in words]
    if about:
        shown += ["--"] * about.startswith("-") + [printable(about, _LONGEST_NAME)]
    return " ".join(map(shlex.quote, shown))


def useradd(user: str) -> str:
    """The command that makes the system user."""
    return command_line("useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", about=user)
