"""The check of who may ask Dovecot who is connected: the recorder, which keeps logins alive, and nobody else."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pbs_policy.doctor.finding import Finding, good, warning, wrong
from pbs_policy.dovecot.doveconf import DovecotConfig
from pbs_policy.settings import Settings

CHECK = "dovecot.sessions"
_SOCKET = ("service anvil", "unix_listener anvil")


def check_anvil(config: DovecotConfig, settings: Settings) -> Iterator[Finding]:
    """Nothing where no recorder is set up, or it is to renew nothing."""
    if not settings.reports_listen or not settings.renew_sessions:
        return
    group, mode = config.value(_SOCKET, "group"), config.value(_SOCKET, "mode")
    place = config.place(_SOCKET, "mode" if mode else "group" if group else "")
    bits = int(mode, 8) if re.fullmatch(r"0?[0-7]{3}", mode) else 0o600
    if bits & 0o002:
        seen = "every user of this host may write to Dovecot's anvil socket, and so have a login kept alive"
        yield wrong(CHECK, seen, place, "mode = 0660, and a group of the recorder alone")
    elif bits & 0o060 == 0o060 and group:
        yield good(CHECK, f"the group {group} may ask who is connected, and the recorder renews their logins", place)
    else:
        seen = "the recorder may not ask Dovecot who is connected: users who stay connected may not relay for long"
        yield warning(
            CHECK, seen, place, "dovecot-hooks/sessions.conf and a restart of Dovecot, or renew_sessions = 0"
        )
