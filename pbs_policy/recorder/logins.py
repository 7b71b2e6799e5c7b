"""What is recorded of a login is said in one place, the post-login script's module, which knows nothing of this
package. Here it is loaded, and given types."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any, NamedTuple

from pbs_policy.settings.sources import Value
from pbs_policy.shipped import shipped
from pbs_policy.store.question import Command

USUAL_SERVICES = frozenset(("pop3", "imap"))
"""Whose logins count where `services` is not set. Dovecot tells of those by SMTP AUTH and sieve as well."""


class SeenLogin(NamedTuple):
    """A login that Dovecot told of, in which of `records.WAYS`. `master` is whose password was asked for, where that
    may be another's. One that is `proxied` goes on to another host, which may be the one that checks the password."""

    user: bytes
    address: str
    service: str
    way: str
    mechanism: bytes = b""
    master: bytes = b""
    proxied: bool = False


class Recorded(NamedTuple):
    """What is written of a login: `value` under each of `keys`, for `ttl` seconds; and a line that tells of it. There
    are no keys where it is not recorded, for the reason in the line."""

    keys: list[bytes]
    value: bytes
    ttl: int
    line: str

    def commands(self, left: int) -> list[Command]:
        """What writes it to Redis, for so many seconds."""
        return [(b"SET", key, self.value, b"EX", b"%d" % left) for key in self.keys]


class Unrecorded(Exception):
    """The login must not permit anything; why, as a sentence."""


class LoginRules:
    """The script's rules, by the settings that concern them."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._script = _load_script()
        self._settings = {name: value.text for name, value in values.items()}

    @property
    def tells_logins(self) -> bool:
        """Whether each login is to be a line of the log."""
        return self._settings["log_logins"] == "yes"

    def describe(self, login: SeenLogin) -> Recorded:
        """What to write. Raises Unrecorded."""
        script, settings = self._script, self._settings
        if login.proxied and settings["record_proxied_logins"] != "yes":
            raise Unrecorded(f"it goes on to another host, from {login.address}: record_proxied_logins = no")
        try:
            script.refuse_unproven(login.user, login.master, login.mechanism, login.address, settings)
            return Recorded(*script.describe(login.user, login.address, login.service, settings, login.way))
        except script.Failure as reason:
            raise Unrecorded(str(reason)) from None


def _load_script() -> Any:
    path = shipped("dovecot-hooks/pbs_postlogin.py")
    spec = spec_from_file_location("pbs_postlogin", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} cannot be loaded")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
