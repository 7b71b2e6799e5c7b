"""What is said of an error, and the exit status of sysexits.h for it: what happened, where (the server, the setting
and where that is written, the file), and what to do about it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from pbs_policy.address import AddressError
from pbs_policy.demo.daemons import DaemonError
from pbs_policy.log import printable
from pbs_policy.postfix.listener import ListenError
from pbs_policy.settings.sources import SettingsError, Value
from pbs_policy.store.errors import NotTheMaster, StoreRefused, StoreUnavailable
from pbs_policy.store.replies import missing_right

_LONGEST = 1000  # characters of what a server says

_FILES = {
    errno.EACCES: "run this as root (sudo), or as a user who may read it",
    errno.EISDIR: "name a file",
    errno.ENOENT: "create it, or correct its name",
    errno.ENOTDIR: "correct its name",
}
"""What to do where a file cannot be opened."""

_REDIS = {
    "AUTH": "that user has no password in Redis: correct redis_user ({redis_user}) or redis_password_file "
    "({redis_password_file})",
    "BUSY": "a script runs in it: try again in a moment",
    "CLUSTERDOWN": "see redis-cli CLUSTER INFO",
    "LOADING": "it reads its data: try again in a moment",
    "MASTERDOWN": "it is a replica without a master: correct redis_url ({redis_url})",
    "MISCONF": "it cannot save its data: see its log",
    "NOAUTH": "set redis_password_file ({redis_password_file}), and redis_user ({redis_user}) where it has users",
    "NOREPLICAS": "too few replicas are connected: see redis-cli INFO replication",
    "OOM": "free memory there, or raise its maxmemory",
    "READONLY": "name the master in redis_url ({redis_url})",
    "TRYAGAIN": "try again in a moment",
    "WRONGPASS": "correct redis_user ({redis_user}) or redis_password_file ({redis_password_file})",
    "WRONGTYPE": "another program writes such keys: find it, or change key_prefix ({key_prefix})",
}  # fmt: skip
"""What to do where Redis answers with an error, by its first word."""


def explain(error: Exception, values: Mapping[str, Value]) -> tuple[str, int]:
    """What to say of `error`, a line or more, and the exit status; `values` are the settings, as far as they are
    known."""
    if isinstance(error, SettingsError):
        return "\n".join(map(_with_advice, error.faults)), os.EX_CONFIG
    if isinstance(error, StoreUnavailable):
        return _of_redis(error, values), os.EX_UNAVAILABLE
    if isinstance(error, AddressError):
        return str(error), os.EX_USAGE
    if isinstance(error, DaemonError):
        return str(error), os.EX_UNAVAILABLE
    if isinstance(error, ListenError):
        return f"{error}; correct listen ({_place('listen', values)})", os.EX_OSERR
    if isinstance(error, OSError):
        # Without a file of the system's own it is one of ours, which says everything.
        said = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        return _with_advice(said), os.EX_IOERR
    return f"a fault of this program, please report it: {error!r}", os.EX_SOFTWARE


def _with_advice(said: str) -> str:
    """What is said of a file, and what to do."""
    for number, advice in _FILES.items():
        if said.endswith(os.strerror(number)):
            return f"{said}; {advice}"
    return said


def _of_redis(error: StoreUnavailable, values: Mapping[str, Value]) -> str:
    said = printable(str(error), _LONGEST).rstrip(".")
    places = {name: _place(name, values) for name in ("redis_url", "redis_user", "redis_password_file", "key_prefix")}
    prefix = values["key_prefix"].text if "key_prefix" in values else ""
    user = (values["redis_user"].text if "redis_user" in values else "") or "default"
    if isinstance(error, NotTheMaster):
        advice = _REDIS["READONLY"]
    elif not isinstance(error, StoreRefused):
        advice = "see whether Redis runs there (systemctl status redis-server), or correct redis_url ({redis_url})"
    elif right := missing_right(said, prefix):
        advice = f"give its user {user} that right ({right}), as redis-examples/administrator.acl does"
    else:
        advice = _REDIS.get(said.partition(" ")[0], "see Redis's log")
    if isinstance(error, StoreRefused):
        said = f"{error.where}: {said}"
    return f"Redis is unavailable: {said}; {advice.format_map(places)}"


def _place(name: str, values: Mapping[str, Value]) -> str:
    """Where a setting is written down."""
    return values[name].place if name in values else "default"
