"""What Postfix's lookup tables say: asked by postmap, as a daemon would ask them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from pbs_policy.host import Host, NotLookedAt
from pbs_policy.postfix.configuration import PostfixConfig


def find_value(host: Host, config: PostfixConfig, table: str, keys: Sequence[str]) -> str | None:
    """What `type:name` has for the first of these keys that it knows; None where it knows none. Raises NotLookedAt
    where that cannot be asked."""
    for key in keys:
        found = _postmap(host, config, table, "-q", key)
        if found is not None:
            return found.strip()
    return None


def values_of(host: Host, config: PostfixConfig, table: str) -> list[tuple[str, str]]:
    """Every key of `type:name` with its value. Raises NotLookedAt, as for tables of patterns, which have no list."""
    lines = (_postmap(host, config, table, "-s") or "").splitlines()
    return [(key, value) for key, _, value in (line.partition("\t") for line in lines)]


def _postmap(host: Host, config: PostfixConfig, table: str, *asked: str) -> str | None:
    """What postmap prints, None where it finds nothing. Raises NotLookedAt."""
    # Without the proxymap daemon, so also where Postfix does not run.
    folder, name = str(PurePosixPath(config.main_cf).parent), table.removeprefix("proxy:")
    answer = host.run("postmap", "-c", folder, *asked, name)
    if answer.status == 0:
        return answer.out
    # That main.cf sets a parameter twice says nothing of the table.
    said = [line for line in answer.err.strip().splitlines() if "overriding earlier entry" not in line]
    if said:
        raise NotLookedAt(f"{table}: {said[-1].removeprefix('postmap: ')}")
    return None
