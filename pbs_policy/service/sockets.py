"""The listening sockets: opened as `listen` says, and the paths of unix sockets removed at the end."""

from __future__ import annotations

import grp
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pbs_policy.command_line import command_line
from pbs_policy.postfix.listener import Listener, ListenError
from pbs_policy.settings import Settings
from pbs_policy.trust import Opened, Untrusted, give_to_group, opened

BACKLOG = 4_096
"""Connections the kernel may hold for us: after a restart every smtpd of a busy Postfix comes back at once."""


def open_listeners(listeners: Iterable[Listener], settings: Settings) -> list[socket.socket]:
    """The listening sockets there, with the mode and the group of `settings`. Raises ListenError, after closing those
    it had opened."""
    sockets: list[socket.socket] = []
    for listener in listeners:
        try:
            if listener.path:
                _open_unix(listener.path, sockets, settings.unix_socket_mode, settings.unix_socket_group)
            else:
                _open_inet(listener, sockets)
        except (OSError, ListenError) as error:
            for each in sockets:
                if each.family == socket.AF_UNIX and each.getsockname():
                    _remove(each.getsockname())
                each.close()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ListenError(f"cannot listen on {listener}: {reason}") from error
    return sockets


def remove_paths(listeners: Iterable[Listener]) -> None:
    """Remove the unix sockets among these: nobody listens there any more."""
    for listener in listeners:
        if listener.path:
            _remove(listener.path)


def _remove(path: str) -> None:
    with suppress(OSError), _folder_of(path) as folder:
        os.unlink(Path(path).name, dir_fd=folder.number)


@contextmanager
def _folder_of(path: str) -> Iterator[Opened]:
    """The folder of a unix socket. Others who can change it can put a socket of theirs in the place of ours, or have
    us change another file. Raises Untrusted where everybody can change it, and where we are root and anybody can."""
    parent = Path(path).parent
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(opened(parent, os.O_PATH))
        except Untrusted as error:
            raise Untrusted(f"{parent}: {error}") from None
        if folder.doubts and os.geteuid() == 0:
            raise Untrusted(f"{parent}: {folder.doubts[0]}, or run the service as a user of its own")
        yield folder


def _open_inet(listener: Listener, sockets: list[socket.socket]) -> None:
    found = socket.getaddrinfo(listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(found):
        opened = socket.socket(family, kind, protocol)
        sockets.append(opened)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(BACKLOG)
        opened.setblocking(False)


def _open_unix(path: str, sockets: list[socket.socket], mode: int, group: str) -> None:
    group_id = _group_id(group) if group else None
    with _folder_of(path) as folder:
        _remove_stale(path, folder)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sockets.append(bound)
        umask = os.umask(0o777 & ~mode)  # the mode from the beginning on; nobody connects before `listen`
        try:
            bound.bind(path)
        finally:
            os.umask(umask)
        if group_id is not None:
            _give_to_group(folder, Path(path), group, group_id)
    bound.listen(BACKLOG)
    bound.setblocking(False)


def _give_to_group(folder: Opened, path: Path, group: str, group_id: int) -> None:
    try:
        give_to_group(folder, path.name, group_id)
    except PermissionError:  # we are not in the group, or, as in the unit, give nothing to anybody
        folder_name = str(path.parent)
        chgrp = command_line("chgrp", group, folder_name)
        instead = f"leave that empty, and {chgrp} && {command_line('chmod', 'g+s', folder_name)}"
        raise ListenError(f"we may not give it to the group {group} (unix_socket_group): {instead}") from None


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ListenError(f"there is no group {group!r} (unix_socket_group)") from None


def _remove_stale(path: str, folder: Opened) -> None:
    """Remove the socket that a killed service left. Raises ListenError where another one answers there."""
    name = Path(path).name
    try:
        if not stat.S_ISSOCK(os.stat(name, dir_fd=folder.number, follow_symlinks=False).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(name, dir_fd=folder.number)
        else:
            raise ListenError("another process listens there")
