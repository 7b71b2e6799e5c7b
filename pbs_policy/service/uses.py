"""Who is credited with a recipient that was let through, for the report; asked only after the answer was given.

The login that let a client relay is often the last one from its address, which is not always whose mail it is. So
where the sender names somebody else, their login from there is looked for. Where there is none, the mail is the only
user's who is known from that address, or, where several are, nobody's: the address alone is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pbs_policy.decision.candidate import login_under
from pbs_policy.decision.case import only_asks
from pbs_policy.decision.rules import Decision
from pbs_policy.decision.sender import Maps, SenderRules, justifies, names_under
from pbs_policy.postfix.protocol import Request, first
from pbs_policy.store.batch import Answered
from pbs_policy.table.keys import Keys
from pbs_policy.table.usage import BY_ADDRESS_ALONE, BY_DOMAIN, Usage

Ask = Callable[[Sequence[bytes], Answered], None]


def note_use(
    usage: Usage, client: str, request: Request, decision: Decision, rules: SenderRules, maps: Maps | None,
    keys: Keys, ask: Ask,
) -> None:  # fmt: skip
    """Count a recipient that was let through, unless somebody only asked."""
    by = decision.by
    user = by.recorded_user if by else b""
    if user.endswith(b".invalid") or only_asks(request):  # a trial of the doctor's: no such domain (RFC 2606)
        return
    sender = first(request, b"sender")
    names = names_under(sender, rules, False, maps)
    if names and justifies(names, user, rules):
        usage.note(client, _text(user), 0)
        usage.is_shared(client, user)
        return
    in_domain = justifies(names_under(sender, rules, True, maps), user, rules)
    foreign = 0 if names is None else BY_ADDRESS_ALONE if in_domain else BY_DOMAIN
    if by is None or by.permit:
        usage.note(client, _text(user), foreign)
    elif names:
        asked = [keys.login(client, name) for name in names]
        ask(asked, partial(_credit, usage, client, user, foreign, asked, rules.user_domain))
    else:
        _credit(usage, client, user, foreign, (), "", (), ())


def _credit(
    usage: Usage, client: str, user: bytes, foreign: int, keys: Sequence[bytes], user_domain: str,
    values: Sequence[bytes | None] | None, _: Sequence[Any],
) -> None:  # fmt: skip
    """`values` are the logins from there of those whom the sender names, None where Redis is away."""
    for key, value in zip(keys, values or (), strict=False):
        login = login_under(client, key, value, user_domain)
        if login and login.recorded_user:
            usage.is_shared(client, user)
            usage.is_shared(client, login.recorded_user)
            usage.note(client, _text(login.recorded_user), 0)
            return
    usage.note(client, "" if usage.is_shared(client, user) else _text(user), foreign)


def _text(user: bytes) -> str:
    return user.decode("utf-8", "surrogateescape")
