"""One relay attempt: who asks for what, under which rules, and the permissions that stand in the table for it."""

from __future__ import annotations

from collections.abc import Sequence

from pbs_policy.address import ClientAddress
from pbs_policy.decision.candidate import Candidate, login_under, permit_under
from pbs_policy.decision.denies import Denies
from pbs_policy.decision.rules import Rules
from pbs_policy.decision.sender import Maps, names_to_deny, names_to_match, own_names
from pbs_policy.postfix.protocol import Request, first, only
from pbs_policy.store.question import Procedure, Question
from pbs_policy.table.keys import Keys

_ONLY_LOOKS = b"pbs_only_looks"  # an attribute that `pbs-policy query` and `replay` send (`query.only_looking`)


class Case:
    """One relay attempt. `keys` is what is to be asked first: the permit of the address, its last login, the login of
    each of `names` from there, the permit of each of `networks`. It holds whatever the decision depends on, so that a
    reload in the middle changes nothing."""

    __slots__ = (
        "_only_looks", "_own", "client", "client_address", "denies", "keys", "names", "networks", "request", "rules",
        "table_keys",
    )  # fmt: skip

    def __init__(
        self,
        client: ClientAddress,
        request: Request,
        rules: Rules,
        table_keys: Keys,
        maps: Maps | None = None,
        networks: Sequence[str] = (),
        *,
        denies: Denies | None = None,
        only_looks: bool = False,
    ) -> None:
        """`networks` are those with this client in them that may have a permit; with `only_looks` no cap counts this
        attempt, and nobody is denied for it.

        Raises ProtocolError where the request names its sender twice and sender_match wants to know it.
        """
        self.client = client.text
        self.client_address = client
        self.denies = denies
        self.request = request
        self.rules = rules
        self.table_keys = table_keys
        self.networks = networks
        self._only_looks = only_looks
        self._own: tuple[bytes, ...] | None = None
        self.names: tuple[bytes, ...] | None = None
        self.keys = table_keys.relay(client.text)
        if rules.senders.match != "off":
            self.names = names_to_match(only(request, b"sender"), rules.senders, maps)
            self.keys += [table_keys.login(client.text, name) for name in self.names or ()]
        if networks:
            self.keys += [table_keys.permit(network) for network in networks]

    @property
    def only_looks(self) -> bool:
        """Whether nothing is to be counted: nobody relays, somebody asks whether he might."""
        return self._only_looks or only_asks(self.request)

    def sender_names(self) -> tuple[Sequence[bytes], Sequence[bytes]]:
        """The users whose denies hold against the envelope sender: whom it names by itself, within a tag too, and by
        the sender maps where they are asked.

        Raises ProtocolError where the request names its sender twice.
        """
        own = self._own
        if own is None:
            own = self._own = names_to_deny(only(self.request, b"sender"), self.rules.senders)
        if not self.names:
            return own, ()
        return own, [name for name in self.names if name not in own and not name.startswith(b"@")]


def only_asks(request: Request) -> bool:
    """Whether the request itself says that nobody relays, somebody asks whether he might."""
    return bool(first(request, _ONLY_LOOKS))


def find_permissions(
    case: Case, found: Sequence[bytes | None]
) -> tuple[list[Candidate], list[Candidate], Candidate | None]:
    """The permits and the logins that may be the answer, each best first, given the values `found` under the case's
    `keys`; and the last login from the address, whoever it is of."""
    keys, client, domain = case.keys, case.client, case.rules.senders.user_domain
    permits, logins = [], []
    if permit := permit_under(client, keys[0], found[0], domain):
        permits.append(permit)
    last = login_under(client, keys[1], found[1], domain)
    at = 2
    if case.names is None:
        if last:
            logins.append(last)
    else:
        at += len(case.names)
        under_names = zip(keys[2:at], found[2:at], strict=True)
        logins += filter(None, (login_under(client, key, value, domain) for key, value in under_names))
    if case.networks:
        under = zip(case.networks, keys[at:], found[at:], strict=True)
        permits += filter(None, (permit_under(network, key, value, domain) for network, key, value in under))
    return permits, logins, last


def find_own_logins(case: Case, weighed: set[bytes]) -> Procedure[list[Candidate]]:
    """The logins of the sender's own user from this address, which were not weighed yet: a denied or unknown user was
    the last to log in, and the sender, who may have been here before, is not refused with them."""
    own = own_names(only(case.request, b"sender"), case.rules.senders)
    names = [name for name in own if name not in weighed]
    if case.rules.senders.match == "address" or not names:
        return []  # what the sender names was looked for at once
    weighed.update(names)
    keys = [case.table_keys.login(case.client, name) for name in names]
    values, _ = yield Question(keys)
    domain = case.rules.senders.user_domain
    logins = [login_under(case.client, key, value, domain) for key, value in zip(keys, values, strict=True)]
    return [each for each in logins if each is not None]
