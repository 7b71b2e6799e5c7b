"""What Postfix's lookup tables say: asked by postmap, as a daemon would ask them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from pbs_policy.host import Host, NotLookedAt
from pbs_policy.postfix.configuration import PostfixConfig


def find_value(host: Host, config: PostfixConfig, table: str, keys: Sequence[str]) -> str | None:
    """What `type:name` has for the first of these keys that it knows; None where it knows none. Raises NotLookedAt
    where that cannot be asked."""
    folder = str(PurePosixPath(config.main_cf).parent)
    # Without the proxymap daemon, so also where Postfix does not run.
    name = table.removeprefix("proxy:")
    for key in keys:
        answer = host.run("postmap", "-c", folder, "-q", key, name)
        if answer.status == 0:
            return answer.out.strip()
        # That main.cf sets a parameter twice says nothing of the table.
        said = [line for line in answer.err.strip().splitlines() if "overriding earlier entry" not in line]
        if said:
            raise NotLookedAt(f"{table}: {said[-1].removeprefix('postmap: ')}")
    return None
