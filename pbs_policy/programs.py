"""Which programs are installed, and what to install where one is missing."""

from __future__ import annotations

import os
import shutil

# An ordinary user's PATH often lacks these, and Postfix and Dovecot live in them.
_SYSTEM_PROGRAMS = ("/usr/local/sbin", "/usr/sbin", "/sbin")

_PROGRAMS = {
    "redis": (("redis-server", "valkey-server"), "redis-server", False),
    "iproute2": (("ip",), "iproute2", True),
    "openssl": (("openssl",), "openssl", False),
    "postfix": (("postconf",), "postfix", True),
    "dovecot": (("dovecot",), "dovecot-pop3d dovecot-imapd", True),
}


def find_program(*names: str) -> str | None:
    """Return the path of the first of these programs that is installed, or None."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_PROGRAMS])
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def missing(*names: str) -> str | None:
    """Say what is missing to run these daemons ("redis", "postfix", "dovecot"), or None if nothing is.

    The sentence serves as a test's skip message and as an error of the command line. Postfix and Dovecot
    start their processes under other users, which only root can do. Raises KeyError for any other name.
    """
    lacks = []
    for name in names:
        programs, packages, needs_root = _PROGRAMS[name]
        if find_program(*programs) is None:
            lacks.append(f"{name} is not installed: apt-get install {packages}")
        elif needs_root and os.geteuid() != 0:
            lacks.append(f"a private {name} needs root: it starts its processes under other users")
    return "; ".join(lacks) or None
