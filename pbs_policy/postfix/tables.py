"""What Postfix's lookup tables say: asked by postmap, as a daemon would ask them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from pbs_policy.host import Host, NotLookedAt
from pbs_policy.postfix.configuration import PostfixConfig


def find_key(host: Host, config: PostfixConfig, table: str, keys: Sequence[str]) -> str:
    """The first of these keys that `type:name` has; "" where it has none. Raises NotLookedAt where that cannot be
    asked."""
    folder = str(PurePosixPath(config.main_cf).parent)
    # Without the proxymap daemon, so also where Postfix does not run.
    name = table.removeprefix("proxy:")
    for key in keys:
        answer = host.run("postmap", "-c", folder, "-q", key, name)
        if answer.status == 0:
            return key
        said = answer.err.strip().splitlines()
        if said:
            raise NotLookedAt(f"{table}: {said[-1].removeprefix('postmap: ')}")
    return ""
