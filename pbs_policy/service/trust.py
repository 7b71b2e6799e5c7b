"""Who else may change or read what the service relies on: its files and unix sockets, judged by owner and mode when
it starts. Whoever can write the settings file, or answer in place of the service, permits whom he likes.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from pbs_policy.settings import Settings
from pbs_policy.sources import SettingsError

_OTHERS_WRITE, _OTHERS_READ, _GROUP_WRITES = stat.S_IWOTH, stat.S_IROTH, stat.S_IWGRP


def find_doubts(file: Path, settings: Settings) -> list[str]:
    """What deserves a warning about the settings `file`, the files that `settings` name, and the unix sockets.

    Raises SettingsError where a file can be changed by everybody. What is not there is for others to report.
    """
    faults: list[str] = []
    doubts: list[str] = []
    for path, name, is_secret in _files(file, settings):
        for text, is_fault in _judge(path, is_secret):
            (faults if is_fault else doubts).append(f"{path} ({name}) {text}")
    if faults:
        raise SettingsError(faults)
    return doubts + list(_sockets(settings))


def _files(file: Path, settings: Settings) -> Iterator[tuple[Path, str, bool]]:
    yield file, "settings", False
    key, certificate = settings.redis_tls_key_file, settings.redis_tls_cert_file
    for text, name, is_secret in [
        (settings.redis_password_file, "redis_password_file", True),
        (settings.sentinel_password_file, "sentinel_password_file", True),
        (key, "redis_tls_key_file", True),
        (certificate, "redis_tls_cert_file", not key),
        (settings.redis_tls_ca_file, "redis_tls_ca_file", False),
        (settings.sender_maps, "sender_maps", False),
        (settings.denies, "denies", False),
    ]:
        if text:
            yield Path(text), name, is_secret


def _judge(path: Path, is_secret: bool) -> Iterator[tuple[str, bool]]:
    """What is wrong with a file, and whether nothing may start because of it."""
    try:
        status = path.stat()
    except OSError:
        return
    if not stat.S_ISREG(status.st_mode):
        return
    mode = f"mode {stat.S_IMODE(status.st_mode):04o}"
    if status.st_mode & _OTHERS_WRITE:
        yield f"can be changed by everybody ({mode}): chmod o-w", True
    elif status.st_mode & _GROUP_WRITES and status.st_gid not in (0, os.getegid()):
        yield f"can be changed by a group that is not the service's ({mode}): chmod g-w", False
    if status.st_uid not in (0, os.geteuid()):
        yield f"belongs to {_user(status.st_uid)}, who can change it: chown root", False
    if is_secret and status.st_mode & _OTHERS_READ:
        yield f"can be read by everybody ({mode}): chmod o-r", False


def _sockets(settings: Settings) -> Iterator[str]:
    paths = [Path(each.path) for each in settings.listen if each.path]
    if paths and settings.unix_socket_mode & _OTHERS_WRITE:
        yield (
            f"unix_socket_mode = {settings.unix_socket_mode:04o} lets every local user ask who may relay, and use up "
            "what caps allow: 0660, and unix_socket_group"
        )
    for folder in dict.fromkeys(path.parent for path in paths):
        try:
            mode = folder.stat().st_mode
        except OSError:
            continue
        if mode & _OTHERS_WRITE:
            yield f"{folder} (listen) can be changed by everybody, who may put a socket there that permits him"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
