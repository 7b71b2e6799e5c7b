"""One relay attempt (`Case`), and what stands in the table for it (`find_permissions`). What follows from that is for
`policy` to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from pbs_policy.address import ClientAddress
from pbs_policy.decision.sender_maps import SenderMaps
from pbs_policy.decision.senders import names_to_match
from pbs_policy.postfix.protocol import Request, first, only
from pbs_policy.table.keys import Keys
from pbs_policy.table.records import Permit, Record, parse_permit, parse_record, user_of_record
from pbs_policy.table.users import complete_user

if TYPE_CHECKING:
    from pbs_policy.decision.policy import Rules

_ONLY_LOOKS = b"pbs_only_looks"  # an attribute that `pbs-policy query` and `replay` send (`query.only_looking`)


class Candidate(NamedTuple):
    """A login or permit that may be the answer: its key and value, and the address or network it is for. `user` is as
    keys name it, b"" where it is not known."""

    key: bytes
    target: str
    value: bytes
    user: bytes
    permit: Permit | None = None

    @property
    def record(self) -> Record:
        """What it says, read only when it is to be shown: most decisions never are."""
        return self.permit.record if self.permit else parse_record(self.value) or Record(0)


class Case:
    """One relay attempt: who asks for what, under which rules. `keys` is what is to be asked first."""

    __slots__ = ("_only_looks", "client", "keys", "names", "networks", "request", "rules", "table_keys")

    def __init__(
        self,
        client: ClientAddress,
        request: Request,
        rules: Rules,
        table_keys: Keys,
        maps: SenderMaps | None = None,
        networks: Sequence[str] = (),
        *,
        only_looks: bool = False,
    ) -> None:
        """`networks` are those with this client in them that may have a permit; with `only_looks` no cap counts this
        attempt, and nobody is denied for it.

        Raises ProtocolError where the request names its sender twice and sender_match wants to know it.
        """
        self.client = client.text
        self.request = request
        self.rules = rules
        self.table_keys = table_keys
        self.networks = networks
        self._only_looks = only_looks
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


def only_asks(request: Request) -> bool:
    """Whether the request itself says that nobody relays, somebody asks whether he might."""
    return bool(first(request, _ONLY_LOOKS))


def find_permissions(case: Case, found: Sequence[bytes | None]) -> tuple[bool, list[Candidate]]:
    """Whether anybody is logged in from there; and every login and permit that may be the answer, best first."""
    keys, client = case.keys, case.client
    held = [_permit(case, keys[0], client, found[0])]
    if case.networks:
        first = len(keys) - len(case.networks)
        held += map(partial(_permit, case), keys[first:], case.networks, found[first:])
    user_domain = case.rules.senders.user_domain
    last = login_under(client, keys[1], found[1], user_domain)
    if case.names is None:
        held.append(last)
    else:
        names = 2 + len(case.names)
        held += [login_under(client, *each, user_domain) for each in zip(keys[2:names], found[2:names], strict=True)]
    return last is not None, [each for each in held if each]


def _permit(case: Case, key: bytes, target: str, value: bytes | None) -> Candidate | None:
    permit = parse_permit(value) if value is not None else None
    if value is None or permit is None:
        return None
    user = complete_user(permit.user.encode("utf-8", "surrogateescape"), case.rules.senders.user_domain)
    return Candidate(key, target, value, user, permit)


def login_under(client: str, key: bytes, value: bytes | None, user_domain: str) -> Candidate | None:
    """The login that stands under a key of this address, if the value is one."""
    user = user_of_record(value) if value is not None else None
    if value is None or user is None:
        return None
    return Candidate(key, client, value, complete_user(user, user_domain))
