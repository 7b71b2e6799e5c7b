"""Who is credited with the recipients that were let through, for the report.

A request leaves a note after its answer (`Uses.note`), and no more. Whose the recipients were is judged every few
seconds in the background (`Uses.credit`), once for all that are alike, a few notes at a time.

The login that let a client relay is often the last one from its address, which is not always whose mail it is. So
where the sender names somebody else, their login from there is looked for. Where there is none, the mail is the only
user's who is known from that address, or, where several are, nobody's: the address alone is named.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

from pbs_policy.decision.candidate import login_under
from pbs_policy.decision.case import only_asks
from pbs_policy.decision.rules import Decision
from pbs_policy.decision.sender import LONGEST_SENDER, Maps, SenderRules, justifies, names_under
from pbs_policy.postfix.protocol import Request, first
from pbs_policy.store.question import Answer, Question
from pbs_policy.table.keys import Keys
from pbs_policy.table.usage import BY_ADDRESS_ALONE, BY_DOMAIN, DAY, PAIRS_AT_ONCE, PAIRS_IN_MEMORY, Usage

_Sent = tuple[str, bytes, bool, bytes, int]
"""What is alike of recipients: the client, the user whose login or permit decided, whether it was a permit, the
envelope sender, and the day."""


class Uses:
    """The notes that `usage` has not been told yet; it is None where nothing is to be counted."""

    def __init__(self, keys: Keys) -> None:
        self.usage: Usage | None = None
        self._keys = keys
        self._noted: dict[_Sent, list[float]] = {}  # how many, and when the last one was

    def follow(self, usage: Usage | None, rules: SenderRules, maps: Maps | None) -> None:
        """Credit by these rules from now on, also what is noted already."""
        self.usage, self._rules, self._maps = usage, rules, maps
        if usage is None:
            self._noted.clear()

    def note(self, client: str, request: Request, decision: Decision) -> None:
        """Note a recipient that was let through, unless somebody only asked. On the hot path."""
        by = decision.by
        if self.usage is None or by is None or only_asks(request):
            return
        now = time.time()
        sender = first(request, b"sender")[: LONGEST_SENDER + 1]  # one that is longer names nobody
        sent = client, by.recorded_user, by.permit is not None, sender, int(now // DAY)
        if noted := self._noted.get(sent):
            noted[0] += 1
            noted[1] = now
        elif len(self._noted) < PAIRS_IN_MEMORY:
            self._noted[sent] = [1, now]
        else:
            self._credit(self.usage, sent, 1, now, None)

    async def credit(
        self, put: Callable[[Question], Awaitable[Answer | None]], pause: Callable[[], Awaitable[None]]
    ) -> None:
        """Tell `usage` what is noted by now, `PAIRS_AT_ONCE` notes in a piece, with a `pause` behind each. While
        Redis does not answer, the rest waits for the next time."""
        for _ in range(-(-len(self._noted) // PAIRS_AT_ONCE)):
            asked = {sent: self._logins_of_sender(sent) for sent in islice(self._noted, PAIRS_AT_ONCE)}
            keys = list({key for each in asked.values() for key in each})
            answer = await put(Question(keys)) if keys else Answer()
            if answer is None or self.usage is None:
                return
            found = dict(zip(keys, answer.values, strict=True))
            for sent, own in asked.items():
                number, at = self._noted.pop(sent, (0, 0.0))  # none after two reloads meanwhile
                if not number:
                    continue
                there = [login_under(sent[0], key, found[key], self._rules.user_domain) for key in own]
                self._credit(self.usage, sent, int(number), at, [login.recorded_user for login in there if login])
            await pause()

    def _logins_of_sender(self, sent: _Sent) -> Sequence[bytes]:
        """The keys under which the sender's own logins from there would be, where another's login decided."""
        client, user, is_by_permit, sender, _ = sent
        names = names_under(sender, self._rules, False, self._maps)
        if not names or is_by_permit or justifies(names, user, self._rules):
            return ()
        return [self._keys.login(client, name) for name in names]

    def _credit(self, usage: Usage, sent: _Sent, number: int, at: float, there: Sequence[bytes] | None) -> None:
        """`there` are the users whom the sender names, of those who are logged in at the client's address; None where
        nobody was asked: then another's mail is nobody's."""
        client, user, is_by_permit, sender, _ = sent
        if user.endswith(b".invalid"):  # a trial of the doctor's: no such domain (RFC 2606)
            return
        rules = self._rules
        names = names_under(sender, rules, False, self._maps)
        is_own = bool(names) and justifies(names, user, rules)
        credited = user if is_own else next(filter(None, there or ()), None)
        if credited is not None:
            usage.is_shared(client, user)
            usage.is_shared(client, credited)
            usage.note(client, _text(credited), 0, number, at)
            return
        in_domain = justifies(names_under(sender, rules, True, self._maps), user, rules)
        foreign = 0 if names is None else BY_ADDRESS_ALONE if in_domain else BY_DOMAIN
        is_nobodys = not is_by_permit and (usage.is_shared(client, user) or (there is None and bool(names)))
        usage.note(client, "" if is_nobodys else _text(user), foreign, number, at)


def _text(user: bytes) -> str:
    return user.decode("utf-8", "surrogateescape")
