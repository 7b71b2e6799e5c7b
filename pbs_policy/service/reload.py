"""The settings read anew while the service runs (SIGHUP): what can change then, what waits for a restart,
and what is said.

All or nothing: a file with a fault changes nothing. What can change is listed, so that a setting that nobody thought
of here waits for a restart, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pbs_policy.decision.denies import Denies
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.log import Log, printable
from pbs_policy.settings import Settings, parse_values
from pbs_policy.settings.sources import SettingsError, Value

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


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the service works by: the settings, where each comes from, and the files of sender_maps and denies."""

    settings: Settings
    values: Mapping[str, Value]
    maps: SenderMaps | None
    denies: Denies | None

    @classmethod
    def begin(cls, settings: Settings, values: Mapping[str, Value]) -> Configuration:
        """The first one. Raises SettingsError for what is wrong in sender_maps or denies."""
        return cls(settings, values, settings.load_sender_maps(), settings.load_denies())

    def follow(self, values: Mapping[str, Value]) -> Configuration:
        """The next one: as `values` say, where that can change. Raises SettingsError; it reads files, and blocks."""
        values = {name: values[name] if name in CHANGEABLE else value for name, value in self.values.items()}
        settings = parse_values(values)
        was = self.settings
        same_domain = settings.user_domain == was.user_domain
        same_maps = same_domain and settings.sender_maps == was.sender_maps
        same_denies = same_domain and (settings.denies, settings.addresses) == (was.denies, was.addresses)
        return Configuration(
            settings,
            values,
            self.maps if same_maps else settings.load_sender_maps(),
            self.denies if same_denies else settings.load_denies(),
        )


@dataclass(frozen=True, slots=True)
class Renewal:
    """A configuration that was read anew: what differs from the one before, and what differs and has to wait."""

    configuration: Configuration
    changed: tuple[str, ...]
    waiting: tuple[str, ...]

    @classmethod
    def read(cls, before: Configuration, load: Load) -> Renewal:
        """Read it. Raises SettingsError; it reads files, and blocks."""
        _, values = load()
        different = [name for name, value in values.items() if value.text != before.values[name].text]
        changed = tuple(name for name in different if name in CHANGEABLE)
        waiting = tuple(name for name in different if name not in CHANGEABLE)
        return cls(before.follow(values), changed, waiting)

    def report(self, log: Log) -> None:
        """Say what has changed, and what has not."""
        values = self.configuration.values
        changed = " ".join(f"{name}={values[name].text!r}" for name in self.changed)
        log.info(f"the settings were read anew: {printable(changed, 1000) or 'nothing has changed'}")
        if self.waiting:
            log.warning(f"only a restart changes {', '.join(self.waiting)}: what was set before holds until then")


def report_faults(error: SettingsError, log: Log) -> None:
    """Say why the settings were not read anew, all of it."""
    for fault in error.faults:
        log.error(printable(fault, 1000))
    log.error("the settings were not read anew, what they said before holds")
