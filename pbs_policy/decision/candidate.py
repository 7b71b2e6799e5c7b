"""A login or permit that stands in the table and may be the answer, and how it is read from a key's value."""

from __future__ import annotations

from typing import NamedTuple

from pbs_policy.table.records import Permit, Record, parse_permit, parse_record, user_of_record
from pbs_policy.table.users import complete_user


class Candidate(NamedTuple):
    """A login or permit that may be the answer: its key and value, and the address or network it is for. `user` is as
    keys name it, b"" where it is not known; `recorded_user` is the same as it was written."""

    key: bytes
    target: str
    value: bytes
    user: bytes
    recorded_user: bytes = b""
    permit: Permit | None = None

    @property
    def record(self) -> Record:
        """What it says, read only when it is to be shown: most decisions never are."""
        return self.permit.record if self.permit else parse_record(self.value) or Record(0)


def login_under(client: str, key: bytes, value: bytes | None, user_domain: str) -> Candidate | None:
    """The login that stands under a key of this address, if the value is one."""
    if value is None or (user := user_of_record(value)) is None:
        return None
    return Candidate(key, client, value, complete_user(user, user_domain), user)


def permit_under(target: str, key: bytes, value: bytes | None, user_domain: str) -> Candidate | None:
    """The permit of this address or network that stands under a key, if the value is one."""
    if value is None or (permit := parse_permit(value)) is None:
        return None
    user = permit.user.encode("utf-8", "surrogateescape")
    return Candidate(key, target, value, complete_user(user, user_domain), user, permit)
