"""Who else can change or read what the service relies on: its settings file, the files that it names, and the folders
of its unix sockets. Said at the start, and when the settings are read anew; `trust` is what judges."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pbs_policy.settings import Settings
from pbs_policy.settings.sources import SettingsError
from pbs_policy.trust import Untrusted, opened


def find_doubts(file: Path, settings: Settings) -> list[str]:
    """What deserves a warning about the settings `file`, the files that `settings` name, and the unix sockets.

    Raises SettingsError where everybody can change one. What is not there is for others to report.
    """
    faults: list[str] = []
    doubts: list[str] = []
    for path, name, is_secret in _files(file, settings):
        try:
            with opened(path, os.O_PATH) as found:
                doubts += [f"{path} ({name}): {doubt}" for doubt in found.doubts]
                mode = found.status.st_mode
        except Untrusted as error:
            faults.append(f"{path} ({name}): {error}")
        except OSError:
            continue
        else:
            if is_secret and stat.S_ISREG(mode) and mode & stat.S_IROTH:
                doubts.append(f"{path} ({name}): can be read by everybody (mode {stat.S_IMODE(mode):04o}): chmod o-r")
    if faults:
        raise SettingsError(faults)
    return doubts + list(_sockets(settings))


def _files(file: Path, settings: Settings) -> Iterator[tuple[Path, str, bool]]:
    yield file, "settings", False
    key, certificate = settings.redis_tls_key_file, settings.redis_tls_cert_file
    for text, name, is_secret in [
        (settings.redis_password_file, "redis_password_file", True),
        (settings.sentinel_password_file, "sentinel_password_file", True),
        (settings.reports_secret_file, "reports_secret_file", True),
        (key, "redis_tls_key_file", True),
        (certificate, "redis_tls_cert_file", not key),
        (settings.redis_tls_ca_file, "redis_tls_ca_file", False),
        (settings.sender_maps, "sender_maps", False),
        (settings.denies, "denies", False),
    ]:
        if text:
            yield Path(text), name, is_secret


def _sockets(settings: Settings) -> Iterator[str]:
    paths = [Path(each.path) for each in settings.listen if each.path]
    if paths and settings.unix_socket_mode & stat.S_IWOTH:
        yield (
            f"unix_socket_mode = {settings.unix_socket_mode:04o} lets every local user ask who may relay, and use up "
            "what caps allow: 0660, and unix_socket_group"
        )
    for folder in dict.fromkeys(path.parent for path in paths):
        try:
            mode = folder.stat().st_mode
        except OSError:
            continue
        if mode & stat.S_IWOTH:
            yield f"{folder} (listen): everybody can put a socket there that permits him, while ours is not there"
