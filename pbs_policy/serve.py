"""The policy service as a process: sockets opened, parts put together, signals obeyed: an inventory of the parts."""

from __future__ import annotations

import asyncio
import gc
import grp
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from pbs_policy import __version__
from pbs_policy.keys import Keys
from pbs_policy.listener import Listener, ListenError
from pbs_policy.log import Log, printable
from pbs_policy.lookups import Lookups
from pbs_policy.senders import SenderMaps
from pbs_policy.server import PolicyServer
from pbs_policy.settings import Settings
from pbs_policy.sources import Value
from pbs_policy.upkeep import Upkeep
from pbs_policy.usage import Usage
from pbs_policy.workers import supervise

_BACKLOG = 4_096
"""Connections the kernel may hold for us: after a restart every smtpd of a busy Postfix comes back at once."""

_DRAIN_TIME = 0.8
"""Seconds for requests in flight after SIGTERM: longer than a lookup may take, and the whole ends within 1 s."""


_WRITE_TIME = 0.6
"""Seconds, after that, for what is still to be written to Redis: a lookup and a little more."""


def run(settings: Settings, values: Mapping[str, Value], log: Log) -> None:
    """Serve until SIGTERM or SIGINT. Raises ListenError, and SettingsError for an unreadable password."""
    password = settings.redis_password()
    maps = settings.load_sender_maps()  # once: the workers have it from here, and look each second if it has changed
    _raise_descriptor_limit()
    if settings.workers > 1:
        # Sharing a port among our workers would share it with another service's as well: see that it is free.
        for each in open_listeners(settings, shared=False):
            each.close()
    shares = [open_listeners(settings, shared=settings.workers > 1)]
    # A unix socket has one queue that all workers share; TCP ports get one for each worker from the kernel.
    shares += [_share(shares[0]) for _ in range(settings.workers - 1)]
    announce = partial(_announce, settings, values, shares[0], log)
    try:
        if settings.workers == 1:
            _work(settings, password, maps, shares[0], log, announce)
        else:
            supervise(
                settings.workers,
                lambda index, lifeline: _work(settings, password, maps, shares[index], log, lambda: None, lifeline),
                _DRAIN_TIME + 0.1,
                log,
                announce,
            )
    finally:
        _remove_paths(settings)
        log.info("stopped")


def _work(
    settings: Settings,
    password: str,
    maps: SenderMaps | None,
    sockets: list[socket.socket],
    log: Log,
    announce: Callable[[], None],
    lifeline: int | None = None,
) -> None:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings, password, maps, sockets, log, announce, lifeline))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _serve(
    settings: Settings,
    password: str,
    maps: SenderMaps | None,
    sockets: list[socket.socket],
    log: Log,
    announce: Callable[[], None],
    lifeline: int | None,
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    if lifeline is not None:
        loop.add_reader(lifeline, stop.set)
    log.write_soon(loop.call_soon)
    keys = Keys(settings.key_prefix)
    lookups = Lookups(settings.redis_url, settings.redis_user, password, keys.probe, log, settings.redis_tls)
    usage = Usage(settings.key_prefix, settings.usage_kept) if settings.usage_kept else None
    server = PolicyServer(
        settings.rules, settings.addresses, keys, lookups, log, settings.log_decisions, maps, usage
    )
    await lookups.open()
    upkeep = Upkeep(server)
    await upkeep.look()
    sweeping, keeping_up = (asyncio.create_task(each) for each in (server.sweep(), upkeep.run()))
    servers = [await _accept(server, each) for each in sockets]
    announce()
    # What start-up made stays: the collector need not look at it again and again, nor at each hundred requests.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    await stop.wait()
    for each in servers:
        each.close()
    await server.stop(_DRAIN_TIME)
    sweeping.cancel()
    upkeep.stop()
    await asyncio.wait([keeping_up], timeout=_WRITE_TIME)
    await lookups.close()
    log.write_now()


async def _accept(server: PolicyServer, listening: socket.socket) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    if listening.family == socket.AF_UNIX:
        if sys.version_info >= (3, 13) and isinstance(loop, asyncio.SelectorEventLoop):
            # Else asyncio removes the socket's path, which is `run`'s to remove when every worker is done with it.
            return await loop.create_unix_server(
                server.connection, sock=listening, backlog=_BACKLOG, cleanup_socket=False
            )
        return await loop.create_unix_server(server.connection, sock=listening, backlog=_BACKLOG)
    return await loop.create_server(server.connection, sock=listening, backlog=_BACKLOG)


def open_listeners(settings: Settings, *, shared: bool) -> list[socket.socket]:
    """The listening sockets of `listen`; `shared`: others of ours will listen at the same ports.

    Raises ListenError, after closing those it had opened.
    """
    sockets: list[socket.socket] = []
    for listener in settings.listen:
        try:
            if listener.path:
                _open_unix(listener.path, sockets, settings.unix_socket_mode, settings.unix_socket_group)
            else:
                _open_inet(listener, sockets, shared=shared)
        except (OSError, ListenError) as error:
            for each in sockets:
                if each.family == socket.AF_UNIX and each.getsockname():
                    Path(each.getsockname()).unlink(missing_ok=True)
                each.close()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ListenError(f"cannot listen on {listener}: {reason}") from error
    return sockets


def _open_inet(listener: Listener, sockets: list[socket.socket], *, shared: bool) -> None:
    found = socket.getaddrinfo(listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(found):
        opened = socket.socket(family, kind, protocol)
        sockets.append(opened)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
        opened.setblocking(False)


def _share(sockets: list[socket.socket]) -> list[socket.socket]:
    """One more worker's sockets: the same unix sockets, and new ones at the same TCP ports."""
    shared: list[socket.socket] = []
    for each in sockets:
        if each.family == socket.AF_UNIX:
            shared.append(each)
        else:
            _open_inet(_listener_of(each), shared, shared=True)
    return shared


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


def _remove_paths(settings: Settings) -> None:
    for listener in settings.listen:
        if listener.path:
            Path(listener.path).unlink(missing_ok=True)


def _announce(settings: Settings, values: Mapping[str, Value], sockets: list[socket.socket], log: Log) -> None:
    for listener in settings.listen:
        if not listener.is_local:
            log.warning(
                f"listening on {listener}: whoever can reach it may ask who may relay; "
                "127.0.0.1, [::1] or a unix socket keep it to this machine"
            )
    changed = " ".join(f"{name}={value.text!r}" for name, value in values.items() if value.place != "default")
    names = " ".join(str(_listener_of(each)) for each in sockets)
    log.info(f"pbs-policy {__version__} ready, listening on {names}; {printable(changed, 1000) or 'all defaults'}")


def _listener_of(listening: socket.socket) -> Listener:
    name = listening.getsockname()
    return Listener(path=name) if isinstance(name, str) else Listener(host=name[0], port=name[1])


def _raise_descriptor_limit() -> None:
    """One descriptor per smtpd of each Postfix: take what the administrator allows, not the shell's default."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
