"""The recorder, from its start to its end: an inventory of its parts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pbs_policy.dovecot.doveadm import is_installed
from pbs_policy.extras import why_no_metrics, why_no_reports
from pbs_policy.log import Log
from pbs_policy.recorder.logins import USUAL_SERVICES, LoginRules
from pbs_policy.recorder.sessions import SessionKeeper
from pbs_policy.recorder.writer import LoginWriter
from pbs_policy.service.reload import Configuration, Load
from pbs_policy.service.service import Service
from pbs_policy.service.sockets import open_listeners, remove_paths
from pbs_policy.settings import Settings
from pbs_policy.settings.conflicts import find_reports_faults
from pbs_policy.settings.sources import SettingsError, Value
from pbs_policy.store.question import Command
from pbs_policy.table.keys import Keys

if TYPE_CHECKING:
    from pbs_policy.pages import Pages

_WRITE_TIME = 1.0
"""Seconds, at the end, for what is still to be written to Redis: two tries."""

_LOG_INTERVAL = 1.0  # seconds between two looks at what the log did not take at once, and at repeats


def run(settings: Settings, values: Mapping[str, Value], log: Log, load: Load) -> None:
    """Record until SIGTERM or SIGINT; at SIGHUP `load` reads the settings anew.

    Raises ListenError, and SettingsError for a part that must not run like this, or where there is none to run.
    """
    secret = settings.reports_secret(os.environ.get("CREDENTIALS_DIRECTORY", ""))
    refuse_faults(settings, values, has_secret=bool(secret))
    service = Service(settings, values, log, load, probe(Keys(settings.key_prefix)))
    service.listening = open_listeners(settings.reports_listen, settings)
    pages = _open_pages(settings, log) if settings.recorder_metrics_listen else None
    try:
        service.run(lambda stopping: _record(service, secret, pages, stopping))
    finally:
        remove_paths(settings.recorder_metrics_listen if pages else ())
        log.info("stopped")


def _open_pages(settings: Settings, log: Log) -> Pages | None:
    """What answers at `recorder_metrics_listen`; None without the packages for it. Raises ListenError."""
    if lack := why_no_metrics("recorder_metrics_listen"):
        log.warning(f"the settings: {lack}")
        return None
    from pbs_policy.pages import Pages

    return Pages(settings.recorder_metrics_listen, settings, log)


def refuse_faults(settings: Settings, values: Mapping[str, Value], *, has_secret: bool) -> None:
    """Raise SettingsError where there is nothing to do, or where it would be unsafe."""
    checks, listen = settings.reports_check_passwords, settings.reports_listen
    faults = list(find_reports_faults(values, listen, checks_passwords=checks, has_secret=has_secret))
    if listen and (lack := why_no_reports()):
        faults.append(lack)
    if not listen and not _renews(settings):
        faults.append(
            "there is nothing to record: expected reports_listen, such as inet:127.0.0.1:10041, or renew_sessions "
            "and Dovecot's doveadm on this host"
        )
    if faults:
        raise SettingsError(faults)


def _renews(settings: Settings) -> bool:
    return bool(settings.renew_sessions) and is_installed()


def probe(keys: Keys) -> Command:
    """What asks whether Redis answers with no right but to write logins: it would change a key that is there."""
    return (b"SET", keys.login("probe"), b"", b"XX", b"EX", b"1")


async def _record(service: Service, secret: str, pages: Pages | None, stopping: asyncio.Event) -> None:
    lookups, log = service.lookups, service.log
    await lookups.open()
    writer = LoginWriter(LoginRules(service.configuration.values), lookups, log)
    keeper = SessionKeeper(lookups, log)
    reports = None
    if service.listening:
        from pbs_policy.recorder.reports import ReportServer  # aiohttp, which who has sessions alone may lack

        reports = ReportServer(service.listening, writer, log, secret)

    def follow(configuration: Configuration) -> None:
        writer.rules = LoginRules(configuration.values)
        keeper.follow(configuration.settings, configuration.denies, writer.rules)
        if reports:
            reports.services = configuration.settings.services or USUAL_SERVICES

    async def has_redis() -> bool:
        return lookups.is_connected

    follow(service.configuration)
    writing = asyncio.create_task(writer.run())
    if reports:
        await reports.start()
    if pages:
        from pbs_policy.recorder.numbers import RecorderNumbers

        pages.start_pages(RecorderNumbers(writer, reports, keeper, lookups, log), has_redis)
    for listener in service.listeners:
        if not listener.is_local:
            log.warning(f"reports are heard on {listener}: whoever reaches it with the secret may permit anybody")
    service.announce()
    work = [service.beat(), service.reload_at_hangup(follow), _keep(log)]
    if _renews(service.configuration.settings):
        work.append(keeper.run())
    tasks = [asyncio.create_task(each) for each in work]
    await stopping.wait()
    service.notify.stopping()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)  # one of them has a doveadm to end
    if reports:
        await reports.stop()
    writer.stop()
    await asyncio.wait([writing], timeout=_WRITE_TIME)
    if pages:
        await pages.stop()
    await lookups.close()
    await writing  # it says what Redis has not taken


async def _keep(log: Log) -> None:
    while True:
        await asyncio.sleep(_LOG_INTERVAL)
        log.tell_repeats()
        log.flush()
