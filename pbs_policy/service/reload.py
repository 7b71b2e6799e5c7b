"""What is read anew while a daemon runs: the settings (SIGHUP), of which some wait for a restart; and the files that
they name, when these change.

All or nothing: a file with a fault changes nothing. What can change is listed, so that a setting that nobody thought
of here waits for a restart, and says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pbs_policy.changing_file import ChangingFile, FileFault
from pbs_policy.decision.denies import Denies
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.log import Log, printable
from pbs_policy.settings import Settings, parse_values
from pbs_policy.settings.sources import Value

CHANGEABLE = frozenset(
    (
        "auto_deny", "batv", "denies", "ipv6_prefix", "log_decisions", "login_domains",
        "max_recipients_per_address", "max_recipients_per_user", "never_record", "null_sender", "observe_only",
        "on_unavailable", "recipient_delimiter", "record_master_logins", "require_tls", "sender_maps", "sender_match",
        "services", "ttl", "usage_kept", "user_domain",
    )
)  # fmt: skip
"""The settings that a reload can change; the others are what the service is connected to, or made of."""

Load = Callable[[], tuple[Settings, Mapping[str, Value]]]
"""Reads the settings from where they were read at the start. Raises SettingsError."""


class Configuration(NamedTuple):
    """What the service works by: the settings, where each comes from, and the files of sender_maps and denies."""

    settings: Settings
    values: Mapping[str, Value]
    maps: SenderMaps | None
    denies: Denies | None

    @classmethod
    def begin(cls, settings: Settings, values: Mapping[str, Value]) -> Configuration:
        """The first one. Raises SettingsError for what is wrong in sender_maps or denies."""
        return cls(settings, values, settings.load_sender_maps(), settings.load_denies())

    def read_anew(self, load: Load) -> Renewal:
        """The next one: as `load` says, where that can change. Raises SettingsError; it reads files, and blocks."""
        _, values = load()
        different = [name for name, value in values.items() if value.text != self.values[name].text]
        values = {name: values[name] if name in CHANGEABLE else value for name, value in self.values.items()}
        settings = parse_values(values)
        was = self.settings
        same_domain = settings.user_domain == was.user_domain
        same_maps = same_domain and settings.sender_maps == was.sender_maps
        same_denies = same_domain and (settings.denies, settings.addresses) == (was.denies, was.addresses)
        maps = self.maps if same_maps else settings.load_sender_maps()
        denies = self.denies if same_denies else settings.load_denies()
        return Renewal(
            Configuration(settings, values, maps, denies),
            [name for name in different if name in CHANGEABLE],
            [name for name in different if name not in CHANGEABLE],
        )


class Renewal(NamedTuple):
    """A configuration that was read anew: what differs from the one before, and what differs and has to wait."""

    configuration: Configuration
    changed: list[str]
    waiting: list[str]


async def read_anew(name: str, file: ChangingFile[Any] | None, log: Log) -> None:
    """Read the file of the setting `name` anew if it has changed, and say so, or what is wrong with it."""
    try:
        if file is not None and await asyncio.to_thread(file.reload_if_changed):
            log.info(f"{name} was read anew")
    except FileFault as error:
        log.error(f"{name} is not read anew, what it said before holds: {printable(str(error), 500)}")
