"""What redis-py raises, in words that name the server: it becomes StoreUnavailable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pbs_policy.store.errors import NotTheMaster, StoreRefused, StoreUnavailable
from pbs_policy.store.resp import redis

errors = redis.exceptions

# redis-py takes the code off a server's error. From 7.1 on it keeps it in `status_code`.
_CODES: dict[type[Exception], str] = {
    errors.AskError: "ASK", errors.BusyLoadingError: "LOADING", errors.ClusterDownError: "CLUSTERDOWN",
    errors.MasterDownError: "MASTERDOWN", errors.MovedError: "MOVED", errors.NoPermissionError: "NOPERM",
    errors.ReadOnlyError: "READONLY",
}  # fmt: skip


@contextmanager
def errors_of(where: str, within: float) -> Iterator[None]:
    """What redis-py raises becomes StoreUnavailable, which names the server, and the seconds that there were."""
    try:
        yield
    except (errors.ResponseError, errors.AuthenticationError, errors.BusyLoadingError, StoreRefused) as error:
        refused = StoreRefused(said(error))
        refused.where = where
        raise refused from error
    except redis.TimeoutError as error:
        raise StoreUnavailable(f"{where}: no answer within {within} s") from error
    except (redis.InvalidResponse, TypeError, MemoryError) as error:  # the latter two are hiredis'
        raise StoreUnavailable(f"{where}: what answers there does not speak Redis' protocol") from error
    except errors.RedisError as error:
        raise StoreUnavailable(f"{where}: {_reason(error)}") from error
    except NotTheMaster as error:
        raise NotTheMaster(f"{where}: {error}") from error
    except OSError as error:
        raise StoreUnavailable(f"{where}: {error.strerror or error}") from error


def said(error: Exception) -> str:
    """A server's error as it was sent, without the command in front, which redis-py puts there."""
    code = getattr(error, "status_code", None) or _CODES.get(type(error), "")
    text = re.sub(r"\ACommand # \d+ \(.*\) of pipeline caused error: ", "", str(error), flags=re.DOTALL)
    return f"{code} {text}" if code and code != "ERR" else text


def _reason(error: errors.RedisError) -> str:
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError):
        return cause.strerror or str(cause)
    return str(error) or type(error).__name__
