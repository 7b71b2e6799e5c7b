"""Denies from a file: addresses, networks and users that nobody relays from or as, whatever becomes of Redis.

Written in the manner of Postfix's cidr_table(5), a reason behind each:

    # address, network or user    reason
    192.0.2.7                     spam since Monday
    198.51.100.0/24               hosting network, no customers of ours
    alice@example.com             password stolen, call her
        before it is taken out

Lines are those of main.cf: an indented line continues the one before, also the reason. There is no `!`, no `if`. What
is listed twice is denied for the reason that stands first. A user without a domain is completed by user_domain. An
IPv6 address stands for the whole network of `ipv6_prefix`, as everywhere. There are no permits from a file: for an
address that is always to relay there is mynetworks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pbs_policy.address import ClientAddress, ClientAddresses, Target, networks_of
from pbs_policy.changing_file import ChangingFile, raise_faults
from pbs_policy.decision.sender import is_text
from pbs_policy.log import printable
from pbs_policy.postfix.main_cf import logical_lines
from pbs_policy.table.networks import Lengths
from pbs_policy.table.users import complete_user, parse_user_name

_NO_USERS = {
    "all": "; everybody is 0.0.0.0/0 and, on a line of its own, ::/0",
    "if": "; there are no conditions",
    "endif": "; there are no conditions",
}


class FileDeny(NamedTuple):
    """One line: who is denied (`kind` is `address`, also for a network, or `user`), why, and where that is said
    (`FILE:LINE`)."""

    kind: str
    target: str
    reason: str
    place: str


class _Content(NamedTuple):
    targets: dict[str, FileDeny]
    lengths: Lengths  # of the networks among them
    users: dict[bytes, FileDeny]


class Denies(ChangingFile[_Content]):
    """The denies of one file."""

    def __init__(self, file: Path, addresses: ClientAddresses, user_domain: str) -> None:
        parse = partial(_parse, addresses=addresses, user_domain=user_domain)
        super().__init__(file, parse, _Content({}, frozenset(), {}))

    @classmethod
    def load(cls, file: Path, addresses: ClientAddresses, user_domain: str) -> Denies:
        """The denies in `file`. Raises FileFault, also where the file cannot be read."""
        denies = cls(file, addresses, user_domain)
        denies.reload_if_changed()
        return denies

    def of_address(self, client: ClientAddress) -> FileDeny | None:
        """What denies a client: its address, or the narrowest network that holds it."""
        targets, lengths, _ = self.content
        host = client.host or client.text
        names = (host, *networks_of(host, lengths))
        return next((targets[name] for name in names if name in targets), None)

    def of_target(self, target: Target) -> FileDeny | None:
        """What denies the whole of an address or network."""
        targets, lengths, _ = self.content
        if target.length is None:
            return self.of_address(ClientAddress(target.text.partition("/")[0], host=target.host))
        version, bits = target.length
        names = networks_of(target.text.partition("/")[0], (each for each in lengths if each <= (version, bits)))
        return next((targets[name] for name in names if name in targets), None)

    def of_user(self, user: bytes) -> FileDeny | None:
        """What denies a user, as keys name them."""
        return self.content.users.get(user)

    def of_users(self, users: Iterable[bytes]) -> set[bytes]:
        """Those of `users` who are denied."""
        denied = self.content.users
        return {user for user in users if user in denied} if denied else set()

    @property
    def has_users(self) -> bool:
        """Whether any user is denied."""
        return bool(self.content.users)

    def __iter__(self) -> Iterator[FileDeny]:
        """All of them."""
        content = self.content
        yield from content.targets.values()
        yield from content.users.values()


def _parse_user(name: str) -> str | None:
    """The user whom a line is about; None for an address or network. Raises ValueError for what is neither."""
    hint = "expected an address, a network or a user, then a reason"
    if name.lower() in _NO_USERS or name.startswith("!"):
        raise ValueError(f"{printable(name)!r}: {hint}{_NO_USERS.get(name.lower(), '; nothing is excepted (!)')}")
    user = name if name.startswith("@") else parse_user_name(name)
    if user and user.startswith("@"):
        raise ValueError(f"{printable(name)!r}: a whole domain cannot be denied: deny its users, or their addresses")
    return user


def _parse(data: bytes, file: str, addresses: ClientAddresses, user_domain: str) -> _Content:
    targets: dict[str, FileDeny] = {}
    users: dict[bytes, FileDeny] = {}
    lengths: set[tuple[int, int]] = set()
    faults = []
    for number, whole in logical_lines(data.removeprefix(b"\xef\xbb\xbf")):  # a BOM, if an editor left one
        place = f"{file}:{number}"
        line = whole.strip()
        try:
            if not is_text(line):
                raise ValueError("expected UTF-8 text without control characters")
            name, _, reason = line.replace(b"\t", b" ").partition(b" ")
            text, why = name.decode(), printable(reason.decode().strip())
            named = _parse_user(text)
            if named is not None:
                user = complete_user(named.encode(), user_domain)
                users.setdefault(user, FileDeny("user", user.decode(), why, place))
                continue
            target = addresses.parse_target(text)
            targets.setdefault(target.text, FileDeny("address", target.text, why, place))
            if target.length:
                lengths.add(target.length)
            elif "/" in target.text:
                lengths.add((6, int(target.text.partition("/")[2])))
        except ValueError as fault:
            faults.append(f"{place}: {fault}")
    raise_faults(file, faults)
    return _Content(targets, frozenset(lengths), users)
