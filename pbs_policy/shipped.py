"""Where the files are that come with the package and are installed elsewhere: the script, the example configurations.

An installed package has them in its folder `share`, a checkout at its top.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The path of `dovecot-hooks/...` or `postfix-examples/...`. Raises FileNotFoundError where it is not there."""
    for top in (_PACKAGE / "share", _PACKAGE.parent):
        if (top / name).exists():
            return top / name
    raise FileNotFoundError(f"{name} did not come with this installation of pbs-policy")
