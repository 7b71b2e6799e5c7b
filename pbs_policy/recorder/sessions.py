"""Sessions that stay connected keep their login alive (`renew_sessions`): a mail program that idles logs in once a
day. Again and again doveadm tells who is connected, and their logins are written anew, with the full `ttl`.

A session keeps a login alive, and never makes one. doveadm shows a master user's session and an anonymous one as the
user's own, and those must not permit. So a session counts from the moment at which its login stands in the table,
where the script or a report has put it. That is remembered for as long as the session lasts, so that a Redis that
comes back empty is filled again. All other rules on logins are the script's.

Nobody who is denied is renewed, and nobody at all while Redis does not tell who that is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import NamedTuple

from pbs_policy.address import AddressError, ClientAddress
from pbs_policy.decision.denied import Denied, read_denied
from pbs_policy.decision.denies import Denies
from pbs_policy.dovecot.doveadm import DoveadmFault, ask_doveadm
from pbs_policy.dovecot.sessions import WHO, MailSession, NotSessions, parse_who
from pbs_policy.log import Log
from pbs_policy.recorder.logins import USUAL_SERVICES, LoginRules, Recorded, SeenLogin, Unrecorded
from pbs_policy.service.reload import read_anew
from pbs_policy.settings import Settings
from pbs_policy.store.bulk import pieces
from pbs_policy.store.lookups import Lookups
from pbs_policy.store.question import Procedure, Question
from pbs_policy.table.keys import Keys
from pbs_policy.table.records import SESSION, user_of_record

AT_ONCE = 25
"""Sessions in one question to Redis, some 200 keys: a tenth of a millisecond in which it answers nobody else."""


class _Connected(NamedTuple):
    """One user at one address, and what is recorded of them."""

    user: bytes
    client: ClientAddress
    recorded: Recorded

    @property
    def login(self) -> tuple[bytes, bytes]:
        """What tells this login from all others."""
        return self.recorded.keys[0], self.user

    def stands(self, values: Mapping[bytes, bytes | None]) -> bool:
        """Whether the login stands in the table. One that tells no user, as last_login writes it, may be this one."""
        if len(self.recorded.keys) > 1 and _user(values[self.recorded.keys[1]]) is not None:
            return True
        return _user(values[self.recorded.keys[0]]) in (self.user, b"")

    def is_last(self, values: Mapping[bytes, bytes | None]) -> bool:
        """Whether it is the last login from its address, as far as the table tells."""
        return _user(values[self.recorded.keys[0]]) == self.user


def _user(value: bytes | None) -> bytes | None:
    """The user in a login's value; None where there is no login."""
    return None if value is None else user_of_record(value)


class _Unavailable(Exception):
    """Redis did not say who is denied, or did not take a login."""


class SessionKeeper:
    """Renews logins for as long as `run` runs. `follow` comes first."""

    def __init__(self, lookups: Lookups, log: Log) -> None:
        self._lookups = lookups
        self._log = log
        self._known: set[tuple[bytes, bytes]] = set()  # logins that stood in the table, of those who are connected
        self._trouble: str | None = None  # as it was told; "" while all is well
        self._passed_over: frozenset[str] = frozenset()
        self.connected = 0  # as the last round found them: logins of sessions
        self.renewed = 0
        self.recorded = 0  # all in all

    def follow(self, settings: Settings, denies: Denies | None, logins: LoginRules) -> None:
        """From now on by these settings."""
        self._settings, self._denies, self._logins = settings, denies, logins
        self._keys, self._rules = Keys(settings.key_prefix), settings.rules.senders

    async def run(self) -> None:
        """Renew again and again."""
        while True:
            begun = monotonic()
            await self.renew()
            interval = self._settings.renew_interval
            await asyncio.sleep(max(begun + interval - monotonic(), interval / 10))

    async def renew(self) -> None:
        """Renew once. What goes wrong is said once, until it goes well again."""
        trouble = ""
        try:
            sessions = await self._ask_doveadm()
            # Not for longer: whoever was connected then may be gone by now.
            async with asyncio.timeout(max(self._settings.renew_interval, 1.0)):
                await self._renew_all(sessions)
        except DoveadmFault as fault:
            trouble = f"doveadm {fault}"
        except (_Unavailable, TimeoutError):
            trouble = "Redis does not tell in time who is denied, or takes no logins"
        except Exception as error:  # noqa: BLE001 - were this task to end, no session would be renewed again
            trouble = repr(error)
        if trouble and trouble != self._trouble:
            self._log.error(f"sessions are not renewed: {trouble}")
        elif not trouble and self._trouble != "":
            self._log.info(f"sessions are renewed: {self.renewed} logins of {self.connected} that are connected")
        self._trouble = trouble

    async def _ask_doveadm(self) -> list[MailSession]:
        config = self._settings.dovecot_config
        printed = await ask_doveadm((*(("-c", config) if config else ()), *WHO))
        try:
            sessions, passed_over = parse_who(printed)
        except NotSessions as fault:
            raise DoveadmFault(f"printed no list of sessions: {fault}") from None
        if passed_over.keys() - self._passed_over:
            kinds = ", ".join(f"{number} with {reason}" for reason, number in sorted(passed_over.items()))
            self._log.warning(f"doveadm tells of sessions that are not read: {kinds}")
        self._passed_over = frozenset(passed_over)
        return sessions

    async def _renew_all(self, sessions: Sequence[MailSession]) -> None:
        await read_anew("denies", self._denies, self._log)
        connected = await self._describe(sessions)
        self._known &= {each.login for group in connected for each in group}
        self.connected = sum(map(len, connected))
        renewed = 0
        some: list[list[_Connected]] = []
        for group in connected:
            some.append(group)
            if sum(map(len, some)) >= AT_ONCE:
                renewed += await self._renew_some(some)
                some = []
        self.renewed = renewed + await self._renew_some(some)

    async def _describe(self, sessions: Sequence[MailSession]) -> list[list[_Connected]]:
        """What is to be recorded of the sessions, by their addresses; without those that must not be."""
        found: dict[bytes, dict[bytes, _Connected]] = {}
        services, addresses = self._settings.services or USUAL_SERVICES, self._settings.addresses
        for some in pieces(sessions, AT_ONCE):
            for session in some:
                user = session.user.encode()
                login = SeenLogin(user, session.address, session.service, SESSION)
                try:
                    recorded = self._logins.describe(login)
                    client = addresses.parse(session.address)
                except (Unrecorded, AddressError):
                    continue
                if recorded.keys and session.service in services:
                    found.setdefault(recorded.keys[0], {})[user] = _Connected(user, client, recorded)
            await asyncio.sleep(0)
        return [list(group.values()) for group in found.values()]

    async def _renew_some(self, groups: Sequence[Sequence[_Connected]]) -> int:
        """Renew the logins at some addresses; how many were. Of an address' users the one whose login it has now is
        the last to be written: to the service it stays theirs."""
        first: list[Recorded] = []
        last: list[Recorded] = []
        for some in pieces((each for group in groups for each in group), AT_ONCE):
            denied = await self._ask(read_denied(
                self._keys, self._rules, [(each.client, each.user) for each in some], self._denies,
                [key for each in some for key in each.recorded.keys[:2]],
            ))  # fmt: skip
            permitted = [each for each, is_denied in zip(some, denied.logins, strict=True) if not is_denied]
            self._known |= {each.login for each in permitted if each.stands(denied.values)}
            for each in permitted:
                if each.login in self._known:
                    (last if each.is_last(denied.values) else first).append(each.recorded)
        for written in pieces((*first, *last), AT_ONCE):
            commands = [command for each in written for command in each.commands(each.ttl)]
            if await self._lookups.put(Question((), commands)) is None:
                raise _Unavailable
            self.recorded += len(written)
        return len(first) + len(last)

    async def _ask(self, procedure: Procedure[Denied]) -> Denied:
        try:
            question = next(procedure)
            while (answer := await self._lookups.put(question)) is not None:
                question = procedure.send(answer)
        except StopIteration as end:
            found: Denied = end.value
            return found
        raise _Unavailable
