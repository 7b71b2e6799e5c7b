"""A policy service of the demonstration's or a test's own: `pbs-policy serve` as a process."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from pbs_policy.demo.daemons import PrivateDaemon
from pbs_policy.postfix.listener import Listener

_READY = re.compile(r"ready, listening on ([^;]*);")


class PrivateService(PrivateDaemon):
    """The policy service with a settings file of its own in `directory`, made from `settings` (name: value); or
    another `daemon` of ours."""

    daemon = "serve"

    def __init__(self, directory: Path, settings: Mapping[str, str], name: str = "pbs-policy") -> None:
        super().__init__(name, directory)
        self._earlier_starts = 0
        self.settings_file = directory / f"{name}.conf"
        self.settings_file.write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))

    def command(self) -> list[str]:
        """The command line, of the interpreter that runs us."""
        self._earlier_starts = len(_READY.findall(self.log_text()))
        command = [sys.executable, "-m", "pbs_policy", "-c", str(self.settings_file), self.daemon]
        return [*command, "--allow-root"] if os.geteuid() == 0 else command

    def is_ready(self) -> bool:
        """Whether it has said so in its log."""
        return len(_READY.findall(self.log_text())) > self._earlier_starts

    @property
    def listeners(self) -> list[Listener]:
        """Where it listens, in the order of `listen`, free ports filled in."""
        announced: list[str] = _READY.findall(self.log_text())
        return [Listener.parse(each) for each in announced[-1].split()] if announced else []
