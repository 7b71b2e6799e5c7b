"""What comes with the package and is used elsewhere: the script, the example configurations, the manual pages.

An installed package has each in its folder `share`, a checkout (and an editable installation, which is one) where
`SHIPPED` says. pyproject.toml puts the same into a wheel.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_PACKAGE = Path(__file__).resolve().parent


class Shipped(NamedTuple):
    """A folder: where a checkout has it, and what it holds."""

    in_checkout: str
    summary: str


SHIPPED = {
    "dovecot-hooks": Shipped("dovecot-hooks", "the post-login script and its configuration for Dovecot"),
    "man": Shipped("docs/man", "manual pages: man -l FILE"),
    "monitoring": Shipped("docs/monitoring", "alert rules for Prometheus and a dashboard for Grafana"),
    "postfix-examples": Shipped("postfix-examples", "lines for main.cf"),
    "redis-examples": Shipped("redis-examples", "ACL users for Redis: script, service, administrator, Sentinel"),
    "systemd": Shipped("systemd", "the units of the service"),
    "without-systemd": Shipped("without-systemd", "the service for runit and OpenRC, and as a container"),
}


def shipped(name: str) -> Path:
    """The path of a folder of `SHIPPED`, or of `FOLDER/FILE`. Raises FileNotFoundError where it is not there."""
    folder, _, file = name.partition("/")
    known = SHIPPED.get(folder)
    if known is not None:
        # A checkout shows itself by its pyproject.toml: beside an installed package are other people's packages.
        top = _PACKAGE.parent
        places = [_PACKAGE / "share" / folder]
        places += [top / known.in_checkout] if (top / "pyproject.toml").is_file() else []
        for place in places:
            if (place / file).exists():
                return place / file
    raise FileNotFoundError(f"{name} did not come with this installation of pbs-policy")
