"""Every fault, in the order of the page."""

from __future__ import annotations

from tests.faults import peer_faults, redis_faults, service_faults
from tests.faults.fault import Fault

FAULTS = [
    each
    for module in (redis_faults, service_faults, peer_faults)
    for each in vars(module).values()
    if isinstance(each, Fault)
]
