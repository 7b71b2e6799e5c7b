"""What is fuzzed: one module for each place where bytes of others come in.

Each has `run(data)`, which raises where its invariant is broken, and `WORDS`, pieces that the fuzzer puts together;
the invariant is its docstring. They need nothing but the package, so that `make test` replays the corpus
(`tests/fuzz/corpus/TARGET/`) without the fuzzer.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from pbs_policy.settings import Settings, sources
from pbs_policy.settings import load as load_file

TARGETS = ("protocol", "table", "service", "settings", "script", "smtpd_log")

TOO_MANY = re.compile(rb"[*%~>|]\+?[0-9]{7}")
"""A list announced with so many items costs hiredis its memory, and seconds: that is known, and not looked for."""


def load(name: str) -> Any:
    """The module of a target. Raises KeyError for a name that is none."""
    if name not in TARGETS:
        raise KeyError(name)
    return import_module(f"{__name__}.{name}")


def load_recorder() -> Any:
    """The post-login script's module, for a target alone, which may change it. Its `_socket` is kept as `system`."""
    folder = str(Path(__file__).parents[3] / "dovecot-hooks")
    sys.path.insert(0, folder)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is left beside the script
    sys.modules.pop("pbs_postlogin", None)
    try:
        recorder: Any = import_module("pbs_postlogin")
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(folder)
    recorder.system = recorder._socket
    return recorder


def load_settings(data: bytes) -> tuple[Settings, dict[str, sources.Value]]:
    """The settings in a file of this content, which nobody has to write."""
    with mock.patch.object(sources, "read_trusted", return_value=(data, ())):
        return load_file(Path("FILE"))


class Supply:
    """Hands out the fuzzer's bytes, from the front; what is asked for when nothing is left is 0 or empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, below: int) -> int:
        """A number from 0 to `below` - 1, at most 256, of one byte."""
        return self.take(1)[0] % below if self._at < len(self._data) else 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        self._at += size
        return self._data[self._at - size : self._at]

    def piece(self) -> bytes:
        """The next bytes up to 0xFF, which is the end of a piece."""
        end = self._data.find(b"\xff", self._at)
        end = len(self._data) if end < 0 else end
        piece = self._data[self._at : end]
        self._at = end + 1
        return piece

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def __bool__(self) -> bool:
        return self._at < len(self._data)
