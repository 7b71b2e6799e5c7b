"""The check of what `redis_url` names where that is more than one server: each is asked for the master by itself. One
that is down is not noticed while another answers, until that one is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pbs_policy.doctor.finding import Finding, good, warning, wrong
from pbs_policy.log import printable
from pbs_policy.settings import Settings
from pbs_policy.store.connect import connect_by
from pbs_policy.store.errors import StoreUnavailable
from pbs_policy.store.redis_url import Place, written

Named = tuple[Place, Place | StoreUnavailable]
"""A server, and the master that it names or is; or why it does not."""


def ask_places(settings: Settings) -> list[Named]:
    """Ask each server by itself. Raises SettingsError for an unreadable password."""
    named: list[Named] = []
    for place in settings.redis_url.places:
        alone = replace(settings, redis_url=replace(settings.redis_url, places=(place,)))
        try:
            named.append((place, connect_by(alone).find_master()))
        except StoreUnavailable as error:
            named.append((place, error))
    return named


def check_places(settings: Settings, place: str) -> Iterator[Finding]:
    """Whether all answer, and agree; nothing where there is only one. `place` is where redis_url is set. Raises
    SettingsError."""
    url = settings.redis_url
    if not url.names_master:
        return
    named = ask_places(settings)
    what = "Sentinels" if url.master else "nodes"
    masters = sorted({master for _, master in named if not isinstance(master, StoreUnavailable)})
    silent = [(each, said) for each, said in named if isinstance(said, StoreUnavailable)]
    for each, said in silent:
        yield warning("store.places", f"{written(each)} is of no use now: {printable(str(said), 200)}", place,
                      "start it, or take it out of redis_url")  # fmt: skip
    if len(masters) > 1:
        names = " and ".join(map(written, masters))
        mend = "a failover may be under way: look again; otherwise redis_url names servers of two sites"
        yield wrong("store.places", f"the {what} are not of one mind, these are masters: {names}", place, mend)
    elif masters and not silent:
        yield good("store.places", f"each of {len(named)} {what} answers; the master is {written(masters[0])}", place)
