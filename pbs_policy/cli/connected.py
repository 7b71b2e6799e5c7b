"""Logins that are revoked while their users are connected to Dovecot: the recorder renews them (`renew_sessions`).

doveadm may be on another host. But a session leaves its mark in the table: a login that it has renewed not long ago.
"""

from __future__ import annotations

from collections.abc import Sequence

from pbs_policy.address import ClientAddress
from pbs_policy.decision.denied import Denied, read_denied
from pbs_policy.decision.denies import Denies
from pbs_policy.settings import Settings
from pbs_policy.store.bulk import pieces
from pbs_policy.store.question import Procedure, carry_out
from pbs_policy.table.login_table import LoginTable
from pbs_policy.table.records import SESSION, Record

_AT_ONCE = 100
_LATE = 15  # seconds by which a round may be late


class SessionLogins:
    """Those among the logins that it `see`s."""

    def __init__(self, settings: Settings, table: LoginTable) -> None:
        self._rules = settings.rules.senders
        self._table = table
        self._since = table.now() - 2 * settings.renew_interval - _LATE
        self._found: set[tuple[str, str]] = set()

    def see(self, client_address: str, login: Record) -> None:
        """Note a login that was revoked, if it is one of them."""
        if login.way == SESSION and login.login_at >= self._since:
            self._found.add((client_address, login.user))

    def come_back(self, of_file: Denies | None) -> bool:
        """Whether one of them will be renewed: none of a user, or from an address, that is denied."""
        return any(
            not all(carry_out(self._read_denied(some, of_file), self._table.ask).logins)
            for some in pieces(sorted(self._found), _AT_ONCE)
        )

    def _read_denied(self, some: Sequence[tuple[str, str]], of_file: Denies | None) -> Procedure[Denied]:
        logins = [(ClientAddress(address), user.encode("utf-8", "surrogateescape")) for address, user in some]
        return read_denied(self._table.keys, self._rules, logins, of_file)
