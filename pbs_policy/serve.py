"""The policy service as a process: sockets opened, parts put together, signals obeyed: an inventory of the parts."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import socket
from collections.abc import Callable, Mapping
from functools import partial

from pbs_policy import __version__
from pbs_policy.keys import Keys
from pbs_policy.log import Log, printable
from pbs_policy.lookups import Lookups
from pbs_policy.senders import SenderMaps
from pbs_policy.server import PolicyServer
from pbs_policy.settings import Settings
from pbs_policy.sockets import accept, listener_of, open_listeners, remove_paths, share
from pbs_policy.sources import Value
from pbs_policy.upkeep import Upkeep
from pbs_policy.usage import Usage
from pbs_policy.workers import supervise

_DRAIN_TIME = 0.8
"""Seconds for requests in flight after SIGTERM: longer than a lookup may take, and the whole ends within 1 s."""


_WRITE_TIME = 0.6
"""Seconds, after that, for what is still to be written to Redis: a lookup and a little more."""

_OWN_DESCRIPTORS = 64
"""Descriptors that are not Postfix': listeners, Redis and its Sentinels, name servers, files; under 30 in all."""


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
    shares += [share(shares[0]) for _ in range(settings.workers - 1)]
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
        remove_paths(settings)
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
    server.most_connections = _descriptors_for_peers()
    await lookups.open()
    upkeep = Upkeep(server)
    await upkeep.look()
    sweeping, keeping_up = (asyncio.create_task(each) for each in (server.sweep(), upkeep.run()))
    servers = [await accept(server, each) for each in sockets]
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


def _announce(settings: Settings, values: Mapping[str, Value], sockets: list[socket.socket], log: Log) -> None:
    for listener in settings.listen:
        if not listener.is_local:
            log.warning(
                f"listening on {listener}: whoever can reach it may ask who may relay; "
                "127.0.0.1, [::1] or a unix socket keep it to this machine"
            )
    changed = " ".join(f"{name}={value.text!r}" for name, value in values.items() if value.place != "default")
    names = " ".join(str(listener_of(each)) for each in sockets)
    log.info(f"pbs-policy {__version__} ready, listening on {names}; {printable(changed, 1000) or 'all defaults'}")


def _raise_descriptor_limit() -> None:
    """One descriptor per smtpd of each Postfix: take what the administrator allows, not the shell's default."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _descriptors_for_peers() -> int:
    """How many connections there may be, so that one to Redis can always be opened, and a log be written."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - _OWN_DESCRIPTORS, soft // 2)
