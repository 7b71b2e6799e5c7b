"""How many SET commands Redis has carried out: what can be had of the number of logins that are recorded.

The service does not see logins. Each is one to three SET commands, which Redis counts anyway (`INFO commandstats`);
it is asked on a connection of its own, now and then, so that no relay attempt waits behind that answer.
"""

from __future__ import annotations

import asyncio
import re

from pbs_policy.store.connect import TIMEOUT
from pbs_policy.store.redis_connector import Connector

ASK_INTERVAL = 15.0
"""Seconds between two questions: as often as Prometheus usually comes."""

_CALLS = re.compile(rb"^cmdstat_set:calls=(\d{1,18}),", re.MULTILINE)


async def count_sets(connector: Connector) -> int:
    """SET commands since that Redis, the master, started. Raises what `connector` does, and RedisRefused where the
    ACL user may not ask."""
    line = await connector.open()
    try:
        async with asyncio.timeout(TIMEOUT):
            answer = await line.greet(b"INFO", b"commandstats")
    finally:
        line.close()
    calls = _CALLS.search(answer)
    return int(calls[1]) if calls else 0
