"""What a command works with: the settings it was started with, read when the command asks for them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from pbs_policy.settings import Settings
    from pbs_policy.settings.sources import Value
    from pbs_policy.table.login_table import LoginTable


def say(text: str) -> None:
    """Say on standard error what is not the answer of a command, but belongs to it."""
    click.echo(f"pbs-policy: {text}", err=True)


@dataclass
class Session:
    """`-c FILE` and `--set NAME=VALUE ...` of one command line, and what was read by them last."""

    file: Path | None = None
    overrides: tuple[str, ...] = ()
    values: dict[str, Value] = field(default_factory=dict)

    def load(self, tell: Callable[[str], object] | None = None) -> tuple[Settings, dict[str, Value]]:
        """The effective settings, each one's text and place; `tell` as in `settings.load`, and of a package that is
        missing for what they ask. Raises SettingsError."""
        from pbs_policy import settings

        loaded = settings.load(self.file, os.environ, self.overrides, tell or (lambda _: None))
        self.values = loaded[1]
        if tell and loaded[0].metrics_listen:
            from pbs_policy.extras import why_no_metrics

            if said := why_no_metrics():
                tell(said)
        return loaded

    def open_table(self) -> tuple[Settings, LoginTable]:
        """The settings and the login table they name. Nothing is sent to Redis yet. Raises SettingsError."""
        from pbs_policy.store.connect import connect_by
        from pbs_policy.table.login_table import LoginTable

        settings, _ = self.load()
        return settings, LoginTable(connect_by(settings), settings.key_prefix, user_domain=settings.user_domain)
