"""The listening sockets: opened as `listen` says, given to the event loop, and the paths of unix sockets removed
at the end."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from pbs_policy.postfix.listener import Listener, ListenError
from pbs_policy.service.server import PolicyServer
from pbs_policy.settings import Settings

_BACKLOG = 4_096
"""Connections the kernel may hold for us: after a restart every smtpd of a busy Postfix comes back at once."""


def open_listeners(settings: Settings) -> list[socket.socket]:
    """The listening sockets of `listen`. Raises ListenError, after closing those it had opened."""
    return open_at(settings.listen, settings)


def open_at(listeners: Iterable[Listener], settings: Settings) -> list[socket.socket]:
    """The same at other places, with the mode and the group of `settings`."""
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
                    Path(each.getsockname()).unlink(missing_ok=True)
                each.close()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ListenError(f"cannot listen on {listener}: {reason}") from error
    return sockets


async def accept(server: PolicyServer, listening: socket.socket) -> asyncio.Server:
    """Accept connections to `server` on a listening socket, in the running event loop."""
    # Not create_unix_server: from Python 3.13 on it removes the path at its end, uvloop's as well, and the path
    # may belong to the service manager; where it is ours, `remove_paths` removes it.
    return await asyncio.get_running_loop().create_server(server.connection, sock=listening, backlog=_BACKLOG)


def remove_paths(settings: Settings) -> None:
    """Remove the unix sockets of `listen` and `metrics_listen`: nobody listens there any more."""
    for listener in (*settings.listen, *settings.metrics_listen):
        if listener.path:
            Path(listener.path).unlink(missing_ok=True)


def _open_inet(listener: Listener, sockets: list[socket.socket]) -> None:
    found = socket.getaddrinfo(listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(found):
        opened = socket.socket(family, kind, protocol)
        sockets.append(opened)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
        opened.setblocking(False)


def _open_unix(path: str, sockets: list[socket.socket], mode: int, group: str) -> None:
    group_id = _group_id(group) if group else -1
    _remove_stale(path)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sockets.append(opened)
    umask = os.umask(0o777)  # nobody connects before mode and group are as they should be
    try:
        opened.bind(path)
    finally:
        os.umask(umask)
    os.chown(path, -1, group_id)
    Path(path).chmod(mode)
    opened.listen(_BACKLOG)
    opened.setblocking(False)


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ListenError(f"there is no group {group!r} (unix_socket_group)") from None


def _remove_stale(path: str) -> None:
    """Remove the socket that a killed service left. Raises ListenError where another one answers there."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        else:
            raise ListenError("another process listens there")
